"""The rounds as a list of public commands: data, import, training, export, evaluation, with a gate before and after."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nemo_longpo import atomic
from nemo_longpo.checkpoints import run_directory
from nemo_longpo.data_tools.pipeline.config import parse_pipeline
from nemo_longpo.data_tools.settings import EngineSettings
from nemo_longpo.data_tools.stages.registry import STAGES
from nemo_longpo.errors import InputError
from nemo_longpo.steps import Step

from . import gate, places
from .evolution_settings import Evolution, Round

RESULTS = "results.json"


def evolution_steps(evolution: Evolution) -> list[Step]:
    """Return the steps of all rounds in order; each round starts from the exported model of the one before."""
    return [step for own in evolution.rounds for step in round_steps(evolution, own)]


def round_steps(evolution: Evolution, own: Round) -> list[Step]:
    """Return the steps of one round, NAME-NUMBER; a step records the settings that decide its output."""
    n, folder, limits = own.number, own.folder, evolution.gate
    start, training, evaluation = folder / "start", folder / "training", folder / "evaluation"
    pairs = partial(gate.check_pairs, folder / "data" / "filter" / "report.json", limits, f"data-{n}")
    short = partial(gate.check_short, evaluation / RESULTS, limits, f"evaluate-{n}")
    return [
        Step(
            name=f"data-{n}",
            title=f"make pairs of up to {own.length:,} tokens",
            function=partial(_write_data_file, folder, own),
            command=(
                places.program_here(evolution, own.train, "longpo"),
                "data",
                "run",
                str(folder / "data.yaml"),
            ),
            inputs=(own.start,),
            outputs=(folder / "data",),
            settings=_data_settings(own, evolution),
            env=dict(evolution.env),
        ),
        _gate_step(f"pairs-{n}", f"enough pairs are left: {limits.fewest_pairs:,} or more", pairs, folder / "data"),
        import_step(evolution, own, f"import-{n}", start),
        train_step(evolution, own, f"train-{n}", shards=folder / "data" / "shards", start=start, training=training),
        export_step(evolution, f"export-{n}", training, own.model, executor=own.train.executor),
        evaluate_step(
            evolution,
            own,
            f"evaluate-{n}",
            {"before": evolution.base, "after": own.model},
            evaluation,
        ),
        _gate_step(f"gate-{n}", "short accuracy has held", short, evaluation / RESULTS),
    ]


def import_step(evolution: Evolution, own: Round, name: str, start: Path) -> Step:
    """Return the step that makes the checkpoint `start` of the round's model, with its RoPE base and positions."""
    step = Step(
        name=name,
        title=f"convert the model to {own.train.command.trainer.title}",
        command=(places.program(evolution, own.train.executor, "train", "longpo"), *_import_words(own, start)),
        inputs=(own.start,),
        outputs=(start,),
        settings=_import_settings(own, evolution),
        env=dict(evolution.env),
    )
    return places.placed(evolution, own.train.executor, step)


def train_step(evolution: Evolution, own: Round, name: str, *, shards: Path, start: Path, training: Path) -> Step:
    """Return the step that trains on `shards` from the checkpoint `start`, with the round's settings."""
    train = own.train
    step = Step(
        name=name,
        title=f"train at {own.length:,} tokens",
        command=(
            *places.starting(evolution, train),
            *train.command.words(train.factory, train.settings, shards, own.max_length, start, training),
        ),
        inputs=(shards, start),
        outputs=(training,),
        settings={
            "factory": train.factory,
            **({} if train.trainer == "nemo" else {"trainer": train.trainer}),
            "seq_length": own.max_length,
            **train.command.learned(train.settings),
        },
        env=dict(evolution.env) | train.env,
        confirm=partial(_require_last_step, name, training, train.settings[train.command.steps]),
    )
    return places.placed(evolution, train.executor, step, parallel=True, restarts=train.restarts)


def _require_last_step(name: str, training: Path, steps: int) -> None:
    """Raises InputError if training has ended well before its last step, as after a signal or at a limit of time."""
    reached = run_directory.newest_step(training)
    if reached is not None and reached < steps:
        raise InputError(
            f"step {name!r}: training has ended and its newest checkpoint in {training} is of step {reached} of "
            f"{steps}; the same command goes on from there"
        )


