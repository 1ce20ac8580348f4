"""`config.json` of a Hugging Face model, in the spelling of transformers 4 or 5: the one place that reads it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.typed_fields import Count, Names, Number, Size, Stated, build

from .downloads import ADVICE, cache_hint, read_model_json
from .nemo_names import NEMO_NAMES, as_huggingface
from .rope_settings import RopeScaling, RopeSettings, parse_scaling

DEFAULT_THETA = 10000.0
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "qwen3": {
        "num_key_value_heads": 32,
        "head_dim": 128,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "llama": {},
}
"""By `model_type`, what `transformers` takes for a field that the file does not name.

Only what is not null and changes what is computed.
"""


@dataclass(frozen=True, kw_only=True)
class ConfigFields:
    """The fields that are read, under their names in the file; None where the file does not name one.

    Which fields a model needs, and which values are supported, is decided by what asks.
    """

    model_type: Stated[str] = None
    vocab_size: Stated[Size] = None
    hidden_size: Stated[Size] = None
    intermediate_size: Stated[Size] = None
    num_hidden_layers: Stated[Size] = None
    num_attention_heads: Stated[Size] = None
    max_position_embeddings: Stated[Size] = None
    hidden_act: Stated[str] = None
    rms_norm_eps: Stated[Number] = None
    initializer_range: Stated[Number] = None
    rope_theta: Stated[Number] = None
    tie_word_embeddings: Stated[bool] = None
    architectures: Names | None = None
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    sliding_window: Size | None = None
    max_window_layers: Count | None = None
    use_sliding_window: bool | None = None
    layer_types: Names | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    quantization_config: dict[str, Any] | None = None
    dual_chunk_attention_config: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ConfigFields):
    """A parsed `config.json`, with the defaults of its `model_type`.

    `raw` is the object as the file has it, for writing it again; `file` names the file in errors; `names` are the names
    that it has for fields, if it is no `config.json`.
    """

    raw: Mapping[str, Any]
    file: str
    names: Mapping[str, str]

    @classmethod
    def parse(cls, raw: Mapping[str, Any], file: str | Path, names: Mapping[str, str] | None = None) -> "ModelConfig":
        """Raises InputError, naming file, field and value, if a field is not of its kind."""
        content = {**DEFAULTS.get(str(raw.get("model_type")), {}), **raw}
        typed = build(ConfigFields, content, str(file), ADVICE, exact=False, names=names)
        return cls(**vars(typed), raw=raw, file=str(file), names=names or {})

    @classmethod
    def read(cls, directory: str | Path) -> "ModelConfig":
        """Parse the `config.json` of a model directory. Raises InputError if there is none, or it is not readable."""
        file = Path(directory) / "config.json"
        if not os.path.lexists(file):
            raise InputError(
                f"{directory} is not a Hugging Face model directory: it holds no config.json{cache_hint(file.parent)}"
            )
        return cls.parse(read_model_json(file), file)

    @classmethod
    def from_nemo(cls, config: Mapping[str, Any], file: str | Path) -> "ModelConfig":
        """Convert NeMo's configuration to a `config.json`. Raises InputError, in NeMo's names, if a field is bad."""
        fields = {name: value for name, value in as_huggingface(config).items() if value is not None}
        return cls.parse(fields, file, NEMO_NAMES)

    def changed(self, changes: Mapping[str, Any]) -> "ModelConfig":
        """Another configuration with these fields; their order in the file stays."""
        return self.parse({**self.raw, **changes}, self.file, self.names)

    def require(self, *fields: str, advice: str = "give the directory of a decoder-only language model") -> list[int]:
        """The numbers of these fields. Raises InputError if the file does not name them all."""
        values = {name: getattr(self, name) for name in fields}
        if missing := [self.names.get(name, name) for name, value in values.items() if value is None]:
            raise InputError(f"{self.file} has no whole number for {', '.join(missing)}; {advice}")
        return list(values.values())

    @property
    def kv_heads(self) -> int | None:
        """Key-value heads: one for each head if the file says null, or says nothing and its class has no default."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int | None:
        if self.head_dim or not (self.hidden_size and self.num_attention_heads):
            return self.head_dim
        return self.hidden_size // self.num_attention_heads

    def require_head_size(self) -> int:
        """The size of a head. Raises InputError if the file does not say it."""
        if self.head_size is None:
            self.require("hidden_size", "num_attention_heads")
        assert self.head_size is not None
        return self.head_size

    @property
    def qkv_bias(self) -> bool:
        """True if the query, key and value projections have biases, as in every Qwen2."""
        return self.model_type == "qwen2" or bool(self.raw.get("attention_bias"))

    @property
    def qk_norm(self) -> bool:
        """True if each head's query and key pass an RMSNorm before they are rotated, as in every Qwen3."""
        return self.model_type == "qwen3" or bool(self.raw.get("use_qk_norm"))

    @property
    def stored_dtype(self) -> str:
        """transformers 5's `dtype` or 4's `torch_dtype`; float32 if the file names none, as in transformers 4."""
        return self.dtype or self.torch_dtype or "float32"

    @property
    def has_window_switch(self) -> bool:
        """True for Qwen2 and Qwen3, whose window is off by default and which has layers without one."""
        return "use_sliding_window" in DEFAULTS.get(str(self.model_type), {})

    @property
    def active_window(self) -> int | None:
        """The sliding window, if a layer has it and it hides anything within `max_position_embeddings`; else None."""
        window = self.sliding_window
        if window is None or (self.max_position_embeddings and window >= self.max_position_embeddings):
            return None
        if not self.has_window_switch:
            return window
        if not self.use_sliding_window:
            return None
        if self.layer_types is not None:
            return window if "sliding_attention" in self.layer_types else None
        # With null, transformers builds no layers at all; read as 0, an import asks what to do about the window.
        return window if (self.max_window_layers or 0) < (self.num_hidden_layers or 0) else None

    @property
    def rope_fields(self) -> Mapping[str, Any]:
        """The RoPE object as transformers 5 finds it: the scaling and, in its own spelling, the base."""
        return self.rope_scaling or self.rope_parameters or {}

    @property
    def rope_type(self) -> str:
        return str(self.rope_fields.get("rope_type") or self.rope_fields.get("type") or "default")

    @property
    def rope_is_read_by_4(self) -> bool:
        """True if transformers 4 finds the RoPE settings. If False, it silently uses base 10,000 and no scaling."""
        return "rope_theta" in self.raw or bool(self.rope_scaling) or not self.rope_parameters

    @property
    def theta(self) -> float:
        """The rotary base as transformers 5 reads it; `rope` refuses a file that 4 reads differently."""
        outer = DEFAULT_THETA if self.rope_theta is None else self.rope_theta
        theta: float = self.rope_fields.get("rope_theta", outer)
        return theta

    @cached_property
    def scaling(self) -> RopeScaling | None:
        """The RoPE scaling; None if the angles are plain. Raises InputError if it is not supported or not possible."""
        return parse_scaling(self.rope_fields, self.file, self.max_position_embeddings)

    @cached_property
    def rope(self) -> RopeSettings:
        """Base and scaling.

        Raises InputError if they are not supported, not possible, or not the same for every version of transformers
        that knows the file's spelling.
        """
        outer = DEFAULT_THETA if self.rope_theta is None else self.rope_theta
        scaling, of_4 = self.scaling, self.rope_scaling
        if self.rope_is_read_by_4 and (
            outer != self.theta or parse_scaling(of_4, self.file, self.max_position_embeddings) != scaling
        ):
            raise InputError(
                f"{self.file}: rope_theta and rope_scaling say one thing, rope_parameters or a rope_theta within the "
                "scaling another; remove what is wrong"
            )
        try:
            return RopeSettings(self.theta, scaling)
        except InputError as error:
            raise InputError(f"{self.file}: {error}") from None
