"""`longpo demo --output DIR`: documents, one round of `longpo evolve` on a CPU, a summary and two plots."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_longpo import atomic, errors, json_input, setting_names, yaml_input
from nemo_longpo.checkpoints import run_directory
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.steps import Step, run_steps

from . import corpus, plots

if TYPE_CHECKING:
    from nemo_longpo.evolution.evolution_settings import Round

DEMO_DIR = Path(__file__).resolve().parent
BASE_MODEL = DEMO_DIR / "model"
PROMPTS = DEMO_DIR / "prompts.json"
BASE_LENGTH = 128  # up to here the base model answers every question
_OF_BEFORE = ("settings.json", "data", "nemo_start")  # what versions without rounds wrote


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Settings of the command line, laid over `round.yaml`; the defaults reach the goal of 90 % within minutes.

    `bridge` is the `bin` directory of an environment with Megatron-Bridge, which then trains instead of NeMo.
    """

    output: Path
    bridge: Path | None = None
    documents: int = 200
    tokens: int = 1024
    steps: int = 100
    learning_rate: float = 5e-4
    samples: int = 64
    seed: int = 0


def demo_round(settings: DemoSettings) -> tuple[list[Step], "Round"]:
    """Return all steps, the writing of the documents before those of the round, and the round.

    Raises InputError if a setting is wrong, NeMo is not installed here, or an older version wrote to the output.
    """
    from nemo_longpo.evolution import evolution_file, rounds

    output, tokens, seed = settings.output, settings.tokens, settings.seed
    if before := next((name for name in _OF_BEFORE if (output / name).exists()), None):
        raise errors.InputError(
            f"{output / before} is of a demo by an earlier version, which this one cannot continue; give another "
            "--output, or remove this one"
        )
    file = output / "documents.jsonl"
    content = yaml_input.read_yaml_mapping(DEMO_DIR / "round.yaml", "install nemo_longpo again")
    content |= {"base": str(BASE_MODEL), "output": str(output), "input": [str(file)], "prompts": str(PROMPTS)}
    (positions,) = ModelConfig.read(BASE_MODEL).require("max_position_embeddings")
    if tokens > positions:
        raise errors.InputError(
            f"--tokens {tokens:,} is more than the demo's model reaches: it is measured before training too, and has "
            f"{positions:,} positions; give at most so many"
        )
    content["rounds"][0]["length"] = tokens
    content["data"]["chunk"] |= {"min_document_tokens": tokens // 2, "seed": seed}
    content["data"]["instruct"]["seed"] = seed
    train = content["train"]
    train["settings"] |= {
        "trainer.max_steps": settings.steps,
        "optim.config.lr": settings.learning_rate,
        "data.seed": seed,
    }
    if settings.bridge is not None:
        content["environments"] = {"train": str(settings.bridge.absolute())}
        train |= {"trainer": "bridge", "processes": train["settings"].pop("trainer.devices")}
        train["settings"] = {setting_names.translate_name(name): value for name, value in train["settings"].items()}
    lengths = [*(length for length in content["evaluate"]["lengths"] if length < tokens), tokens]
    content["evaluate"] |= {
        "wording": str(DEMO_DIR / "ruler.json"),
        "lengths": lengths,
        "samples": settings.samples,
    }
    evolution = evolution_file.parse_evolution(content, "longpo demo")
    documents = Step(
        name="documents",
        title=f"write {settings.documents} documents of {tokens:,} tokens",
        function=lambda: corpus.write_corpus(file, settings.documents, tokens, seed),
        outputs=(file,),
        settings={"documents": settings.documents, "tokens": tokens, "seed": seed},
    )
    return [documents, *rounds.evolution_steps(evolution)], evolution.rounds[0]


def run_demo(settings: DemoSettings, redo: Collection[str] = ()) -> dict[str, Any]:
    """Run what is missing in `settings.output`, draw the plots, and return (and write) the summary.

    Keys of the summary: `settings`, `accuracy_before` and `accuracy_after` (tokens -> share), `seconds` (step ->
    seconds), `files` (name -> path).
    """
    output = settings.output
    steps, own = demo_round(settings)
    records = run_steps(steps, output, redo=redo)
    training, results = own.folder / "training", own.folder / "evaluation" / "results.json"
    before, after = (_accuracy(results, label) for label in ("before", "after"))
    plots.plot_accuracy(output / "accuracy.png", before, after, BASE_LENGTH)
    plots.plot_rewards(output / "rewards.png", run_directory.read_metrics(training))
    summary = {
        "settings": {name: value for name, value in asdict(settings).items() if name not in ("output", "bridge")},
        "accuracy_before": before,
        "accuracy_after": after,
        "seconds": {name: record.seconds for name, record in records.items()},
        "files": {
            "documents": str(output / "documents.jsonl"),
            "pairs": str(own.folder / "data" / "filter"),
            "shards": str(own.folder / "data" / "shards"),
            "metrics": str(run_directory.metrics_file(training)),
            "checkpoint": str(run_directory.find_checkpoint(training)),
            "model": str(own.model),
            "evaluation": str(results.with_suffix(".html")),
            "plots": [str(output / "accuracy.png"), str(output / "rewards.png")],
        },
    }
    atomic.write_file(output / "summary.json", json.dumps(summary, indent=1))
    return summary


def format_summary(summary: dict[str, Any]) -> str:
    """Return the summary as short tables for a terminal."""
    lines = ["", "share of questions answered right, by document length", f"{'tokens':>8} {'before':>8} {'after':>8}"]
    for tokens, before in summary["accuracy_before"].items():
        lines.append(f"{tokens:>8} {before:>8.0%} {summary['accuracy_after'][tokens]:>8.0%}")
    lines += ["", f"{'step':<10} {'seconds':>8}"]
    lines += [f"{step:<10} {seconds:>8.0f}" for step, seconds in summary["seconds"].items()]
    lines += [f"{'total':<10} {sum(summary['seconds'].values()):>8.0f}", "", "written"]
    for name, paths in summary["files"].items():
        lines += [f"  {name:<11} {path}" for path in ([paths] if isinstance(paths, str) else paths)]
    return "\n".join(lines)


def _accuracy(results: Path, label: str) -> dict[int, float]:
    """The share of right answers by length, from a `results.json` of `longpo eval`."""
    tasks = json_input.read_json_object(results, "give --redo evaluate-1")["tasks"]
    return {task["length"]: task["models"][label]["mean"] / 100 for task in tasks}
