"""Compare an optimizer step with one of TRL's DPOTrainer: same model, same token ids, same machine, one run.

    make trl-env
    python -m benchmarks.engine.compare_trl --output benchmarks/results/compare_trl.json

TRL lives in its own environment. Both sides start from the same Hugging Face weights in fp32 and have the same
reference: another model, which sees the whole document. TRL keeps it in memory and asks it in every step, or asks it
for the whole data set before training (precomputed); ours finds its log-probs in the shard. What such a pass costs
beforehand is not counted, on neither side. TRL adds the NLL term that it offers, over the chosen answer; LongPO's
covers the document too, so ours is measured with both. With the same NLL both sides minimise the same function, which
is checked: loss, log-probs and rewards of the measured step agree within 1e-3. `trl_steps.py` says how TRL is set.

Every measurement is a fresh process that first takes a step on a short pair (the optimizer's state exists then), in
turn. Memory is the peak during the step above the process with all libraries loaded and no model. CPU seconds stand
beside the wall clock because other work on the machine does not count in them.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from support.training_pairs import write_shards
from transformers import AutoModelForCausalLM, PreTrainedModel

from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.objective import Objective
from nemo_longpo.shards.schema import PairRecord

from .. import RESULTS, ROOT
from ..common.processes import THREADS, measured_steps
from ..common.random_pairs import random_pair, save_model, tokenizer
from ..common.results import origin, parser, write_results

SHAPE = ModelShape(layers=4, hidden=256, ffn=704, heads=4, kv_heads=2, head_size=64, vocab=32_768)
OBJECTIVE = Objective()
LEARNING_RATE = 1e-12  # both sides' measured step starts from the same weights, but every part of a step runs
AGREEMENT = 1e-3
TILE_ROWS = 512  # whose logits are in memory at once: ours, and TRL's where it does not take its 4,096
AGREE = ("loss", "logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected", "rewards/margins")
NAMES = {
    "longpo": "LongPO, NLL of document and answer",
    "longpo_answer_nll": "LongPO's engine, TRL's loss",
    "trl": "TRL, reference in memory",
    "trl_precomputed": "TRL, reference precomputed",
    "trl_small_tiles": f"TRL, reference in memory, logits of {TILE_ROWS} rows at a time",
}


class Case(NamedTuple):
    """Tokens of a pair. TRL pads to the longer answer, and then attention gets a mask; equal answers need none."""

    trunk: int
    chosen: int
    rejected: int


CASES = [Case(2048, 512, 384), Case(8192, 512, 384), Case(8192, 448, 448)]


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--trl-python", default=str(ROOT / ".venv-trl" / "bin" / "python"), metavar="PATH")
    flags.add_argument(
        "--cases", nargs="+", default=[",".join(map(str, case)) for case in CASES], metavar="TRUNK,CHOSEN,REJECTED"
    )
    flags.add_argument("--no-recompute", action="store_true", help="keep all activations, on both sides")
    flags.add_argument("--output", type=Path, default=RESULTS / "compare_trl.json")
    arguments = flags.parse_args()
    cases = [Case(*map(int, text.split(","))) for text in arguments.cases]
    with tempfile.TemporaryDirectory(prefix="compare_trl_") as folder:
        bench = Bench(Path(folder), arguments.trl_python, recompute=not arguments.no_recompute)
        measured = [bench.measure(case) for case in cases]
    settings = {"shape": vars(SHAPE), "objective": vars(OBJECTIVE), "threads": THREADS, "recompute": bench.recompute}
    result = origin(("torch", "megatron-core", "nemo-toolkit")) | settings | {"measured": measured}
    write_results(arguments.output.stem, result, report(measured, bench), arguments.output.parent)


class Bench:
    """Models and reference, made once; `measure` takes one step of every kind on one pair."""

    def __init__(self, folder: Path, trl_python: str, recompute: bool):
        self.folder, self.trl_python, self.recompute = folder, trl_python, recompute
        self.policy = save_model(folder / "policy", SHAPE, seed=0)
        self.reference = save_model(folder / "reference", SHAPE, seed=1)
        self.checkpoint = import_checkpoint(self.policy, folder / "checkpoint")

    def measure(self, case: Case) -> dict[str, Any]:
        asked = AutoModelForCausalLM.from_pretrained(self.reference, dtype=torch.float32)
        pairs = [
            with_reference(asked, pair)
            for pair in (random_pair(SHAPE.vocab, 512, 64, 48), random_pair(SHAPE.vocab, *case, seed=1))
        ]
        del asked
        runs: dict[str, Callable[[], dict[str, Any]]] = {
            "longpo": lambda: self.longpo(pairs),
            "trl": lambda: self.trl(pairs),
            "longpo_answer_nll": lambda: self.longpo([with_answer_nll(pair) for pair in pairs]),
        }
        if case.chosen != case.rejected:
            runs["trl_precomputed"] = lambda: self.trl(pairs, precompute=True)
            runs["trl_small_tiles"] = lambda: self.trl(pairs, tile_rows=TILE_ROWS)
        steps = {name: run() for name, run in runs.items()}
        return case._asdict() | {
            "steps": steps,
            "difference": check_agreement(steps["longpo_answer_nll"], steps["trl"]),
        }

    def longpo(self, pairs: list[PairRecord]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            shards = write_shards(Path(folder) / "shards", pairs, tokenizer(SHAPE.vocab), SHAPE.vocab)
            overrides = {"optim.config.lr": LEARNING_RATE, "model.logprob_chunk_size": TILE_ROWS}
            if self.recompute:
                overrides["trainer.strategy.recompute_granularity"] = "full"
            job = {"checkpoint": str(self.checkpoint), "shards": str(shards), "steps": len(pairs)}
            return measured_steps(sys.executable, "longpo_steps", job | {"overrides": overrides})[-1]

    def trl(self, pairs: list[PairRecord], precompute: bool = False, tile_rows: int | None = None) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            texts = Path(folder) / "pairs.jsonl"
            texts.write_text("".join(json.dumps(as_text(pair)) + "\n" for pair in pairs))
            job = {
                "model": str(self.policy),
                "reference": str(self.reference),
                "pairs": str(texts),
                "beta": OBJECTIVE.beta,
                "weights": [OBJECTIVE.preference_weight, 1.0],
                "learning_rate": LEARNING_RATE,
                "recompute": self.recompute,
                "precompute": precompute,
                "tile_rows": tile_rows,
            }
            return measured_steps(self.trl_python, "trl_steps", job)[-1]


def as_text(pair: PairRecord) -> dict[str, str]:
    """The same ids for a trainer that wants text."""
    words = tokenizer(SHAPE.vocab).convert_ids_to_tokens
    prompt, chosen, rejected = (" ".join(words(ids)) for ids in (pair.trunk_ids, pair.chosen_ids, pair.rejected_ids))
    return {"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"}


def with_answer_nll(pair: PairRecord) -> PairRecord:
    """TRL's NLL: of the chosen answer only."""
    return replace(pair, nll_ignore_spans=np.array([[0, len(pair.trunk_ids)]], np.int32))


