"""What fresh workers run on the stand-in for Transformer Engine, or on its own Python over kernels in plain torch."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from support import te_kernels, te_stand_in
from support.jobs.gloo_jobs import gloo_group

HEADS, KV_HEADS, HEAD = 8, 4, 16
SCALE = 0.3
LOCAL_ROWS = 14


def _pairs(cp_size: int) -> dict[str, list[int] | None]:
    """`segments.to_tensor()` of pairs with 14 rows a rank: trunk with padding, trunk without branches, nothing said."""
    two_branches = [2, 8 * cp_size, 8 * cp_size - 3, 2 * cp_size - 1, 4 * cp_size + 1]
    small = [2, 4 * cp_size, 4 * cp_size - 1, cp_size + 1, 2 * cp_size - 1]
    smaller = [1, 2 * cp_size, 2 * cp_size, cp_size]
    return {
        "two branches": two_branches,
        "a trunk alone": [0, LOCAL_ROWS * cp_size, LOCAL_ROWS * cp_size],
        "three trees": [*small, *smaller, 0, 4 * cp_size, 4 * cp_size],
        "no trees": None,
    }


def prepare(directory: str) -> None:
    """Let this worker's Megatron and NeMo find Transformer Engine, and train on the CPU."""
    te_stand_in.install(Path(directory))
    from nemo_longpo.backends import cpu

    cpu.activate()


def prepare_core(directory: str) -> None:
    """As `prepare`, with Megatron-Core alone."""
    te_stand_in.install(Path(directory))
    from nemo_longpo.backends import cpu

    cpu.activate("megatron")
    torch.cuda.Stream = type("Stream", (), {})  # Megatron's wrapper makes one for Transformer Engine


def prepare_sources(sources: str, directory: str, flash: bool) -> None:
    """As `prepare_core`, with Transformer Engine's own Python; with `flash` over flash-attn 2, otherwise over cuDNN."""
    te_kernels.install(Path(sources), Path(directory), flash)
    from nemo_longpo.backends import cpu

    cpu.activate("megatron")
    torch.compiler.set_stance("force_eager")


def _core_config(comm_type: str, hierarchical: list[int] | None, cp_size: int):
    from megatron.core.transformer import TransformerConfig

    return TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * HEAD,
        num_attention_heads=HEADS,
        num_query_groups=KV_HEADS,
        kv_channels=HEAD,
        attention_dropout=0.0,
        softmax_scale=SCALE,
        context_parallel_size=cp_size,
        cp_comm_type=comm_type,
        hierarchical_context_parallel_sizes=hierarchical,
    )


def _config(comm_type: str, hierarchical: list[int] | None, cp_size: int, qk_norm: bool = False):
    from nemo.collections.llm import MistralConfig7B

    return MistralConfig7B(
        num_layers=1,
        hidden_size=HEADS * HEAD,
        ffn_hidden_size=32,
        num_attention_heads=HEADS,
        num_query_groups=KV_HEADS,
        kv_channels=HEAD,
        window_size=None,
        qk_layernorm=qk_norm,
        softmax_scale=SCALE,
        context_parallel_size=cp_size,
        cp_comm_type=comm_type,
        hierarchical_context_parallel_sizes=hierarchical,
    )


def _core_attention(spec: Any, config: Any) -> torch.nn.Module:
    """Built as Megatron's SelfAttention builds it."""
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.spec_utils import build_module

    return build_module(
        spec,
        config=config,
        layer_number=1,
        attn_mask_type=AttnMaskType.causal,
        attention_type="self",
        cp_comm_type=config.cp_comm_type,
        softmax_scale=config.softmax_scale,
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )


def _run(attention: torch.nn.Module, trees: list[int] | None, rank: int) -> list[torch.Tensor]:
    """Output and the gradients of query, key and value of some rows, float64."""
    from megatron.core.transformer.enums import AttnMaskType

    generator = torch.Generator().manual_seed(rank)
    heads = HEADS, KV_HEADS, KV_HEADS
    inputs = [torch.randn(LOCAL_ROWS, 1, n, HEAD, generator=generator, dtype=torch.float64) for n in heads]
    query, key, value = (tensor.requires_grad_() for tensor in inputs)
    described = None if trees is None else torch.tensor(trees)
    out = attention(query, key, value, described, attn_mask_type=AttnMaskType.causal)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def largest_differences(settings: list[tuple[str, list[int] | None]]) -> list[dict[str, float]]:
    """Per setting and pair, how far this rank's output and gradients are from those of the CPU backend."""
    from megatron.core import parallel_state

    with gloo_group() as group:
        parallel_state.initialize_model_parallel(context_parallel_size=group.size())
        found = [_differences(comm_type, sizes, group.size(), group.rank()) for comm_type, sizes in settings]
        parallel_state.destroy_model_parallel()
    return found


