"""Which tensor is which: one name table per model family, read in both directions.

A new family is one `Family` here and one test. Keys are those of NeMo's distributed checkpoints. Transformer-Engine
modules fuse the layer norms into the projections and so write these names directly; the local modules map theirs to the
same names (`sharded_state_dict_keys_map` in Megatron-Core's layer specs), so one checkpoint serves both.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nemo_longpo.errors import InputError

from .layouts import Geometry, Layout

KEY_PREFIX = "module."
"""NeMo's LightningModule holds the Megatron model as `module`."""

EXTRA_STATE_OWNERS = (
    "decoder.layers.self_attention.core_attention",
    "decoder.layers.self_attention.linear_proj",
    "decoder.layers.self_attention.linear_qkv",
    "decoder.layers.mlp.linear_fc1",
    "decoder.layers.mlp.linear_fc2",
    "decoder.final_layernorm",
)
"""Modules that ask for an `_extra_state` object (FP8 scales) when a checkpoint is loaded; empty in a fresh one."""

IGNORED_SUFFIX = ".rotary_emb.inv_freq"
"""A buffer that old versions of `transformers` saved; it follows from the configuration."""

PER_LAYER = "model.layers.{layer}."


@dataclass(frozen=True)
class Entry:
    """One Megatron tensor and its Hugging Face parts.

    `parts` maps each Hugging Face name to its shape, spelt in field names of `Geometry` or in the products below.
    Names with `{layer}` repeat per layer; Megatron stacks those along a leading axis of size L.
    """

    key: str
    parts: Mapping[str, tuple[str, ...]]
    layout: Layout = Layout.SAME
    untied_only: bool = False

    @property
    def stacked(self) -> bool:
        return all("{layer}" in name for name in self.parts)

    @property
    def is_vocabulary(self) -> bool:
        return all(shape[0] == "vocabulary" for shape in self.parts.values())

    def names(self, layer: int | None) -> list[str]:
        return [name.format(layer=layer) for name in self.parts]

    def shapes(self, geometry: Geometry) -> list[tuple[int, ...]]:
        sizes = {
            "hidden": geometry.hidden,
            "feed_forward": geometry.feed_forward,
            "vocabulary": geometry.vocabulary,
            "query": geometry.heads * geometry.head_size,
            "key_value": geometry.groups * geometry.head_size,
        }
        return [tuple(sizes[axis] for axis in shape) for shape in self.parts.values()]

    def shape(self, geometry: Geometry) -> tuple[int, ...]:
        """Shape of the Megatron tensor of one layer."""
        shapes = self.shapes(geometry)
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def numel(self, part: int, geometry: Geometry) -> int:
        return math.prod(self.shapes(geometry)[part])


@dataclass(frozen=True)
class Family:
    """A model family: how Hugging Face and NeMo call it, and its name table."""

    model_type: str
    architecture: str
    nemo_model: str
    nemo_config: str
    entries: tuple[Entry, ...]

    def copies(self, geometry: Geometry) -> dict[str, str]:
        """Names that a file may hold besides the one they are tied to."""
        return {"lm_head.weight": "model.embed_tokens.weight"} if geometry.tied else {}

    def tensors(self, geometry: Geometry) -> Iterator[tuple[Entry, int | None]]:
        """Every Megatron tensor of a model, layer by layer (None: not part of a layer)."""
        used = [entry for entry in self.entries if not (entry.untied_only and geometry.tied)]
        yield from ((entry, None) for entry in used if not entry.stacked)
        for layer in range(geometry.layers):
            yield from ((entry, layer) for entry in used if entry.stacked)


def _decoder_entries(*, qkv_bias: bool) -> tuple[Entry, ...]:
    """The decoder shared by Mistral, Qwen2 and their relatives: RMSNorm, grouped-query attention, SwiGLU."""
    attention = PER_LAYER + "self_attn."
    mlp = PER_LAYER + "mlp."
    qkv_rows = {"q_proj": "query", "k_proj": "key_value", "v_proj": "key_value"}
    bias = Entry(
        "decoder.layers.self_attention.linear_qkv.bias",
        {f"{attention}{name}.bias": (rows,) for name, rows in qkv_rows.items()},
        Layout.QKV,
    )
    return (
        Entry("embedding.word_embeddings.weight", {"model.embed_tokens.weight": ("vocabulary", "hidden")}),
        Entry(
            "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
            {PER_LAYER + "input_layernorm.weight": ("hidden",)},
        ),
        Entry(
            "decoder.layers.self_attention.linear_qkv.weight",
            {f"{attention}{name}.weight": (rows, "hidden") for name, rows in qkv_rows.items()},
            Layout.QKV,
        ),
        *([bias] if qkv_bias else []),
        Entry("decoder.layers.self_attention.linear_proj.weight", {attention + "o_proj.weight": ("hidden", "query")}),
        Entry(
            "decoder.layers.mlp.linear_fc1.layer_norm_weight",
            {PER_LAYER + "post_attention_layernorm.weight": ("hidden",)},
        ),
        Entry(
            "decoder.layers.mlp.linear_fc1.weight",
            {f"{mlp}{name}.weight": ("feed_forward", "hidden") for name in ("gate_proj", "up_proj")},
            Layout.ROWS,
        ),
        Entry("decoder.layers.mlp.linear_fc2.weight", {mlp + "down_proj.weight": ("hidden", "feed_forward")}),
        Entry("decoder.final_layernorm.weight", {"model.norm.weight": ("hidden",)}),
        Entry("output_layer.weight", {"lm_head.weight": ("vocabulary", "hidden")}, untied_only=True),
    )


FAMILIES = (
    Family("mistral", "MistralForCausalLM", "MistralModel", "MistralConfig7B", _decoder_entries(qkv_bias=False)),
    Family("qwen2", "Qwen2ForCausalLM", "Qwen2Model", "Qwen2Config", _decoder_entries(qkv_bias=True)),
)


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """The family that a `config.json` belongs to; `where` names the file in the error."""
    architectures = config.get("architectures") or []
    for family in FAMILIES:
        if config.get("model_type") == family.model_type and family.architecture in architectures:
            return family
    supported = ", ".join(f"{family.architecture} ({family.model_type})" for family in FAMILIES)
    found = f"{', '.join(architectures) or 'no architecture'} ({config.get('model_type') or 'no model_type'})"
    raise InputError(f"{where} describes {found}; supported are {supported}")
