"""Text, tokenizers and models of realistic size, generated on the spot."""

import json
import random
import tempfile
from pathlib import Path

from support.tiny_models import TEMPLATES
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from nemo_longpo.atomic import write_file

VOCABULARY = 32_768
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


class Prose:
    """Endless made-up prose: 60,000 words of syllables whose frequencies fall as those of natural words (Zipf)."""

    def __init__(self, seed: int = 0):
        draw = random.Random(seed)
        onsets = [*"bcdfghjklmnprstvwz", *("br", "cr", "dr", "fl", "gr", "pl", "pr", "sh", "sl", "st", "th", "tr")]
        codas = ["", "", "", "n", "r", "s", "l", "t", "nd", "st", "m"]
        syllables = [onset + vowel + coda for onset in onsets for vowel in "aeiou" for coda in codas]
        made = ["".join(draw.choices(syllables, k=draw.choice((1, 1, 2, 2, 2, 3, 3, 4)))) for _ in range(90_000)]
        self._words = list(dict.fromkeys(made))[:60_000]
        total, self._weights = 0.0, []
        for rank in range(1, len(self._words) + 1):
            total += 1 / rank
            self._weights.append(total)

    def text(self, words: int, seed: object) -> str:
        draw = random.Random(str(seed))
        paragraphs = []
        drawn = draw.choices(self._words, cum_weights=self._weights, k=words)
        place = 0
        while place < words:
            lines = []
            for _ in range(draw.randint(3, 7)):
                sentence = drawn[place : place + draw.randint(6, 22)]
                place += len(sentence)
                if sentence:
                    lines.append(" ".join(sentence).capitalize() + draw.choice(".....?!"))
            paragraphs.append(" ".join(lines))
        return "\n\n".join(paragraphs)


def tokenizer(style: str) -> PreTrainedTokenizerFast:
    """Byte-level ("qwen2.5") or SentencePiece-like BPE ("mistral-v0.2"); trained once, kept in the temp folder."""
    path = Path(tempfile.gettempdir()) / f"nemo_longpo_bench_{style}_{VOCABULARY}.json"
    if not path.is_file():
        backend = _byte_level() if style == "qwen2.5" else _sentencepiece_like()
        write_file(path, backend.to_str(pretty=True))
    special = {"bos_token": None, "eos_token": "<|im_end|>"} if style == "qwen2.5" else {"bos_token": "<s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(path)),
        **({"eos_token": "</s>", "unk_token": "<unk>"} | special),
        chat_template=TEMPLATES[style],
        clean_up_tokenization_spaces=False,
        model_max_length=1 << 30,
    )


def save_model(directory: Path, style: str) -> Path:
    """A model directory whose tokenizer is of realistic size and whose network is not."""
    made = tokenizer(style)
    config = MistralConfig(
        vocab_size=len(made),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32_768,
        sliding_window=None,
    )
    MistralForCausalLM(config).save_pretrained(directory)
    made.save_pretrained(directory)
    return directory


def _training_text() -> list[str]:
    prose = Prose()
    return [prose.text(20_000, seed) for seed in range(40)]


def _byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 3, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(_training_text(), trainer)
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return backend


def _sentencepiece_like() -> Tokenizer:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 259, show_progress=False, initial_alphabet=letters)
    trained.train_from_iterator(_training_text(), trainer)
    model = json.loads(trained.to_str())["model"]
    learned = sorted(model["vocab"], key=model["vocab"].get)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    merges = [tuple(pair) for pair in model["merges"]]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend
