"""Read the file of `longpo data run`: which stages, with which settings, on which machines."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.yaml_input import read_yaml_mapping

from ..engines.engine_options import EngineOptions
from ..options import Settings, mappings_as_json, setting, settings_from
from ..stages import registry

_TOP_KEYS = ("input", "model", "output", "prompts", "executors", "stages")
# Settings that the run itself gives to every process.
_NOT_IN_FILE = {"rank", "world_size", "rank_from_environment", "dry_run"}


@dataclass(frozen=True)
class LaunchSettings(Settings):
    """How the processes of a stage are started."""

    executor: str = setting("local", "a name among the file's executors")
    processes: int = setting(1, "how many share the stage", minimum=1)
    restarts: int = setting(3, "starts after the first one, while parts are missing", minimum=0)
    command: str = setting(f"{sys.executable} -m nemo_longpo.cli", "what runs the longpo tool")


@dataclass(frozen=True)
class StageProcesses:
    """A stage of the file: the call that its processes share, and how they are started.

    In the values of `env`, the variables of every process, "{rank}" stands for the process's number.
    """

    call: registry.StageCall
    launch: LaunchSettings
    env: Mapping[str, str]


@dataclass(frozen=True)
class Pipeline:
    """The content of a file. An executor is the name of a class of nemo_run ("type") and its arguments."""

    output: Path
    executors: Mapping[str, Mapping[str, Any]]
    stages: tuple[StageProcesses, ...]


def load_pipeline(path: Path) -> Pipeline:
    """Read and check a file. Relative paths in it are taken from the current directory, as on the command line.

    Raises InputError, naming file and key, if a key is unknown, a value out of range, or the stage before one missing.
    """
    return parse_pipeline(read_yaml_mapping(path, f"give a YAML file with the keys {', '.join(_TOP_KEYS)}"), str(path))


def parse_pipeline(content: Mapping[Any, Any], path: str) -> Pipeline:
    """Check the content of a file, which `path` names in errors. Raises InputError as `load_pipeline` does."""
    # Keys in x-… are free for YAML anchors.
    content = {key: value for key, value in content.items() if not str(key).startswith("x-")}
    refuse_unknown(content, _TOP_KEYS, f"{path}:")
    for key in ("input", "model", "output", "stages"):
        if not content.get(key):
            raise InputError(f"{path}: key {key!r} is missing")
    executors = content.get("executors") or {}
    if not isinstance(executors, dict):
        raise InputError(f"{path}: key 'executors' must be a mapping from names to executors, not a list or a text")
    executors = {"local": {"type": "LocalExecutor"}} | executors
    for name, executor in executors.items():
        if not isinstance(executor, dict) or not isinstance(executor.get("type"), str):
            raise InputError(f"{path}: executors.{name} must be a mapping with a 'type', such as LocalExecutor")
    given = content["input"] if isinstance(content["input"], list) else [content["input"]]
    inputs = tuple(_text(value, f"{path}: key 'input'") for value in given)
    model = Path(_text(content["model"], f"{path}: key 'model'"))
    output = Path(_text(content["output"], f"{path}: key 'output'"))
    prompts = _text(content["prompts"], f"{path}: key 'prompts'") if content.get("prompts") else None
    stages: list[StageProcesses] = []
    for name in _names_in_order(content["stages"], path):
        row = registry.STAGES[name]
        where = f"{path}: stages.{name}"
        told = content["stages"][name] or {}
        own_model = None
        if name == "instruct" and isinstance(told, dict) and "model" in told:
            told = dict(told)
            own_model = Path(_text(told.pop("model"), f"{where}: key 'model'"))
        values, launch, env = _told(name, told, executors, where)
        call = registry.StageCall(
            stage=name,
            inputs=(str(stages[-1].call.output),) if stages else inputs,
            output=output / (row.folder or name),
            # If the model is optional for a stage, it is only used to check hand-made input.
            model_given=(own_model or model) if row.needs_model or not stages else None,
            prompts=prompts if row.takes_prompts else None,
            values=values,
        )
        stages.append(StageProcesses(call, launch, env))
    return Pipeline(output, executors, tuple(stages))


def _text(value: Any, where: str) -> str:
    """Return a path or word; numbers and dates are accepted, because YAML reads 2024 and 2024-01-01 as such."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | date):
        raise InputError(f"{where} must be text, not {short_repr(value)}; put it in quotes if it is")
    text = str(value)
    if "\0" in text:
        raise InputError(f"{where} holds a zero byte, which no path and no setting can")
    return text


def _orders(name: str) -> Iterator[tuple[str, ...]]:
    """Yield the orders of stages that lead to `name` from a stage that reads outside data."""
    before = registry.STAGES[name].follows
    return ((*order, name) for other in before for order in _orders(other)) if before else iter([(name,)])


def _names_in_order(stages: Any, path: str) -> list[str]:
    """Return the stages of a file in the order in which they run: each reads the output of the one before.

    Raises InputError if no such order has them all, or one is missing between two of them.
    """
    if not isinstance(stages, dict):
        raise InputError(f"{path}: key 'stages' must be a mapping from stage names to settings")
    refuse_unknown(stages, tuple(registry.STAGES), f"{path}: stages:")
    order = next((order for name in stages for order in _orders(name) if set(stages) <= set(order)), None)
    names = [name for name in order or registry.STAGES if name in stages]
    if order is None:
        late, before = next(
            (late, before) for before, late in pairwise(names) if before not in registry.STAGES[late].follows
        )
        problem = f"does not read what {before!r} writes" if registry.STAGES[late].follows else "makes pairs itself"
        raise InputError(f"{path}: stages: {late!r} {problem}; remove the stages up to {before!r}")
    missing = [name for name in order[order.index(names[0]) : order.index(names[-1])] if name not in names]
    if missing:
        raise InputError(f"{path}: stages: {missing[0]!r} is missing between {names[0]!r} and {names[-1]!r}")
    return names


def _told(
    name: str, values: Any, executors: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], LaunchSettings, dict[str, str]]:
    """Return a stage's own settings in the file, how its processes are started, and their variables."""
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a mapping of settings")
    settings = registry.STAGES[name].setting_names()
    own_names = [item for item in settings if item not in _NOT_IN_FILE]
    launch_names = [item.name for item in fields(LaunchSettings)]
    refuse_unknown(values, ("env", *launch_names, *own_names), f"{where}:")
    # YAML reads a bare 2026-03-31 as a date; values for the chat template may be a mapping.
    own = {key: str(value) if isinstance(value, date) else value for key, value in values.items() if key in own_names}
    own = mappings_as_json(own)
    try:
        for kind in registry.STAGES[name].settings:
            settings_from(kind, own)
        refuse_passwords(EngineOptions.from_mapping(own).server.base_url)
        launch = settings_from(LaunchSettings, values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if launch.executor not in executors:
        raise InputError(f"{where}: executor {launch.executor!r} is not among {', '.join(executors)}")
    if launch.processes > 1 and "rank" not in settings:
        raise InputError(f"{where}: this stage runs in one process; remove 'processes'")
    env = values.get("env") or {}
    if not isinstance(env, dict):
        raise InputError(f"{where}: env must be a mapping from names to values")
    return own, launch, {_text(key, f"{where}: env"): _text(env[key], f"{where}: env") for key in env}


def refuse_passwords(addresses: tuple[str, ...]) -> None:
    """Raises InputError if an address holds a password: the run writes command lines to files."""
    if any("@" in address for address in addresses):
        raise InputError(
            "base_url holds a user name or password, which would be kept in the files of the run; set "
            "LONGPO_LOGIN=user:password in the environment instead"
        )


def refuse_unknown(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raises InputError, with the known name that is closest, if a key is not among the known."""
    for key in values:
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(known)}"
            raise InputError(f"{where} unknown key {short_repr(key)}; {hint}")