def _differences(comm_type: str, hierarchical: list[int] | None, cp_size: int, rank: int) -> dict[str, float]:
    from nemo_longpo.megatron.attention import CpuPairAttention
    from nemo_longpo.megatron.backend import Backend

    config = _core_config(comm_type, hierarchical, cp_size)
    spec = Backend().layer_spec(config).submodules.self_attention.submodules.core_attention
    ours, expected = _core_attention(spec, config), _core_attention(CpuPairAttention, config)
    assert cp_size == 1 or ours.cp_comm_type == comm_type
    assert [group.size() for group in ours.groups] == (hierarchical or ([cp_size] if cp_size > 1 else []))
    differences = {}
    for name, trees in _pairs(cp_size).items():
        found, wanted = (_run(attention, trees, rank) for attention in (ours, expected))
        differences[name] = max(float((one - other).abs().max()) for one, other in zip(found, wanted, strict=True))
    return differences


def finetune(transformer_engine: bool, **job: Any) -> dict[str, int]:
    """`nemo_jobs.finetune`, with Transformer Engine's layers and what a GPU fuses, or as on every CPU.

    Megatron's formula of the fused gate runs as it is written, not compiled. Returns how often each of Transformer
    Engine's functions was called, that formula, and ours for the rotary angles.
    """
    from megatron.core.transformer import mlp
    from support.jobs.nemo_jobs import finetune as run

    from nemo_longpo.megatron import gpt
    from nemo_longpo.megatron.backend import Backend, CpuBackend

    te_stand_in.calls.clear()
    counted = (mlp, "bias_swiglu_impl"), (gpt, "rotary_angles")
    with ExitStack() as patches, torch.compiler.set_stance("force_eager"):
        spies = [
            patches.enter_context(patch.object(owner, name, wraps=getattr(owner, name))) for owner, name in counted
        ]
        if transformer_engine:
            patches.enter_context(patch.object(CpuBackend, "layer_spec", Backend.layer_spec))
            patches.enter_context(patch.object(CpuBackend, "fuse", Backend.fuse))
        run(**job)
    noted = {name: len(calls) for name, calls in te_stand_in.calls.items()}
    return noted | {name: spy.call_count for (_, name), spy in zip(counted, spies, strict=True)}


def train_one_step(**job: Any) -> tuple[Any, int]:
    """`core_jobs.train_one_step` with Transformer Engine's layers; also how often its attention was called."""
    from support.jobs import core_jobs

    from nemo_longpo.megatron.backend import Backend, CpuBackend

    te_stand_in.calls.clear()
    with patch.object(CpuBackend, "layer_spec", Backend.layer_spec):
        found = core_jobs.train_one_step(**job)
    return found, len(te_stand_in.calls["DotProductAttention.forward"])


def train_one_step_on_sources(**job: Any) -> tuple[Any, list[str]]:
    """`core_jobs.train_one_step` with Transformer Engine's layers and rotary embedding; also the kernels called."""
    from support.jobs import core_jobs

    from nemo_longpo.megatron.backend import Backend, CpuBackend

    te_kernels.called.clear()
    with patch.object(CpuBackend, "layer_spec", Backend.layer_spec), patch.object(CpuBackend, "fuse", Backend.fuse):
        found = core_jobs.train_one_step(**job)
    return found, list(te_kernels.called)


def refusals() -> list[str]:
    """In a worker without Transformer Engine: why a GPU could not train there; why not with TE's own whole layers."""
    from nemo_longpo.errors import InputError
    from nemo_longpo.megatron import backend

    whole = _config("p2p", None, 1)
    whole.use_transformer_engine_full_layer_spec = True
    messages = []
    for present, config in ((False, _config("p2p", None, 1)), (True, whole)):
        with patch.object(backend, "HAVE_TE", present):
            try:
                backend.Backend().layer_spec(config)
            except InputError as error:
                messages.append(str(error))
    return messages


def only_core_attention_differs() -> None:
    """Our layer is NeMo's, field by field, but for the core attention; and NeMo's is not changed by making ours.

    Norms of queries and keys are Transformer Engine's.
    """
    from megatron.core.extensions.transformer_engine import TENorm
    from nemo.collections.llm.gpt.model.base import default_layer_spec

    from nemo_longpo.megatron.backend import Backend
    from nemo_longpo.megatron.te_attention import TEPairAttention

    for qk_norm in (False, True):
        config = _config("p2p", None, 1, qk_norm)
        ours, theirs = Backend().layer_spec(config), default_layer_spec(config)
        attention, found = (layer.submodules.self_attention.submodules for layer in (theirs, ours))
        assert attention.core_attention is TEPairAttention.__base__
        assert found.core_attention.module is TEPairAttention
        assert (found.q_layernorm is TENorm, found.k_layernorm is TENorm) == (qk_norm, qk_norm)
        attention.core_attention = found.core_attention
        assert ours == theirs


def hierarchical_groups(sizes: list[int]) -> list[list[int]]:
    """Ranks of this rank's group at each level."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from nemo_longpo.megatron.topology import hierarchical_cp_groups

    with gloo_group():
        parallel_state.initialize_model_parallel(context_parallel_size=sizes[0] * sizes[1])
        groups = [dist.get_process_group_ranks(group) for group in hierarchical_cp_groups(sizes)]
        parallel_state.destroy_model_parallel()
    return groups