def with_reference(model: PreTrainedModel, pair: PairRecord) -> PairRecord:
    """The pair with the reference's log-probs behind the whole document, by plain Hugging Face."""

    @torch.no_grad()
    def score(branch: np.ndarray) -> np.ndarray:
        ids = torch.tensor(np.concatenate([pair.trunk_ids, branch])).long()
        hidden = model.model(ids[None]).last_hidden_state[0, len(pair.trunk_ids) - 1 : -1]
        logprobs = model.lm_head(hidden).log_softmax(-1).gather(-1, ids[len(pair.trunk_ids) :, None])
        return logprobs[:, 0].numpy()

    return replace(pair, ref_chosen_logps=(score(pair.chosen_ids),), ref_rejected_logps=(score(pair.rejected_ids),))


def check_agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest relative difference of what both sides call the same."""
    difference = max(abs(ours[name] - theirs[name]) / abs(theirs[name]) for name in AGREE)
    if difference > AGREEMENT:
        values = {name: (ours[name], theirs[name]) for name in AGREE}
        raise SystemExit(f"the two sides do not minimise the same function (ours, TRL's): {values}")
    return difference


def report(measured: list[dict[str, Any]], bench: Bench) -> list[str]:
    lines = [
        f"Mistral of {SHAPE.layers} layers, hidden {SHAPE.hidden}, {SHAPE.heads} heads, {SHAPE.kv_heads} kv heads, "
        f"vocabulary {SHAPE.vocab:,} ({SHAPE.parameters / 1e6:.0f}M parameters); fp32, one process, {THREADS} threads, "
        f"activation recompute {'on' if bench.recompute else 'off'} on both sides; ours forms the logits of "
        f"{TILE_ROWS} rows at a time. One optimizer step; each number is also given as a multiple of the first row's.",
    ]
    for case in measured:
        steps, ours = case["steps"], case["steps"]["longpo"]
        lines += [
            "",
            f"Document of {case['trunk']:,} tokens, answers of {case['chosen']} and {case['rejected']}; with the same "
            f"loss, what both sides report of it differs by {case['difference']:.0e} at most.",
            "",
            "| | seconds | × | CPU seconds | × | peak MB | × |",
            "|---|---|---|---|---|---|---|",
        ]
        for name in steps:
            numbers = " | ".join(
                f"{steps[name][what]:,.{digits}f} | {steps[name][what] / ours[what]:.2f}"
                for what, digits in (("seconds", 1), ("cpu_seconds", 1), ("peak_mb", 0))
            )
            lines.append(f"| {NAMES[name]} | {numbers} |")
    return lines


if __name__ == "__main__":
    main()
