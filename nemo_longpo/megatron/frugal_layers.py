"""Megatron's layers with fewer activations on the device: see `nemo_longpo.activations`.

GPTModel has no setting for the classes of these modules. They are built by Megatron and then change their class, which
keeps parameters, state-dict keys and all references to them, as for the output layer in `gpt`.

Shape legend: R local rows, B sequences, H hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel import random
from megatron.core.transformer import TransformerConfig, TransformerLayer
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.utils import make_viewless_tensor
from torch import Tensor

from nemo_longpo.activations import HostMemory, KeptTensors, Replay, in_tiles
from nemo_longpo.errors import InputError


class TiledMLP(MLP):
    """A feed-forward part that holds the intermediate values of one tile of rows.

    With sequence parallelism a tile has the same local rows on every rank: its first layer gathers them in the order of
    ranks, and its second one gives each rank its own back. A norm that Transformer Engine fuses into the first layer is
    part of the tiles.
    """

    local_rows: int
    value_is_used = True

    def forward(self, hidden_states: Tensor, per_token_scale: None = None, **of_experts: None) -> tuple[Tensor, None]:
        """Return [R, B, H], and no bias."""
        assert per_token_scale is None, "a scale of each token is for experts"
        whole = super().forward

        def run(tile: Tensor) -> Tensor:
            out: Tensor = whole(tile)[0]
            return out

        weights = list(self.parameters())
        return in_tiles(run, self.local_rows, hidden_states, weights, _replay(), self.value_is_used), None


def _replay() -> Replay:
    """Return a context that draws the random numbers again that come after this call, and leaves no trace."""
    states = random._get_all_rng_states()

    @contextmanager
    def again() -> Iterator[None]:
        with random._fork_rng():
            random._set_all_rng_states(*states)
            yield

    return again


class FrugalBlock(TransformerBlock):
    """Megatron's layers of a pipeline stage with another `full` recompute.

    With `host_memory`, inputs of recomputed layers are kept there. The input of a later pipeline stage is not: the
    schedule holds it until the backward anyway.

    What a recomputed layer returns the second time, nobody reads. So a feed-forward part in tiles is skipped there, and
    computed twice in all: in the forward, and tile by tile in the backward.
    """

    host_memory: HostMemory | None

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, *, rotary_pos_emb: Tensor, **others: Any
    ) -> Tensor:
        """As Megatron's, with layers that are recomputed by `_through_groups`; `others` serve inference and experts."""
        if self.config.recompute_granularity != "full" or not self.training:
            return super().forward(hidden_states, attention_mask, rotary_pos_emb=rotary_pos_emb, **others)
        start = hidden_states if self.pre_process else self.input_tensor
        hidden = make_viewless_tensor(inp=start, requires_grad=True, keep_graph=True)
        with tensor_parallel.get_cuda_rng_tracker().fork() if self.config.sequence_parallel else nullcontext():
            hidden = self._through_groups(hidden, attention_mask, rotary_pos_emb)
        if self.final_layernorm is not None:
            hidden = make_viewless_tensor(inp=self.final_layernorm(hidden), requires_grad=True, keep_graph=True)
        return hidden

    def _through_groups(self, hidden_states: Tensor, attention_mask: Tensor | None, rotary_pos_emb: Tensor) -> Tensor:
        kept = None if self.host_memory is None or not torch.is_grad_enabled() else KeptTensors(self.host_memory)
        for layers, recomputed in self._groups():
            if not recomputed:
                hidden_states = _through(layers, hidden_states, attention_mask, rotary_pos_emb)
                continue
            held_elsewhere = layers[0] is self.layers[0] and not self.pre_process
            with nullcontext() if kept is None or held_elsewhere else kept.keep(hidden_states):
                hidden_states = tensor_parallel.checkpoint(
                    partial(_run_or_repeat, layers), False, hidden_states, attention_mask, rotary_pos_emb
                )
        return hidden_states

    def _groups(self) -> Iterator[tuple[list[TransformerLayer], bool]]:
        """Layers that are recomputed together, or alone not at all."""
        layers, count = list(self.layers), self.config.recompute_num_layers
        if self.config.recompute_method == "uniform":
            yield from ((layers[start : start + count], True) for start in range(0, len(layers), count))
        else:
            yield from (([layer], index < count) for index, layer in enumerate(layers))


def _through(
    layers: list[TransformerLayer], hidden: Tensor, attention_mask: Tensor | None, rotary_pos_emb: Tensor
) -> Tensor:
    for layer in layers:
        hidden, _ = layer(hidden_states=hidden, attention_mask=attention_mask, rotary_pos_emb=rotary_pos_emb)
    return hidden


def _run_or_repeat(layers: list[TransformerLayer], *inputs: Tensor) -> Tensor:
    """Run layers without gradients, as in the forward of a recompute, or with them, as in its backward."""
    mlp = layers[-1].mlp
    repeated = torch.is_grad_enabled() and layers[-1].hidden_dropout == 0
    if not repeated or not isinstance(mlp, TiledMLP):
        return _through(layers, *inputs)
    mlp.value_is_used = False
    try:
        return _through(layers, *inputs)
    finally:
        mlp.value_is_used = True


def keep_fewer_activations(block: TransformerBlock, host_memory: HostMemory | None, tile_tokens: int | None) -> None:
    """Change `block` in place; with neither argument it stays Megatron's. Raises InputError if its layers cannot."""
    if host_memory is None and tile_tokens is None:
        return
    config = block.config
    if config.fp8 or config.fp4:
        raise InputError(
            "model.offload_layer_inputs and model.mlp_tile_tokens were never tried with matrix products in fp8 or fp4, "
            "which recompute layers in their own way; set them to false and null, or train in bf16."
        )
    assert type(block) is TransformerBlock, f"not Megatron's layers: {block}"
    block.__class__ = FrugalBlock
    block.host_memory = host_memory
    if tile_tokens is not None:
        for layer in block.layers:
            _tile(layer, tile_tokens)


def _tile(layer: TransformerLayer, tile_tokens: int) -> None:
    config: TransformerConfig = layer.config
    for name in ("tp_comm_overlap", "add_bias_linear"):
        if getattr(config, name):
            raise InputError(
                f"model.mlp_tile_tokens={tile_tokens} does not go with {name}: tiles differ in size, and the "
                f"feed-forward part returns its bias apart; leave {name} off, or set model.mlp_tile_tokens to null."
            )
    if type(layer.mlp) is not MLP:
        raise InputError(
            f"model.mlp_tile_tokens={tile_tokens} cuts Megatron's own feed-forward part into tiles, and this model has "
            f"{type(layer.mlp).__name__}; set model.mlp_tile_tokens to null."
        )
    layer.mlp.__class__ = TiledMLP
    layer.mlp.local_rows = tile_tokens // (config.tensor_model_parallel_size if config.sequence_parallel else 1)
    layer.recompute_mlp = False  # a tile is recomputed anyway
