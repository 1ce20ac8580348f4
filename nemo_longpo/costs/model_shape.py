"""The sizes of a model: tensors, memory and FLOPs follow from them. Where to read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_longpo.checkpoints.forms import RUN_CONFIG
from nemo_longpo.checkpoints.run_directory import find_checkpoint
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory import downloads, model_config
from nemo_longpo.yaml_input import read_yaml_mapping


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder with RMSNorm, grouped-query attention and a gated feed-forward: Mistral, Qwen and their relatives.

    `ffn` is the width behind the gate, so a layer holds 3 · hidden · ffn feed-forward weights. `tied` shares the
    embedding table with the output layer; `bias` adds one to the query, key and value projections, `qk_norm` a norm
    to each head's query and to its key, the same for all heads.
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
    qk_norm: bool = False

    @classmethod
    def of(cls, config: model_config.ModelConfig) -> "ModelShape":
        """The sizes that a `config.json` describes. Raises InputError if one is missing or the heads do not divide."""
        layers, hidden, ffn, heads, vocab = config.require(
            "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"
        )
        kv_heads = config.kv_heads or heads
        if heads % kv_heads:
            raise InputError(f"{config.file}: {heads} attention heads do not divide over {kv_heads} key-value heads")
        return cls(
            layers=layers,
            hidden=hidden,
            ffn=ffn,
            heads=heads,
            kv_heads=kv_heads,
            head_size=config.head_size or hidden // heads,
            vocab=vocab,
            tied=bool(config.tie_word_embeddings),
            bias=config.qkv_bias,
            qk_norm=config.qk_norm,
        )

    @classmethod
    def from_nemo(cls, config: Mapping[str, Any], where: str | Path) -> "ModelShape":
        """The sizes of a NeMo model's configuration; `where` names it in errors. Raises InputError as `of` does."""
        return cls.of(model_config.ModelConfig.from_nemo(config, where))

    @property
    def query_size(self) -> int:
        """Columns of the queries."""
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
        """Norms, and the biases if there are any; every tensor-parallel rank holds the norms whole."""
        heads = 2 * self.head_size if self.qk_norm else 0
        return 2 * self.hidden + heads + (self.query_size + 2 * self.kv_size if self.bias else 0)

    @property
    def table(self) -> int:
        """Weights of the embedding, and of the output layer where it is not tied."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        tables = self.table if self.tied else 2 * self.table
        return self.layers * (self.layer_matrices + self.layer_vectors) + tables + self.hidden


# Layers, hidden and feed-forward size, heads, key-value heads, head size, rows of the vocabulary.
_PUBLISHED = {
    "mistral-7b": (32, 4096, 14336, 32, 8, 128, 32000),
    "qwen2.5-0.5b": (24, 896, 4864, 14, 2, 64, 151936),
    "qwen2.5-1.5b": (28, 1536, 8960, 12, 2, 128, 151936),
    "qwen2.5-3b": (36, 2048, 11008, 16, 2, 128, 151936),
    "qwen2.5-7b": (28, 3584, 18944, 28, 4, 128, 152064),
    "qwen2.5-14b": (48, 5120, 13824, 40, 8, 128, 152064),
    "qwen2.5-32b": (64, 5120, 27648, 40, 8, 128, 152064),
    "qwen2.5-72b": (80, 8192, 29568, 64, 8, 128, 152064),
    "qwen3-0.6b": (28, 1024, 3072, 16, 8, 128, 151936),
    "qwen3-1.7b": (28, 2048, 6144, 16, 8, 128, 151936),
    "qwen3-4b": (36, 2560, 9728, 32, 8, 128, 151936),
    "qwen3-8b": (36, 4096, 12288, 32, 8, 128, 151936),
    "qwen3-14b": (40, 5120, 17408, 40, 8, 128, 151936),
    "qwen3-32b": (64, 5120, 25600, 64, 8, 128, 151936),
}
_TIED = {"qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b"}
MODELS = {
    name: ModelShape(
        **dict(zip(("layers", "hidden", "ffn", "heads", "kv_heads", "head_size", "vocab"), sizes, strict=True)),
        tied=name in _TIED,
        bias=name.startswith("qwen2.5"),
        qk_norm=name.startswith("qwen3"),
    )
    for name, sizes in _PUBLISHED.items()
}


def load_shape(name_or_path: str) -> ModelShape:
    """The shape of a known name, a Hugging Face directory or its config.json, a checkpoint or a run's directory.

    Raises InputError if there is nothing of the kind, or a file lacks one of the numbers.
    """
    if name_or_path in MODELS:
        return MODELS[name_or_path]
    path = find_checkpoint(Path(name_or_path))
    for record, section in ((path / "context" / "model.yaml", "config"), (path / RUN_CONFIG, "model")):
        if record.is_file():
            config = read_yaml_mapping(record, "give a checkpoint of a language model").get(section)
            if not isinstance(config, dict):
                raise InputError(f"{record} holds no model configuration; give a checkpoint of a language model.")
            return ModelShape.from_nemo(config, record)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"{name_or_path} is neither a known model ({', '.join(MODELS)}) nor a Hugging Face directory with a "
            f"config.json nor a checkpoint with context/model.yaml or {RUN_CONFIG}{downloads.cache_hint(path)}."
        )
    return ModelShape.of(model_config.ModelConfig.parse(downloads.read_model_json(file), file))
