"""Small tokenizers and models made on the spot, with the structure of the real ones: no network, no stored files.

`tiny_tokenizer(style)` trains a few hundred BPE tokens and carries the chat template of that model family;
`tiny_model(family, tokenizer)` is a random model of two layers; `save_tiny(directory)` writes both as one Hugging Face
model directory.
"""

import json
import string
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

# Styles whose template takes plain messages as they are; "qwen3" has to be told not to think.
STYLES = ("mistral-v0.1", "mistral-v0.2", "mistral-v0.3", "qwen2.5", "llama-3")
DEFAULT_STYLE = {"mistral": "mistral-v0.2", "qwen2": "qwen2.5", "qwen3": "qwen3", "llama": "llama-3"}

_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
_HEADER = "'<|start_header_id|>' + {} + '<|end_header_id|>\n\n'"
TEMPLATES = {
    "mistral-v0.1": "{{ bos_token }}{% for message in messages %}" + _ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token + ' ' }}{% endif %}"
    "{% endfor %}",
    "mistral-v0.2": "{{ bos_token }}{% for message in messages %}" + _ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ ' [INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}",
    "mistral-v0.3": "{{ bos_token }}{% for message in messages %}" + _ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% else %}{{ ' ' + message['content'] | trim + eos_token }}"
    "{% endif %}{% endfor %}",
    "qwen2.5": "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    # Thoughts stand in front of the last answer only; told not to think, the model is prompted behind an empty thought.
    "qwen3": "{% for message in messages %}{% set text = message['content'].split('</think>')[-1] %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' + text.lstrip('\n') }}"
    "{% else %}{{ text }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}",
    "llama-3": "{% for message in messages %}{% set content = " + _HEADER.format("message['role']") + " + "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ " + _HEADER.format("'assistant'") + " }}{% endif %}",
}
# (begin, end, other special tokens); the end token closes an assistant's turn.
_SPECIAL: dict[str, tuple[str | None, str, list[str]]] = {
    "mistral-v0.1": ("<s>", "</s>", []),
    "mistral-v0.2": ("<s>", "</s>", []),
    "mistral-v0.3": ("<s>", "</s>", ["[INST]", "[/INST]"]),
    "qwen2.5": (None, "<|im_end|>", ["<|endoftext|>", "<|im_start|>"]),
    "qwen3": (None, "<|im_end|>", ["<|endoftext|>", "<|im_start|>", "<think>", "</think>"]),
    "llama-3": (
        "<|begin_of_text|>",
        "<|eot_id|>",
        ["<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"],
    ),
}
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sentences() -> list[str]:
    """A few hundred plain sentences, to train tokenizers on and to fill test documents with."""
    subjects = ("The river", "A small boat", "My neighbour", "The old clock", "Every teacher", "One letter")
    verbs = ("crosses", "remembers", "follows", "describes", "answers", "carries")
    objects = ("the quiet village.", "a question about rain.", "12 bright lamps!", "the north gate?", "its own shadow.")
    return [" ".join(words) for words in product(subjects, verbs, objects)]


@cache
def tiny_tokenizer(style: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a few hundred tokens with the mechanics and the chat template of one of STYLES."""
    begin, end, others = _SPECIAL[style]
    special = [token for token in (begin, end, *others) if token]
    backend = _sentencepiece_like(style, special) if style.startswith("mistral") else _byte_level(style, special)
    if begin:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, backend.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=begin,
        eos_token=end,
        unk_token="<unk>" if style.startswith("mistral") else None,
        pad_token="<|endoftext|>" if style.startswith("qwen") else None,
        additional_special_tokens=others,
        chat_template=TEMPLATES[style],
        clean_up_tokenization_spaces=False,
        model_max_length=1 << 20,
    )


def _sentencepiece_like(style: str, special: list[str]) -> Tokenizer:
    """BPE over U+2581 words with byte fallback: a dummy prefix per segment (v0.1, v0.2) or per text (v0.3)."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    letters = trainers.BpeTrainer(vocab_size=240, show_progress=False, initial_alphabet=list(string.printable[:94]))
    trained.train_from_iterator(sentences(), letters)
    learned = _bpe_parts(trained)
    tokens = ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256)), *learned[0]]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    backend = Tokenizer(models.BPE(vocabulary, learned[1], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if style == "mistral-v0.3":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", *special])
    return backend


def _byte_level(style: str, special: list[str]) -> Tokenizer:
    """Byte-level BPE behind a splitting pattern, special tokens last, as Qwen2.5 and Llama-3 have it."""
    backend = Tokenizer(models.BPE())
    if style.startswith("qwen"):
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator([*sentences(), "\n\n \n\n \n\n"], trainer)
    backend.add_special_tokens(special)
    return backend


def _bpe_parts(trained: Tokenizer) -> tuple[list[str], list[tuple[str, str]]]:
    model = json.loads(trained.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [(left, right) for left, right in model["merges"]]


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Configuration, model, and what the families differ in.
_MODELS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "mistral": (MistralConfig, MistralForCausalLM, {"tie_word_embeddings": False, "sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True, "sliding_window": None}),
    "qwen3": (
        Qwen3Config,
        Qwen3ForCausalLM,
        {"tie_word_embeddings": True, "sliding_window": None, "head_dim": 24},
    ),
    "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": False, "rope_scaling": _LLAMA3}),
}


def tiny_model(family: str, tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random fp32 model: 2 layers, hidden 64, 4 heads, 2 kv heads.

    `mistral` is untied; `qwen2` tied, with biases; `qwen3` tied, with norms of queries and keys in
    heads that are wider than hidden / heads; `llama` untied, with the RoPE scaling of Llama 3.1 on 64 positions.

    The vocabulary is odd, so that it does not divide by 2. Norm weights and biases are random too, so that a test
    notices when one is lost. `overrides` go to the configuration.
    """
    import torch

    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer) + 1 - len(tokenizer) % 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "initializer_range": 0.1,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config_class, model_class, own = _MODELS[family]
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model: PreTrainedModel = model_class(config_class(**(settings | own | overrides)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save_tiny(
    directory: str | Path,
    family: str = "mistral",
    style: str | None = None,
    *,
    seed: int = 0,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    **overrides: Any,
) -> Path:
    """Write a Hugging Face model directory (safetensors, tokenizer, chat template) and return its path."""
    import torch

    tokenizer = tiny_tokenizer(style or DEFAULT_STYLE[family])
    model = tiny_model(family, tokenizer, seed=seed, **overrides).to(getattr(torch, dtype))
    model.save_pretrained(directory, safe_serialization=True, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(directory)
    return Path(directory)
