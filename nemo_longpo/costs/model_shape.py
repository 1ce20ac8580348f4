"""The numbers of an architecture that its cost depends on, and where to read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

from nemo_longpo.checkpoints.run_directory import find_checkpoint
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.config_fields import LARGEST, check_fields
from nemo_longpo.model_directory.defaults import with_defaults
from nemo_longpo.model_directory.downloads import cache_hint
from nemo_longpo.model_directory.json_files import read_model_json
from nemo_longpo.yaml_input import read_yaml_mapping


@dataclass(frozen=True)
class ModelShape:
    """A decoder with RMSNorm, grouped-query attention and a gated feed-forward: Mistral, Qwen2.5 and their relatives.

    `ffn` is the width behind the gate, so a layer holds 3 · hidden · ffn feed-forward weights. `tied` shares the
    embedding table with the output layer; `bias` adds one to the query, key and value projections.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    tied: bool = False
    bias: bool = False

    @property
    def query_size(self) -> int:
        return self.heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Columns of the keys; the values have as many."""
        return self.kv_heads * self.head_size

    @property
    def layer_matrices(self) -> int:
        """Weights of one layer's matrices: 2 · hidden · (query + kv) for attention, 3 · hidden · ffn behind it."""
        return 2 * self.hidden * (self.query_size + self.kv_size) + 3 * self.hidden * self.ffn

    @property
    def layer_vectors(self) -> int:
        """Two norms, and the biases if there are any; every tensor-parallel rank holds the norms whole."""
        return 2 * self.hidden + (self.query_size + 2 * self.kv_size if self.bias else 0)

    @property
    def table(self) -> int:
        """Weights of the embedding, and of the output layer where it is not tied."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        tables = self.table if self.tied else 2 * self.table
        return self.layers * (self.layer_matrices + self.layer_vectors) + tables + self.hidden


MODELS = {
    "mistral-7b": ModelShape(32, 4096, 14336, 32, 8, 128, 32000),
    "qwen2.5-0.5b": ModelShape(24, 896, 4864, 14, 2, 64, 151936, tied=True, bias=True),
    "qwen2.5-1.5b": ModelShape(28, 1536, 8960, 12, 2, 128, 151936, tied=True, bias=True),
    "qwen2.5-3b": ModelShape(36, 2048, 11008, 16, 2, 128, 151936, tied=True, bias=True),
    "qwen2.5-7b": ModelShape(28, 3584, 18944, 28, 4, 128, 152064, bias=True),
    "qwen2.5-14b": ModelShape(48, 5120, 13824, 40, 8, 128, 152064, bias=True),
    "qwen2.5-32b": ModelShape(64, 5120, 27648, 40, 8, 128, 152064, bias=True),
    "qwen2.5-72b": ModelShape(80, 8192, 29568, 64, 8, 128, 152064, bias=True),
}

_HUGGING_FACE = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "vocab": "vocab_size",
}
_NEMO = {
    "layers": "num_layers",
    "hidden": "hidden_size",
    "ffn": "ffn_hidden_size",
    "heads": "num_attention_heads",
    "vocab": "vocab_size",
}


def load_shape(name_or_path: str) -> ModelShape:
    """A built-in name, a Hugging Face directory or its config.json, a NeMo checkpoint or a run's directory.

    Raises:
        InputError: nothing of the kind there, or a file without one of the numbers.
    """
    if name_or_path in MODELS:
        return MODELS[name_or_path]
    path = find_checkpoint(Path(name_or_path))
    nemo = path / "context" / "model.yaml"
    if nemo.is_file():
        return _from_nemo(nemo)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"{name_or_path} is neither a known model ({', '.join(MODELS)}) nor a Hugging Face directory with a "
            f"config.json nor a NeMo checkpoint with context/model.yaml{cache_hint(path)}."
        )
    config = read_model_json(file)
    check_fields(config, str(file))
    config = with_defaults(config)
    bias = bool(config.get("attention_bias", config.get("model_type") == "qwen2"))
    return _shape(config, _HUGGING_FACE, "num_key_value_heads", "head_dim", "tie_word_embeddings", bias, str(file))


def _from_nemo(file: Path) -> ModelShape:
    config = read_yaml_mapping(file, "give a NeMo checkpoint of a language model").get("config")
    if not isinstance(config, dict):
        raise InputError(f"{file} holds no model configuration; give a NeMo checkpoint of a language model.")
    tied, bias = "share_embeddings_and_output_weights", bool(config.get("add_qkv_bias"))
    return _shape(config, _NEMO, "num_query_groups", "kv_channels", tied, bias, str(file))


def _shape(
    config: Mapping[str, Any],
    names: Mapping[str, str],
    kv_heads: str,
    head_size: str,
    tied: str,
    bias: bool,
    where: str,
) -> ModelShape:
    sizes = {field: _whole(config, name, where) for field, name in names.items()}
    sizes["kv_heads"] = _whole(config, kv_heads, where) if config.get(kv_heads) is not None else sizes["heads"]
    if sizes["heads"] % sizes["kv_heads"]:
        raise InputError(f"{where}: {sizes['heads']} attention heads do not divide over {sizes['kv_heads']} {kv_heads}")
    sizes["head_size"] = (
        _whole(config, head_size, where) if config.get(head_size) is not None else sizes["hidden"] // sizes["heads"]
    )
    return ModelShape(**sizes, tied=bool(config.get(tied, False)), bias=bias)


def _whole(config: Mapping[str, Any], name: str, where: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise InputError(f"{where}: {name} is {short_repr(value)}, not a whole number from 1 to {LARGEST}.")
    return value
