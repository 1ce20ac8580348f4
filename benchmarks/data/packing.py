"""How fast is packing, compared with only tokenising the same text?

    python -m benchmarks.data.packing --documents 6 --tokens 131072 --rounds 5

Writes pairs over long generated documents, scores them behind short chunks (so that a model on a CPU can), and then
measures in turn, round after round:
- tokenising: every document and instruction, once, with the same tokenizer;
- packing: `longpo data pack`, from scored pairs to complete shards. The time of packing one tiny pair is taken off:
  loading the tokenizer and hashing the model do not depend on the documents.
CPU seconds of the process decide, because other work on the machine does not count in them; wall-clock seconds stand
beside them in the JSON. Writes packing.json and packing.md into benchmarks/results.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from nemo_longpo.data_tools.stages.registry import StageCall

from ..common.generated import Prose, save_model, tokenizer
from ..common.results import origin, parser, write_results

STYLES = ("qwen2.5", "mistral-v0.2")
WORK = ("tokenising", "packing")
TURNS = 4


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--documents", type=int, default=6)
    flags.add_argument("--tokens", type=int, default=131_072, help="of each document")
    flags.add_argument("--rounds", type=int, default=5)
    arguments = flags.parse_args()
    work = Path(tempfile.mkdtemp(prefix="packing_"))
    try:
        measured = {style: measure(work / style, style, arguments) for style in STYLES}
    finally:
        shutil.rmtree(work)
    lines = [
        f"{arguments.documents} documents of about {arguments.tokens:,} tokens, {TURNS} turns each, 32K-token BPE; "
        f"CPU time, medians of {arguments.rounds} rounds.",
        "",
        "| tokenizer | tokenising, tokens/s | packing, tokens/s | packing's share of that speed | lowest and highest |",
        "|---|---|---|---|---|",
    ]
    for style, found in measured.items():
        tokenising, packing = (found["tokens"] / median(found[f"{what}_cpu_seconds"]) for what in WORK)
        rounds = zip(*(found[f"{what}_cpu_seconds"] for what in WORK), strict=True)
        shares = sorted(plain / whole for plain, whole in rounds)
        spread = f"{shares[0]:.1%}, {shares[-1]:.1%}"
        lines.append(f"| {style} | {tokenising:,.0f} | {packing:,.0f} | {median(shares):.1%} | {spread} |")
    write_results("packing", origin() | {"measured": measured}, lines)


def run_stage(name: str, source: Path, output: Path, model: Path) -> None:
    StageCall(stage=name, inputs=(str(source),), output=output, model_given=model)()


def measure(work: Path, style: str, arguments: argparse.Namespace) -> dict[str, Any]:
    model = save_model(work / "model", style)
    made = tokenizer(style)
    pairs = write_pairs(work / "pairs.jsonl", made, arguments)
    tiny = [pair | {"document": pair["document"][:200]} for pair in pairs[:1]]
    (work / "tiny.jsonl").write_text(json.dumps(tiny[0]) + "\n")
    for name in ("pairs", "tiny"):
        run_stage("score", work / f"{name}.jsonl", work / f"{name}-scored", model)
    texts = [text for pair in pairs for text in (pair["document"], *(turn["instruction"] for turn in pair["turns"]))]

    def tokenise() -> int:
        return sum(len(made(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts)

    def pack(name: str) -> None:
        run_stage("pack", work / f"{name}-scored", work / "shards", model)

    found: dict[str, Any] = {"documents": len(pairs), "tokens": tokenise()}
    clocks = [f"{what}_{clock}_seconds" for what in WORK for clock in ("cpu", "wall")]
    found |= {name: [] for name in clocks}
    for _ in range(arguments.rounds):
        plain = clocked(tokenise)
        whole = clocked(lambda: pack("pairs"))
        shutil.rmtree(work / "shards")
        fixed = clocked(lambda: pack("tiny"))
        shutil.rmtree(work / "shards")
        times = (*plain, *(long - short for long, short in zip(whole, fixed, strict=True)))
        for name, value in zip(clocks, times, strict=True):
            found[name].append(round(value, 4))
    return found


def write_pairs(path: Path, made: Any, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Answers of 500 tokens, as ids; chunks as short as the benchmark can afford."""
    prose = Prose()
    sample = prose.text(20_000, "sample")
    words = round(arguments.tokens * 20_000 / len(made(sample, add_special_tokens=False, verbose=False)["input_ids"]))
    pairs = []
    for index in range(arguments.documents):
        document = prose.text(words, index)
        turns = []
        for turn in range(TURNS):
            answers = {name: prose.text(400, (index, turn, name)) for name in ("chosen", "rejected")}
            ids = {f"{name}_token_ids": made(answers[name], add_special_tokens=False).input_ids for name in answers}
            turns.append({"chunk": document[:300], "instruction": prose.text(20, (index, turn))} | answers | ids)
        pairs.append({"doc_id": f"document-{index}", "document": document, "turns": turns})
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return pairs


def clocked(work: Callable[[], Any]) -> tuple[float, float]:
    """(CPU seconds of this process, wall-clock seconds)"""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


if __name__ == "__main__":
    main()
