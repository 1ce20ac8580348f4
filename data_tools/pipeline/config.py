"""The file of `longpo data run`: which stages, with which settings, on which machines."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.yaml_input import read_yaml_mapping

from ..engines.load import EngineOptions
from ..options import Settings, setting, settings_from
from ..settings import STAGE_SETTINGS

# Each stage reads what the one before it wrote. A file may start later and end earlier.
_ORDERS = (("chunk", "instruct", "respond", "filter", "score", "pack"), ("import-hf", "score", "pack"))
_TOP_KEYS = ("input", "model", "output", "prompts", "executors", "stages")
# Set for every process by the run itself.
_NOT_IN_FILE = {"rank", "world_size", "rank_from_environment", "dry_run"}


@dataclass(frozen=True)
class LaunchSettings(Settings):
    """How the processes of a stage are started."""

    executor: str = setting("local", "a name among the file's executors")
    processes: int = setting(1, "how many share the stage", minimum=1)
    restarts: int = setting(3, "starts after the first one, while parts are missing", minimum=0)
    command: str = setting(f"{sys.executable} -m nemo_longpo.cli", "what runs the longpo tool")


@dataclass(frozen=True)
class StageRun:
    """One stage: its settings as the command line takes them, and how it is started.

    In the values of `env`, the variables of every process, "{rank}" stands for the process's number.
    """

    name: str
    settings: Mapping[str, Any]
    launch: LaunchSettings
    env: Mapping[str, str]


@dataclass(frozen=True)
class Pipeline:
    """All of a file. An executor is the name of a class of nemo_run ("type") and its arguments."""

    input: tuple[str, ...]
    model: Path
    output: Path
    prompts: Path | None
    executors: Mapping[str, Mapping[str, Any]]
    stages: tuple[StageRun, ...]

    def output_of(self, stage: StageRun) -> Path:
        return self.output / ("shards" if stage.name == "pack" else stage.name)

    def arguments(self, stage: StageRun) -> list[str]:
        """The words behind `longpo` that run a stage in one process."""
        position = self.stages.index(stage)
        sources = self.input if position == 0 else (str(self.output_of(self.stages[position - 1])),)
        words = ["data", stage.name, "--pairs" if stage.name in ("score", "pack") else "--input", *sources]
        # Pairs of one's own are held to the model's special tokens; what `respond` wrote is already.
        if stage.name != "filter" or position == 0:
            words += ["--model", str(self.model)]
        if self.prompts is not None and stage.name in ("instruct", "respond", "score"):
            words += ["--prompts", str(self.prompts)]
        words += ["--output", str(self.output_of(stage))]
        for name, value in stage.settings.items():
            words += _flag(name, value)
        return words


def load_pipeline(path: Path) -> Pipeline:
    """Read and check a file. Relative paths in it are taken from the current directory, as on the command line.

    Raises InputError naming the file and the key: unknown keys, values out of range, stages without the one before.
    """
    content = read_yaml_mapping(path, f"give a YAML file with the keys {', '.join(_TOP_KEYS)}")
    # Keys in x-… are free for YAML anchors.
    content = {key: value for key, value in content.items() if not str(key).startswith("x-")}
    _refuse_unknown(content, _TOP_KEYS, f"{path}:")
    for key in ("input", "model", "output", "stages"):
        if not content.get(key):
            raise InputError(f"{path}: key {key!r} is missing")
    inputs = content["input"] if isinstance(content["input"], list) else [content["input"]]
    executors = content.get("executors") or {}
    if not isinstance(executors, dict):
        raise InputError(f"{path}: key 'executors' must be a mapping from names to executors, not a list or a text")
    executors = {"local": {"type": "LocalExecutor"}} | executors
    return Pipeline(
        input=tuple(_text(value, f"{path}: key 'input'") for value in inputs),
        model=Path(_text(content["model"], f"{path}: key 'model'")),
        output=Path(_text(content["output"], f"{path}: key 'output'")),
        prompts=Path(_text(content["prompts"], f"{path}: key 'prompts'")) if content.get("prompts") else None,
        executors=_executors(executors, path),
        stages=_stages(content["stages"], executors, path),
    )


def _text(value: Any, where: str) -> str:
    """A path or word; a number or a date is one, too, because YAML reads 2024 and 2024-01-01 as such."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | date):
        raise InputError(f"{where} must be text, not {short_repr(value)}; put it in quotes if it is")
    text = str(value)
    if "\0" in text:
        raise InputError(f"{where} holds a zero byte, which no path and no setting can")
    return text


def _executors(executors: Any, path: Path) -> dict[str, dict[str, Any]]:
    for name, executor in executors.items():
        if not isinstance(executor, dict) or not isinstance(executor.get("type"), str):
            raise InputError(f"{path}: executors.{name} must be a mapping with a 'type', such as LocalExecutor")
    return executors


def _stages(stages: Any, executors: Mapping[str, Any], path: Path) -> tuple[StageRun, ...]:
    if not isinstance(stages, dict):
        raise InputError(f"{path}: key 'stages' must be a mapping from stage names to settings")
    _refuse_unknown(stages, tuple(STAGE_SETTINGS), f"{path}: stages:")
    order = next((order for order in _ORDERS if set(stages) <= set(order)), None)
    if order is None:
        raise InputError(f"{path}: stages: 'import-hf' makes pairs itself; remove the stages up to 'filter'")
    names = [name for name in order if name in stages]
    missing = [name for name in order[order.index(names[0]) : order.index(names[-1])] if name not in names]
    if missing:
        raise InputError(f"{path}: stages: {missing[0]!r} is missing between {names[0]!r} and {names[-1]!r}")
    return tuple(_stage(name, stages[name] or {}, executors, f"{path}: stages.{name}") for name in names)


def _stage(name: str, values: Any, executors: Mapping[str, Any], where: str) -> StageRun:
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a mapping of settings")
    kinds = STAGE_SETTINGS[name]
    own_names = [item for kind in kinds for item in _names(kind) if item not in _NOT_IN_FILE]
    _refuse_unknown(values, ("env", *_names(LaunchSettings), *own_names), f"{where}:")
    # YAML reads a bare 2026-03-31 as a date.
    own = {key: str(value) if isinstance(value, date) else value for key, value in values.items() if key in own_names}
    try:
        for kind in kinds:
            settings_from(kind, own)
        _refuse_passwords(EngineOptions.from_mapping(own).server.base_url)
        launch = settings_from(LaunchSettings, values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if launch.executor not in executors:
        raise InputError(f"{where}: executor {launch.executor!r} is not among {', '.join(executors)}")
    if launch.processes > 1 and "rank" not in {item for kind in kinds for item in _names(kind)}:
        raise InputError(f"{where}: this stage runs in one process; remove 'processes'")
    env = values.get("env") or {}
    if not isinstance(env, dict):
        raise InputError(f"{where}: env must be a mapping from names to values")
    return StageRun(name, own, launch, {_text(key, f"{where}: env"): _text(env[key], f"{where}: env") for key in env})


def _refuse_passwords(addresses: tuple[str, ...]) -> None:
    """Raises InputError: what starts the processes keeps their command lines in files."""
    if any("@" in address for address in addresses):
        raise InputError(
            "base_url holds a user name or password, which would be kept in the files of the run; set "
            "LONGPO_LOGIN=user:password in the environment instead"
        )


def _names(kind: type[Settings]) -> list[str]:
    return [item.name for item in fields(kind)]  # type: ignore[arg-type]  # every subclass is a dataclass


def _refuse_unknown(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(known)}"
            raise InputError(f"{where} unknown key {short_repr(key)}; {hint}")


def _flag(name: str, value: Any) -> list[str]:
    """A setting as words of the command line."""
    flag = "--" + name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else "--no-" + flag[2:]]
    return [flag, *map(str, value)] if isinstance(value, list | tuple) else [flag, str(value)]