def export_step(
    evolution: Evolution,
    name: str,
    training: Path,
    model: Path,
    *,
    every: bool = False,
    max_length: int | None = None,
    executor: str = places.HERE,
) -> Step:
    """Return the step that exports the newest checkpoint of a run to `model`, or every one into it.

    With `max_length` the model says that it has so many positions, not those that it was trained with.
    """
    words = ["convert", "export", "--checkpoint", str(training), "--output", str(model), "--overwrite"]
    words += (["--every"] if every else []) + ([] if max_length is None else ["--max-length", str(max_length)])
    step = Step(
        name=name,
        title=f"convert {'every checkpoint' if every else 'the trained model'} to Hugging Face",
        command=(places.program(evolution, executor, "train", "longpo"), *words),
        inputs=(training,),
        outputs=(model,),
        settings={} if max_length is None else {"max_length": max_length},
        env=dict(evolution.env),
    )
    return places.placed(evolution, executor, step)


def evaluate_step(evolution: Evolution, own: Round, name: str, models: Mapping[str, Path], evaluation: Path) -> Step:
    """Return the step that asks models, by their names for tables, what the round asks."""
    program = places.program(evolution, own.asked_on, "eval", "longpo")
    named = [f"{label}={path}" for label, path in models.items()]
    labels = list(models)
    step = Step(
        name=name,
        title=f"compare {labels[-1]} with {labels[0]}" if labels[1:] else f"measure {labels[0]}",
        command=(program, "eval", *named, *own.asked, "--output", str(evaluation)),
        inputs=tuple(models.values()),
        outputs=(evaluation / RESULTS,),
        settings=own.asked_settings,
        env=dict(evolution.env),
    )
    return places.placed(evolution, own.asked_on, step)


def _gate_step(name: str, title: str, decide: Callable[[], dict[str, Any]], source: Path) -> Step:
    """A gate decides anew each time, so another limit needs no --redo; what it says is recorded."""

    def decided() -> dict[str, Any]:
        try:
            return decide()
        except InputError:
            return {}  # the step is run in its turn, and says why

    return Step(name=name, title=title, function=decide, inputs=(source,), check=decided)


def _write_data_file(folder: Path, own: Round) -> None:
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    text: str = yaml.safe_dump(own.data, sort_keys=False, allow_unicode=True)
    atomic.write_file(folder / "data.yaml", text)


def _data_settings(own: Round, evolution: Evolution) -> dict[str, Any]:
    """Return what decides the data, as STAGE.SETTING: the settings that are given, without those of machines."""
    found: dict[str, Any] = {"base": str(evolution.base)} if own.number == 1 else {}
    found |= {name: own.data[name] for name in ("input", "prompts") if name in own.data}
    for stage in parse_pipeline(own.data, f"round {own.number}: data").stages:
        row, given = STAGES[stage.call.stage], stage.call.values
        if row.name == "instruct" and str(stage.call.model_given) != own.data["model"]:
            found["instruct.model"] = str(stage.call.model_given)
        kinds = [row.settings[0], *(kind for kind in row.settings if kind is EngineSettings)]
        recorded = {name: value for kind in kinds for name, value in stage.call.settings(kind).recorded().items()}
        found |= {f"{row.name}.{name}": value for name, value in recorded.items() if name in given}
    return found


def _import_words(own: Round, start: Path) -> list[str]:
    words = ["convert", "import", "--model", str(own.start), "--output", str(start), "--overwrite"]
    words += ["--max-length", str(own.max_length)]
    words += [] if own.train.trainer == "nemo" else ["--format", own.train.trainer]
    words += [] if own.rope_theta is None else ["--rope-theta", str(own.rope_theta)]
    words += [] if own.rope_scaling is None else ["--rope-scaling", own.rope_scaling]
    return [*words, *(["--full-attention"] if own.full_attention else [])]


def _import_settings(own: Round, evolution: Evolution) -> dict[str, Any]:
    base = {"base": str(evolution.base)} if own.number == 1 else {}
    names = ("rope_theta", "rope_scaling", "max_length", "full_attention")
    form = {} if own.train.trainer == "nemo" else {"format": own.train.trainer}
    return base | {name: getattr(own, name) for name in names} | form
