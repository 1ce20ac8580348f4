"""The models that conversion is tested on, as arguments of `tiny.save_tiny`, and how their files are compared."""

import json
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "mistral": {"family": "mistral"},
    "mistral-odd": {
        "family": "mistral",
        "head_dim": 24,
        "num_key_value_heads": 1,
        "num_hidden_layers": 3,
        "rope_theta": 1e6,
        "seed": 1,
    },
    "qwen2": {"family": "qwen2", "seed": 2},
    "qwen2-untied-bf16": {
        "family": "qwen2",
        "tie_word_embeddings": False,
        "num_key_value_heads": 1,
        "vocab_size": 467,
        "dtype": "bfloat16",
        "max_shard_size": "40KB",
        "seed": 3,
    },
    "qwen3": {
        "family": "qwen3",
        "tie_word_embeddings": False,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "seed": 6,
    },
    "llama": {"family": "llama", "seed": 4},
    "llama-tied-fp16": {
        "family": "llama",
        "tie_word_embeddings": True,
        "head_dim": 24,
        "rope_scaling": None,
        "dtype": "float16",
        "seed": 5,
    },
}
"""Plain; head size ≠ hidden / heads with one kv head; tied with biases; bf16 in several files, untied, with more
vocabulary rows than tokens; untied with norms of queries and keys, head size and positions as NeMo's importer
takes for granted; RoPE scaled; fp16, tied, without scaling."""

SEVERAL = {"max_shard_size": "30KB"}
SHAPES: dict[str, dict[str, Any]] = {
    "mistral, tied, bf16": {"family": "mistral", "tie_word_embeddings": True, "dtype": "bfloat16"},
    "mistral, as many kv heads as heads, fp16": {"family": "mistral", "num_key_value_heads": 4, "dtype": "float16"},
    "mistral, heads of 10": {"family": "mistral", "head_dim": 10, "vocab_size": 1000} | SEVERAL,
    "mistral, one layer, one head": {
        "family": "mistral",
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    },
    "qwen2, one kv head": {"family": "qwen2", "num_key_value_heads": 1, "dtype": "bfloat16"} | SEVERAL,
    "qwen2, untied, 3 heads of 22": {
        "family": "qwen2",
        "tie_word_embeddings": False,
        "hidden_size": 66,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 22,
        "intermediate_size": 37,
        "dtype": "float16",
    },
    "qwen2, untied, wide heads": {"family": "qwen2", "tie_word_embeddings": False, "head_dim": 48} | SEVERAL,
    "qwen3, tied, one kv head, bf16": {"family": "qwen3", "num_key_value_heads": 1, "dtype": "bfloat16"} | SEVERAL,
    "llama, one kv head, bf16": {"family": "llama", "num_key_value_heads": 1, "dtype": "bfloat16"} | SEVERAL,
    "llama, tied, 11 layers": {"family": "llama", "tie_word_embeddings": True, "num_hidden_layers": 11} | SEVERAL,
}
"""More shapes, which only go there and back."""


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def read_config(model: Path) -> dict[str, Any]:
    return json.loads((model / "config.json").read_text(encoding="utf-8"))


def edit_config(model: Path, **fields: Any) -> None:
    """Set fields of `config.json`; those that are not there yet go last."""
    write_config(model, read_config(model) | fields)


def write_config(model: Path, config: dict[str, Any]) -> None:
    (model / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def config_changes(before: Path, after: Path) -> dict[str, tuple]:
    """Fields of `config.json` that differ: name → (before, after). The fields of both keep their order."""
    old, new = read_config(before), read_config(after)
    assert [name for name in new if name in old] == [name for name in old if name in new]
    return {name: (old.get(name), new.get(name)) for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
