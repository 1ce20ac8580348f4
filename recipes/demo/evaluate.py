"""Measure whether a model finds one fact in a document of a given length. Plain transformers, greedy decoding."""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nemo_longpo.atomic import write_file

from .corpus import answer, make_document, question

LENGTHS = (64, 96, 128, 256, 512, 1024, 1536)
_TOKENS_PER_BATCH = 8192


def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: int, samples: int = 64, seed: int = 7
) -> float:
    """Return the share of `samples` documents of `tokens` tokens in which the model names the right place."""
    rng = random.Random(seed)
    conversations, expected = [], []
    for _ in range(samples):
        document = make_document(rng, tokens)
        name, place = rng.choice(list(document.facts.items()))
        conversations.append([{"role": "user", "content": f"{document.text} {question(name)}"}])
        expected.append(answer(name, place))
    size = max(1, _TOKENS_PER_BATCH // tokens)
    responses: list[str] = []
    for start in range(0, samples, size):
        responses += respond(model, tokenizer, conversations[start : start + size])
    return sum(given == right for given, right in zip(responses, expected, strict=True)) / samples


def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[list[dict[str, str]]],
    **sampling: float | bool,
) -> list[str]:
    """Return the model's next message in each conversation; greedy unless `sampling` holds `generate` settings."""
    inputs: Any = tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    generate: Any = model.generate
    with torch.no_grad():
        output = generate(**inputs, max_new_tokens=8, **({"do_sample": False} | sampling))
    return tokenizer.batch_decode(
        output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def load(directory: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model in fp32 and its tokenizer, read from a local directory."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(directory, local_files_only=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, metavar="HF_DIR")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, metavar="TOKENS")
    parser.add_argument("--samples", type=int, default=64, help="documents per length (default: 64)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON here instead of printing it")
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.model)
    bar = tqdm(arguments.lengths, unit="length")
    result = {n: accuracy(model, tokenizer, n, arguments.samples, arguments.seed) for n in bar}
    report = json.dumps({"model": arguments.model, "samples": arguments.samples, "accuracy": result})
    if arguments.output is None:
        print(report)
    else:
        write_file(arguments.output, report)


if __name__ == "__main__":
    main()
