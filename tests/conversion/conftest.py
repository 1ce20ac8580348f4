"""Random models of odd shapes, and their imports (made once: importing NeMo takes ten seconds)."""

from pathlib import Path

import pytest
import torch
from conversion_cases import CASES
from tiny import DEFAULT_STYLE, save_tiny, tiny_model, tiny_tokenizer

from nemo_longpo.conversion.importer import import_checkpoint


@pytest.fixture(scope="session")
def hf_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hugging Face directories by case: plain; head size ≠ hidden / heads with one kv head; tied with biases; bf16 in
    several files, untied, with more vocabulary rows than tokens; RoPE scaled; fp16, tied, odd head size."""
    root = tmp_path_factory.mktemp("hf")
    save_tiny(root / "mistral", "mistral")
    save_tiny(
        root / "mistral-odd", "mistral", head_dim=24, num_key_value_heads=1, num_hidden_layers=3, rope_theta=1e6, seed=1
    )
    save_tiny(root / "qwen2", "qwen2", seed=2)
    tokenizer = tiny_tokenizer(DEFAULT_STYLE["qwen2"])
    untied = tiny_model(
        "qwen2", tokenizer, seed=3, tie_word_embeddings=False, num_key_value_heads=1, vocab_size=len(tokenizer) + 37
    )
    untied.to(torch.bfloat16).save_pretrained(root / "qwen2-untied-bf16", max_shard_size="40KB")
    tokenizer.save_pretrained(root / "qwen2-untied-bf16")
    save_tiny(root / "llama", "llama", seed=4)
    tokenizer = tiny_tokenizer(DEFAULT_STYLE["llama"])
    tied = tiny_model("llama", tokenizer, seed=5, tie_word_embeddings=True, head_dim=24, rope_scaling=None)
    tied.half().save_pretrained(root / "llama-tied-fp16")
    tokenizer.save_pretrained(root / "llama-tied-fp16")
    return {case: root / case for case in CASES}


@pytest.fixture(scope="session")
def nemo_checkpoints(hf_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same models imported without any option."""
    root = tmp_path_factory.mktemp("nemo")
    return {case: import_checkpoint(path, root / case) for case, path in hf_models.items()}
