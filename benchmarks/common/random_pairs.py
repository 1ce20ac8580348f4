"""Models, pairs and shards of any size, from random numbers: what they cost does not depend on what they say."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    set_seed,
)

from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.shards.schema import PairRecord

BEGIN, END = "<s>", "</s>"


def word(token: int) -> str:
    return f"w{token}"


def tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """One token per word `w0`, `w1`, …; so a text of such words says exactly which ids a trainer will see."""
    words = {BEGIN: 0, END: 1} | {word(token): token for token in range(2, vocab)}
    backend = Tokenizer(models.WordLevel(words, unk_token=BEGIN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=BEGIN,
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
        clean_up_tokenization_spaces=False,
        model_max_length=1 << 30,
    )


def save_model(directory: Path, shape: ModelShape, seed: int = 0) -> Path:
    """A Mistral in fp32 with random weights, as a Hugging Face directory."""
    set_seed(seed)
    config = MistralConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=1 << 20,
        rope_theta=1e7,
        sliding_window=None,
        bos_token_id=0,
        eos_token_id=1,
    )
    MistralForCausalLM(config).save_pretrained(directory)
    tokenizer(shape.vocab).save_pretrained(directory)
    return directory


def tensor_shapes(config: PretrainedConfig) -> dict[str, torch.Size]:
    """Of a model's parameters, tied ones once; allocates nothing."""
    with torch.device("meta"):
        return {name: value.shape for name, value in AutoModelForCausalLM.from_config(config).named_parameters()}


def stream_model(directory: Path, config: PretrainedConfig, tokens: int, file_bytes: int, seed: int = 0) -> Path:
    """A model of any size in bf16 with random weights, in safetensors files of about `file_bytes`, one in memory."""
    shapes = tensor_shapes(config)
    files: list[dict[str, torch.Size]] = [{}]
    for name, shape in shapes.items():
        if 2 * sum(held.numel() for held in files[-1].values()) >= file_bytes:
            files.append({})
        files[-1][name] = shape
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    weight_map = {}
    for number, content in enumerate(files, 1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        weight_map |= dict.fromkeys(content, file)
        tensors = {
            name: torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for name, shape in content.items()
        }
        save_file(tensors, directory / file, metadata={"format": "pt"})
    total = 2 * sum(shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    config.save_pretrained(directory)
    GenerationConfig.from_model_config(config).save_pretrained(directory)
    tokenizer(tokens).save_pretrained(directory)
    return directory


def random_pair(vocab: int, trunk: int, chosen: int, rejected: int, seed: int = 0) -> PairRecord:
    """A pair of one turn; lengths in tokens. The answers end with the end token; the reference says anything."""
    rng = np.random.default_rng(seed)

    def ids(count: int, last: list[int]) -> np.ndarray:
        return np.array([*rng.integers(2, vocab, count - len(last)), *last], np.int32)

    return PairRecord(
        doc_id=f"pair-{seed}",
        trunk_ids=np.array([0, *ids(trunk - 1, [])], np.int32),
        chosen_ids=ids(chosen, [1]),
        rejected_ids=ids(rejected, [1]),
        chosen_spans=np.array([[0, chosen]], np.int32),
        rejected_spans=np.array([[0, rejected]], np.int32),
        nll_ignore_spans=np.array([[0, 1]], np.int32),
        ref_chosen_logps=(-rng.random(chosen, np.float32),),
        ref_rejected_logps=(-rng.random(rejected, np.float32),),
        ref_context="short",
    )
