"""Models that went through `longpo convert`, with what the transformers that training uses computes from them.

Each is imported and exported again, once or more, with what a long-context run asks for. Beside the models, RECORD says
per model: the RoPE settings it must be loaded with; in fp32 the greedy continuations of prompts, and the log-probs of
the longest one's last tokens, far beyond the source's own positions; what its tokenizer makes of a text and a
conversation.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from support.tiny_models import save_tiny
from transformers import AutoTokenizer

from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.data_tools.engines.hf_model import load_model

RECORD = "record.json"
TEXT = "The river  crosses é\n\n12 bright lamps!"
CHAT = [{"role": "user", "content": "What follows\nthe north gate?"}, {"role": "assistant", "content": "A small boat."}]
PROMPT_LENGTHS = (9, 300, 1500)
NEW_TOKENS = 12
SCORED = 100
"""Tokens at the end of the last prompt."""
MARGIN = 0.01
"""Between the best and the second-best logit of every step, far above the differences between engines in fp32."""

SOURCE_LENGTH, LENGTH = 512, 2048
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": SOURCE_LENGTH}
LLAMA3 = {
    **{"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128},
    **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
}


@dataclass(frozen=True)
class Case:
    """`imports` holds the options of each import in turn; `rope` is what must come of them, as transformers 5 says it.

    `five`: the source spells its configuration as transformers 5 does.
    """

    family: str
    imports: tuple[dict[str, Any], ...]
    rope: dict[str, Any]
    source: dict[str, Any] = field(default_factory=dict)
    five: bool = False


CASES = {
    "mistral-two-iterations": Case(
        "mistral",
        ({"rope_theta": 1e5, "max_length": 1024}, {"rope_theta": 1e6, "max_length": LENGTH}),
        {"rope_type": "default", "rope_theta": 1e6},
    ),
    "mistral-of-transformers-5": Case(
        "mistral",
        ({"rope_theta": 1e6, "max_length": LENGTH},),
        {"rope_type": "default", "rope_theta": 1e6},
        five=True,
    ),
    "qwen2-yarn": Case(
        "qwen2",
        ({"rope_theta": 1e5, "rope_scaling": YARN, "max_length": LENGTH},),
        YARN | {"rope_theta": 1e5},
    ),
    "llama-kept-scaling": Case(
        "llama",
        ({"rope_theta": 1e6, "rope_scaling": "keep", "max_length": LENGTH},),
        LLAMA3 | {"rope_theta": 1e6},
        {"rope_scaling": LLAMA3},
    ),
}


def prompts() -> list[list[int]]:
    return [
        [20 + (7 * index + 3 * place + place * place // 5) % 300 for place in range(length)]
        for index, length in enumerate(PROMPT_LENGTHS)
    ]


def make_exported_models(directory: Path, **shape: int) -> None:
    record = {}
    for name, case in CASES.items():
        for seed in range(50):
            source = _source(directory / "source", case, seed=seed, **shape)
            model = _through_conversion(source, case, directory / name)
            greedy, margin = _greedy(model)
            if margin > MARGIN:
                break
        else:
            raise RuntimeError(f"{name}: no seed gives greedy tokens that are far from a tie")
        scores, before = _scores(model), _scores(source)
        assert max(abs(new - old) for new, old in zip(scores, before, strict=True)) > 0.1, "nothing would show"
        record[name] = {"rope": case.rope, "length": LENGTH, "greedy": greedy, "scores": scores, **_tokenized(model)}
        shutil.rmtree(source)
    (directory / RECORD).write_text(
        json.dumps({"prompts": prompts(), "text": TEXT, "conversation": CHAT, "models": record})
    )


def _source(directory: Path, case: Case, *, seed: int, **shape: int) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    save_tiny(directory, case.family, seed=seed, max_position_embeddings=SOURCE_LENGTH, **case.source, **shape)
    if case.five:
        file = directory / "config.json"
        config = json.loads(file.read_text())
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
        config["dtype"] = config.pop("dtype", None) or config.pop("torch_dtype")
        file.write_text(json.dumps(config, indent=2) + "\n")
    return directory


def _through_conversion(source: Path, case: Case, target: Path) -> Path:
    for options in case.imports:
        nemo = import_checkpoint(source, target.with_name("nemo"), overwrite=True, **options)
        source = export_checkpoint(nemo, target.with_name("iteration"), overwrite=True)
        shutil.rmtree(nemo)
        shutil.rmtree(target, ignore_errors=True)
        source = source.rename(target)
    return source


def _greedy(directory: Path) -> tuple[list[list[int]], float]:
    """The continuation of every prompt, and the smallest difference between the two best logits on the way."""
    model = load_model(directory, "float32", None)
    continuations, margins = [], []
    for prompt in prompts():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        continuations.append(output.sequences[0, len(prompt) :].tolist())
        margins += [float(-torch.diff(logits[0].topk(2).values)) for logits in output.logits]
    return continuations, min(margins)


def _scores(directory: Path) -> list[float]:
    """log p of the last prompt's last tokens."""
    ids = torch.tensor(prompts()[-1:])
    with torch.no_grad():
        logps = load_model(directory, "float32", None)(ids).logits[:, :-1].log_softmax(-1)
    return logps.gather(-1, ids[:, 1:, None])[0, -SCORED:, 0].tolist()


def _tokenized(directory: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return {
        "text_ids": tokenizer(TEXT).input_ids,
        "chat": tokenizer.apply_chat_template(CHAT, tokenize=False),
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
    }
