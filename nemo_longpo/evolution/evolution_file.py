"""Read the file of `longpo evolve`: a base model, what all rounds share, and what each round has of its own.

Everything that can be known before the first step is checked here, because a round takes hours.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

from nemo_longpo.costs import devices
from nemo_longpo.data_tools import options, settings
from nemo_longpo.data_tools.pipeline.config import parse_pipeline, refuse_passwords, refuse_unknown
from nemo_longpo.errors import InputError
from nemo_longpo.evaluation import sources, suites
from nemo_longpo.evaluation.eval_settings import JudgeSettings
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.typed_fields import Built, build, is_whole
from nemo_longpo.yaml_input import read_yaml_mapping

from . import evolution_settings as told, places, reach
from .training_command import COMMANDS

_ADVICE = "see examples/evolve.yaml"
_ALSO = {"nemo": " with NeMo", "torchrun": " with Megatron-Bridge"}


def load_evolution(path: Path) -> told.Evolution:
    """Read and check a file. Raises InputError as `parse_evolution` does, or if documents or prompts do not exist."""
    evolution = parse_evolution(read_yaml_mapping(path, f"give a YAML file; {_ADVICE}"), str(path))
    for own in evolution.rounds:
        for text in (*own.data["input"], *filter(None, [own.data.get("prompts")])):
            if not text.startswith("hf:") and not Path(text).exists():
                raise InputError(
                    f"{path}: round {own.number}: {text} does not exist; correct it in 'input' or 'prompts'"
                )
    return evolution


def parse_evolution(content: Mapping[Any, Any], path: str) -> told.Evolution:
    """Check the content of a file, which `path` names in errors; its documents need not exist yet.

    Relative paths in it are taken from the current directory, as on the command line. Raises InputError, naming file
    and key, if a key is unknown or a value wrong, an environment lacks a program, a length cannot be reached from the
    base model, or what the gate needs is not measured.
    """
    # Keys in x-… are free for YAML anchors.
    content = {key: value for key, value in content.items() if not str(key).startswith("x-")}
    _check_texts(content, path)
    file = _typed(told.FileFields, content, path)
    if not file.rounds:
        raise InputError(f"{path}: 'rounds' is empty; give at least one round with its length")
    _check_places(file, path)
    _check_variables(file.env, f"{path}: env")
    environments = _typed(told.Environments, file.environments, f"{path}: environments")
    hardware = None if file.hardware is None else _typed(told.Hardware, file.hardware, f"{path}: hardware")
    if hardware is not None:
        devices.find_gpu(hardware.gpu)
    shared = told.Evolution(
        base=Path(file.base).absolute(),
        output=Path(file.output).absolute(),
        environments=environments,
        executors=file.executors,
        env=file.env,
        hardware=hardware,
        gate=_typed(told.GateLimits, file.gate, f"{path}: gate"),
        rounds=(),
    )
    given = [_typed(told.RoundFields, own, f"{path}: round {number}") for number, own in enumerate(file.rounds, 1)]
    try:
        base = ModelConfig.read(shared.base)
    except InputError as error:
        raise InputError(f"{path}: base: {error}") from error
    reach.check_lengths(given, file, base, path)
    rounds: list[told.Round] = []
    for number, own in enumerate(given, 1):
        where, before = f"{path}: round {number}", rounds[-1] if rounds else None
        found = _round(number, own, before.model if before else shared.base, file, shared, where)
        reach.check_sizes(found, {**file.evaluate, **own.evaluate}, base, before, where)
        rounds.append(found)
    _check_environments(environments, rounds, file.executors, f"{path}: environments")
    return replace(shared, rounds=tuple(rounds))


def _round(
    number: int, own: told.RoundFields, start: Path, file: told.FileFields, shared: told.Evolution, where: str
) -> told.Round:
    """Return a round that starts from the model `start`, with all that it inherits."""
    paths, folder = [shared.base, shared.output], shared.output / f"round-{number}"
    data = _data(file, own, shared.environments, start, folder, where)
    train = _training(file, own, paths, f"{where}: train")
    asked, asked_settings, asked_on = _evaluation(file, own, shared.gate, paths, f"{where}: evaluate")
    return told.Round(
        number=number,
        length=own.length,
        max_length=own.length + file.branch_tokens,
        start=start,
        folder=folder,
        rope_theta=own.rope_theta,
        rope_scaling=own.rope_scaling,
        full_attention=file.full_attention and number == 1,
        data=data,
        train=train,
        asked=asked,
        asked_settings=asked_settings,
        asked_on=asked_on,
    )


def _contained(rounds: list[told.Round], executors: Mapping[str, Any]) -> list[str]:
    """Return the environments that lie in a container in some round."""
    used = {"train": [own.train.executor for own in rounds], "eval": [own.asked_on for own in rounds]}
    return [name for name, found in used.items() if any(places.in_container(place, executors) for place in found)]


def _typed(kind: type[Built], content: Mapping[str, Any], where: str) -> Built:
    """Return the fields of one mapping. Raises InputError if a key is unknown, or a value of another kind."""
    refuse_unknown(content, [item.name for item in fields(kind)], f"{where}:")  # type: ignore[arg-type]
    return build(kind, dict(content), where, _ADVICE, exact=False)


def _check_texts(value: Any, where: str) -> None:
    """Raises InputError if a text holds a zero byte, which no word of a command can."""
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"{where}: {short_repr(value)} holds a zero byte, which no path and no setting can; remove it")
    if isinstance(value, dict | list):
        for part in value:
            _check_texts(part, where)
            if isinstance(value, dict):
                _check_texts(value[part], f"{where}: {part}" if isinstance(part, str) else where)


def _check_places(file: told.FileFields, path: str) -> None:
    for name in ("base", "output"):
        if not getattr(file, name).strip():
            raise InputError(f"{path}: {name!r} is empty; give a directory")
    output = Path(file.output).absolute()
    above = next(place for place in (output, *output.parents) if place.exists())
    if not above.is_dir():
        raise InputError(f"{path}: output: {above} is a file; give a directory")


def _check_variables(variables: Mapping[str, str], where: str) -> None:
    for name in variables:
        if not isinstance(name, str) or not name or "=" in name:
            raise InputError(f"{where}: {short_repr(name)} is no name of a variable; put it in quotes if it is")


def _check_environments(
    environments: told.Environments, rounds: list[told.Round], executors: Mapping[str, Any], where: str
) -> None:
    """Raises InputError if a program is missing on this machine; those of a container are in its image."""
    contained = _contained(rounds, executors)
    training = [program for own in rounds for program in own.train.command.programs]
    needed = {"data": ["python", "longpo"], "train": list(dict.fromkeys(training)), "eval": ["longpo"]}
    for name, programs in needed.items():
        for program in programs if name not in contained else ():
            path = Path(environments.program(name, program))
            if not path.exists():
                raise InputError(
                    f"{where}: {path} does not exist; give as {name!r} the bin directory of an environment in which "
                    f"nemo_longpo is installed{_ALSO.get(program, '')}, or install it there"
                )


def _data(
    file: told.FileFields,
    given: told.RoundFields,
    environments: told.Environments,
    start: Path,
    folder: Path,
    where: str,
) -> dict[str, Any]:
    """Return the content of the round's file for `longpo data run`, with the lengths of the round where none is given.

    Raises InputError if a stage between the documents and the shards is missing, or a setting is wrong.
    """
    inputs = given.input or file.input
    if not inputs:
        raise InputError(f"{where}: it has no documents; give 'input', here or for all rounds")
    stages: dict[str, dict[str, Any]] = {}
    for name in {**file.data, **given.data}:
        stages[name] = {}
        for own in (file.data.get(name), given.data.get(name)):
            if not isinstance(own, dict | None):
                raise InputError(f"{where}: data.{name} must be a mapping of settings, not {short_repr(own)}")
            stages[name] |= own or {}
    for name in ("chunk", "instruct", "respond", "filter", "score", "pack"):
        if name not in stages:
            raise InputError(
                f"{where}: data.{name} is missing; name the stage, with nothing behind it if it has no "
                "settings of its own"
            )
    stages["chunk"].setdefault("max_document_tokens", given.length)
    if isinstance(writer := stages["instruct"].get("model"), str):
        ModelConfig.read(Path(writer))
        stages["instruct"]["model"] = str(Path(writer).absolute())
    if stages["respond"].get("engine") == "vllm":  # the rejected answer is that of a model that reads the document
        stages["respond"].setdefault("max_model_len", given.length + file.branch_tokens)
        if given.rope_theta is not None:
            stages["respond"].setdefault("rope_theta", given.rope_theta)
    if environments.data:
        for own in stages.values():
            own.setdefault("command", f"{environments.program('data', 'python')} -m nemo_longpo.cli")
    content: dict[str, Any] = {
        "input": [text if text.startswith("hf:") else str(Path(text).absolute()) for text in inputs],
        "model": str(start),
        "output": str(folder / "data"),
        **({"prompts": str(Path(file.prompts).absolute())} if file.prompts else {}),
        **({"executors": file.executors} if file.executors else {}),
        "stages": stages,
    }
    parse_pipeline(content, f"{where}: data")
    return content


def _training(file: told.FileFields, given: told.RoundFields, paths: list[Path], where: str) -> told.Training:
    shared, own = file.train, given.train
    merged: dict[Any, Any] = {}
    for overrides in (shared.get("settings", {}), own.get("settings", {})):
        if not isinstance(overrides, dict):
            raise InputError(f"{where}: 'settings' must be a mapping of settings, not {short_repr(overrides)}")
        merged |= overrides
    training = _typed(told.Training, {**shared, **own, "settings": merged}, where)
    _check_variables(training.env, f"{where}: env")
    for name, value in training.settings.items():
        if not isinstance(name, str) or not isinstance(value, str | int | float | list | None):
            raise InputError(
                f"{where}: settings.{name} must be a text, a number, true, false or a list under its whole name, such "
                f"as optim.config.lr, not {short_repr(value)}"
            )
    if training.trainer not in COMMANDS:
        raise InputError(f"{where}: trainer is {training.trainer!r}; choose one of {', '.join(COMMANDS)}")
    for name in training.command.own:
        if name in training.settings:
            raise InputError(f"{where}: {name} is set by the rounds themselves; remove it from 'settings'")
    name = training.command.steps
    if not is_whole(steps := training.settings.get(name)):
        found = f"settings lack {name}" if steps is None else f"{name} is {short_repr(steps)}, not"
        raise InputError(f"{where}: {found}{', ' if steps is None else ' '}a whole number of optimizer steps; give it")
    places.check_executor(training.executor, file.executors, paths, where)
    if training.launcher and training.executor != places.HERE:
        raise InputError(f"{where}: 'launcher' starts training on this machine; remove it, or 'executor'")
    placement = places.placement(training, file.executors, where)
    return replace(training, settings=training.settings | placement)


def _evaluation(
    file: told.FileFields, given: told.RoundFields, gate: told.GateLimits, paths: list[Path], where: str
) -> tuple[tuple[str, ...], dict[str, Any], str]:
    """Return the flags of `longpo eval`, the settings that decide what it measures, and the executor it runs on."""
    content = options.mappings_as_json({**file.evaluate, **given.evaluate})
    kinds = (*settings.ENGINE_SETTINGS, settings.TemplateKwargs, JudgeSettings)
    of_models = {item.name: kind for kind in kinds for item in fields(kind)}
    own_names = [item.name for item in fields(told.Evaluating)]
    refuse_unknown(content, [*own_names, *of_models], f"{where}:")
    plain = _typed(told.Evaluating, {name: value for name, value in content.items() if name in own_names}, where)
    plain = replace(
        plain,
        suite=[str(Path(name).absolute()) if name.endswith(".jsonl") else name for name in plain.suite],
        data=plain.data and str(Path(plain.data).absolute()),
        wording=plain.wording and str(Path(plain.wording).absolute()),
    )
    try:
        benchmarks = suites.choose(plain.suite)
        sources.require(benchmarks, Path(plain.data) if plain.data else None, suites.ESSAYS if plain.wording else ())
        recorded = {kind: options.settings_from(kind, content).recorded() for kind in kinds}
        refuse_passwords(options.settings_from(settings.ServerSettings, content).base_url)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    abilities = {row.ability for row in benchmarks}
    if "chat" in abilities and not (content.get("judge_url") and content.get("judge_model")):
        raise InputError(
            f"{where}: the suite has answers that a judge rates; give judge_url, the address of its "
            "server, and judge_model, its name there"
        )
    if gate.short_tokens is None and "short" not in abilities:
        raise InputError(
            f"{where}: the gate watches short accuracy, and the suite has no short benchmark; add 'short' "
            "to it, or give the gate short_tokens"
        )
    if gate.short_tokens is not None and not any(length <= gate.short_tokens for length in plain.lengths):
        raise InputError(
            f"{where}: the gate watches lengths up to {gate.short_tokens:,} tokens, and none of 'lengths' is; add one"
        )
    names = [*filter(None, [plain.wording]), *(name for name in plain.suite if name.endswith(".jsonl"))]
    questions = [Path(name) for name in names]
    for path in questions:
        if not path.is_file():
            raise InputError(f"{where}: {path} does not exist; correct it")
    read = [*paths, *questions, *([Path(plain.data)] if plain.data else [])]
    places.check_executor(plain.executor, file.executors, read, where)
    told_of = {name: value for name, value in vars(plain).items() if name != "executor"}
    asked = {name: value for name, value in told_of.items() if name != "suite" and value not in (None, ())}
    asked |= {name: content[name] for name in of_models if name in content}
    flags = ["--suite", ",".join(plain.suite)]
    flags += [word for name, value in asked.items() for word in options.setting_words(name, value)]
    measured = {name: value for name, value in told_of.items() if name != "data"}
    deciding = recorded[settings.EngineSettings] | recorded[JudgeSettings]
    measured |= {name: value for name, value in deciding.items() if name in content}
    measured |= {name: value for name, value in content.items() if name == "chat_template_kwargs"}
    return tuple(flags), measured, plain.executor
