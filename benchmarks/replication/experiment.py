"""The comparison as one plan: for every seed the data, every objective, and LongPO's further rounds."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_longpo import errors, steps, typed_fields, yaml_input
from nemo_longpo.data_tools.pipeline import config
from nemo_longpo.evolution import evolution_file, evolution_settings, rounds
from nemo_longpo.recipes.demo import corpus

OBJECTIVES = {
    "longpo": "LongPO",
    "longpo_no_nll": "LongPO without NLL",
    "sft_chosen": "SFT, chosen",
    "sft_rejected": "SFT, rejected",
    "dpo": "DPO",
    "sft_chosen_constraint": "SFT, chosen, with constraint",
}
"""What the paper compares, by `model.objective.loss_type`, and how tables call it."""

BASE, START, BEFORE = "base", "step-0", "before"
"""Names of models beside the checkpoints: the base, what training starts from, and the model of the round before."""
_ADVICE = "see benchmarks/replication/settings.yaml"
_LOSS_TYPE, _EVERY = "model.objective.loss_type", "log.ckpt.every_n_train_steps"


@dataclasses.dataclass(frozen=True)
class Documents:
    """The documents of a round: `count` of them, from `shortest` tokens (by default all alike) to its length.

    With `logarithmic` as many have 100 to 200 tokens as 1,000 to 2,000. Each fact is stated `mentions` times, on
    average.
    """

    count: typed_fields.Size
    shortest: typed_fields.Size | None = None
    logarithmic: bool = False
    mentions: typed_fields.Number = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The content of `settings.yaml`, `documents` for each round; lengths are in tokens."""

    seeds: typed_fields.Size
    documents: tuple[Documents, ...]
    short_tokens: typed_fields.Size
    objectives: dict[str, dict[str, Any]]
    gpu: dict[str, Any]
    evolution: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where the programs of `longpo` and `nemo` are (a `bin` directory, by default this environment's), and on what."""

    output: Path
    programs: Path | None = None
    cuda: bool = False

    def seed(self, seed: int) -> Path:
        return self.output / f"seed-{seed}"

    def evaluation(self, seed: int, name: str) -> Path:
        """The folder of what `longpo eval` says of the base model, of an objective, or of a further round."""
        return self.seed(seed) / "evaluations" / name


def load_settings(path: Path) -> Settings:
    """Read the settings. Raises InputError if a key is unknown, missing or of another kind, or an objective unknown."""
    content = yaml_input.read_yaml_mapping(path, _ADVICE)
    _refuse_unknown(Settings, content, f"{path}:")
    documents = content.get("documents")
    for number, told in enumerate(documents if isinstance(documents, list) else (), 1):
        _refuse_unknown(Documents, told, f"{path}: documents of round {number}:")
    settings = typed_fields.build(Settings, content, str(path), _ADVICE, exact=False)
    if unknown := sorted(set(settings.objectives) - set(OBJECTIVES)):
        raise errors.InputError(
            f"{path}: objectives.{unknown[0]} is none of those compared here; choose from {', '.join(OBJECTIVES)}"
        )
    if "longpo" not in settings.objectives:
        raise errors.InputError(f"{path}: objectives lack longpo, which further rounds continue; add it")
    _check_evolution(settings, path)
    return settings


def _check_evolution(settings: Settings, path: Path) -> None:
    """Raises InputError if a part that every seed completes is missing or of another kind, or would be replaced."""
    told, where = settings.evolution, f"{path}: evolution"
    for name in ("base", "data", "train", "evaluate", "rounds"):
        if not told.get(name):
            raise errors.InputError(f"{where}.{name} is missing; {_ADVICE}")
    for name in ("output", "input"):
        if name in told:
            raise errors.InputError(f"{where}.{name} is another one for each seed; remove it")
    known = {item.name for item in dataclasses.fields(evolution_settings.FileFields)}
    content = {name: value for name, value in told.items() if name in known} | {"output": ""}
    file = typed_fields.build(evolution_settings.FileFields, content, where, _ADVICE, exact=False)
    parts = {f"data.{stage}": file.data.get(stage) or {} for stage in ("chunk", "instruct")}
    for name, value in (parts | {"train.settings": file.train.get("settings")}).items():
        if not isinstance(value, dict):
            raise errors.InputError(f"{where}.{name} should be a mapping of settings, not {value!r:.40}; {_ADVICE}")
    every = file.train["settings"].get(_EVERY)
    if every is not None and not typed_fields.is_whole(every):
        raise errors.InputError(f"{where}.train.settings: {_EVERY} should be a whole number from 1, not {every!r:.40}")
    if len(settings.documents) != len(file.rounds):
        raise errors.InputError(
            f"{path}: there are documents for {len(settings.documents)} rounds, and {len(file.rounds)} rounds; say "
            "which documents each has"
        )


def _refuse_unknown(kind: type, content: Any, where: str) -> None:
    if isinstance(content, dict):
        config.refuse_unknown(content, [item.name for item in dataclasses.fields(kind)], where)


def seed_evolution(
    settings: Settings, seed: int, place: Place, objective: str = "longpo"
) -> evolution_settings.Evolution:
    """Return the rounds with one seed, for documents, chunks, questions and the order of training.

    Raises InputError if `longpo evolve` would refuse them.
    """
    content = copy.deepcopy(settings.evolution)
    folder = place.seed(seed)
    content["output"] = str(folder)
    for stage in ("chunk", "instruct"):
        content["data"][stage] = {"seed": seed} | (content["data"].get(stage) or {})
    content["evaluate"] = {"seed": seed} | content["evaluate"]
    on_gpu = settings.gpu if place.cuda else {}
    own = {_LOSS_TYPE: objective, "data.seed": seed} | settings.objectives[objective]
    content["train"]["settings"] = content["train"]["settings"] | on_gpu | own
    content["env"] = content.get("env", {}) | ({} if place.cuda else {"CUDA_VISIBLE_DEVICES": ""})
    if place.programs is not None:
        content["environments"] = dict.fromkeys(("data", "train", "eval"), str(place.programs))
    for own_round in content["rounds"]:
        own_round["input"] = [str(folder / f"documents-{own_round.get('length')}.jsonl")]
    return evolution_file.parse_evolution(content, f"evolution of seed {seed}")


def replication_steps(settings: Settings, seeds: Sequence[int], place: Place) -> list[steps.Step]:
    """Return all steps, seed by seed: what is first in the plan is first whole when time runs out."""
    return [step for seed in seeds for step in _seed_steps(settings, seed, place)]


def _seed_steps(settings: Settings, seed: int, place: Place) -> list[steps.Step]:
    """The rounds of LongPO come first: they are the longest chain of steps that wait for each other."""
    evolution = seed_evolution(settings, seed, place)
    _check_measured(settings, evolution)
    found = [_documents(own, told, seed) for own, told in zip(evolution.rounds, settings.documents, strict=True)]
    by_name = {step.name: step for step in rounds.evolution_steps(evolution)}
    found += [by_name["data-1"], by_name["import-1"]]
    found += _objective(settings, evolution, place, seed, "longpo")
    for own in evolution.rounds[1:]:
        found += [by_name[f"{name}-{own.number}"] for name in ("data", "import", "train", "export")]
        found += _measured_round(evolution, own, place, seed)
    found += _long_references(evolution) if "dpo" in settings.objectives else []
    for name in settings.objectives:
        found += _objective(settings, evolution, place, seed, name) if name != "longpo" else []
    found.append(_base(evolution, place, seed))
    return [dataclasses.replace(step, name=f"seed-{seed}-{step.name}") for step in found]


def _check_measured(settings: Settings, evolution: evolution_settings.Evolution) -> None:
    """Raises InputError if documents have no length of their round, or a round is measured on one side alone."""
    for own, told in zip(evolution.rounds, settings.documents, strict=True):
        if (told.shortest or 0) > own.length:
            raise errors.InputError(
                f"documents of round {own.number}: 'shortest' is {told.shortest:,}, and the round has a length of "
                f"{own.length:,}; make it shorter"
            )
        lengths = own.asked_settings["lengths"]
        if not lengths or not min(lengths) <= settings.short_tokens < max(lengths):
            raise errors.InputError(
                f"round {own.number}: evaluate: 'lengths' should have one up to the short_tokens, "
                f"{settings.short_tokens:,}, and one above, for short and long accuracy; add what is missing"
            )


def _documents(own: evolution_settings.Round, told: Documents, seed: int) -> steps.Step:
    path = Path(own.data["input"][0])
    chosen = {name: value for name, value in dataclasses.asdict(told).items() if name != "count"}

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        corpus.write_corpus(path, told.count, own.length, seed=1000 * own.number + seed, **chosen)

    return steps.Step(
        name=f"documents-{own.number}",
        title=f"write {told.count} documents of {own.length:,} tokens",
        function=write,
        outputs=(path,),
        settings={"documents": told.count, "length": own.length} | chosen,
    )


def _long_references(evolution: evolution_settings.Evolution) -> list[steps.Step]:
    """Score and pack the pairs of the first round again, with the whole document before every answer, for DPO."""
    own = evolution.rounds[0]
    source, found = own.folder / "data" / "filter", []
    for stage in config.parse_pipeline(own.data, "data").stages[-2:]:
        values = {**stage.call.values} | ({"ref_context": "long"} if stage.call.stage == "score" else {})
        target = own.folder / "data-long" / stage.call.output.name
        call = dataclasses.replace(stage.call, inputs=(str(source),), output=target, values=values)
        found.append(
            steps.Step(
                name=f"{call.stage}-long",
                title="the same pairs with the whole document before every answer, for DPO",
                command=(evolution.environments.program("train", "longpo"), *call.words()),
                inputs=(source,),
                outputs=(target,),
                env=dict(evolution.env),
            )
        )
        source = target
    return found


def _objective(
    settings: Settings, evolution: evolution_settings.Evolution, place: Place, seed: int, name: str
) -> list[steps.Step]:
    """Train with one objective from the start of the first round, and measure all its checkpoints."""
    own = evolution.rounds[0]
    train = seed_evolution(settings, seed, place, name).rounds[0].train
    own = dataclasses.replace(own, train=train)
    start, data = own.folder / "start", own.folder / ("data-long" if name == "dpo" else "data")
    folder = own.folder if name == "longpo" else place.seed(seed) / name
    shards, training, models = data / "shards", folder / "training", folder / "models"
    measured, further = _checkpoints(own, models), []
    if name == "longpo":  # the others start from the same weights
        begun = place.seed(seed) / "start"
        measured = {START: begun} | measured
        further = [
            rounds.export_step(evolution, "export-1", training, own.model),
            rounds.export_step(evolution, "export-start", start, begun),
        ]
    evaluate = _evaluate(evolution, own, f"evaluate-{name}", measured, models, place.evaluation(seed, name))
    return [
        rounds.train_step(evolution, own, f"train-{name}", shards=shards, start=start, training=training),
        *further,
        rounds.export_step(evolution, f"export-{name}", training, models, every=True),
        evaluate,
    ]


def _checkpoints(own: evolution_settings.Round, models: Path) -> dict[str, Path]:
    """Return where `longpo convert export --every` writes the checkpoints of a round's training, by name."""
    last = own.train.settings["trainer.max_steps"]
    every = own.train.settings.get(_EVERY, last)
    numbers = sorted({*range(every, last + 1, every), last})
    return {f"step-{number}": models / f"global_step={number}" for number in numbers}


def _evaluate(
    evolution: evolution_settings.Evolution,
    own: evolution_settings.Round,
    name: str,
    models: dict[str, Path],
    source: Path,
    evaluation: Path,
) -> steps.Step:
    """Return the step that measures `models`, of which those in the folder `source` need not be there yet."""
    step = rounds.evaluate_step(evolution, own, name, models, evaluation)
    inputs = (source, *(path for path in models.values() if source not in path.parents))
    return dataclasses.replace(step, inputs=inputs, settings={**step.settings, "models": list(models)})


def _measured_round(
    evolution: evolution_settings.Evolution, own: evolution_settings.Round, place: Place, seed: int
) -> list[steps.Step]:
    """Measure all checkpoints of a further round of LongPO, and the model before it, which has fewer positions."""
    n, models = own.number, own.folder / "models"
    before, begun = own.folder / BEFORE, own.folder / "start-model"
    trained = evolution.rounds[n - 2].folder / "training"
    compared = {BEFORE: before, START: begun} | _checkpoints(own, models)
    return [
        rounds.export_step(evolution, f"export-before-{n}", trained, before, max_length=own.max_length),
        rounds.export_step(evolution, f"export-start-{n}", own.folder / "start", begun),
        rounds.export_step(evolution, f"export-every-{n}", own.folder / "training", models, every=True),
        _evaluate(evolution, own, f"evaluate-{n}", compared, models, place.evaluation(seed, f"round-{n}")),
    ]


def _base(evolution: evolution_settings.Evolution, place: Place, seed: int) -> steps.Step:
    """Measure the base model at all lengths."""
    models, last = {BASE: evolution.base}, evolution.rounds[-1]
    return _evaluate(evolution, last, f"evaluate-{BASE}", models, evolution.base, place.evaluation(seed, BASE))
