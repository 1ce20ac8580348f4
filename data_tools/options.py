"""Settings as frozen dataclasses that check themselves, read from a command line or a mapping; their differences."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import Field, field, fields
from reprlib import repr as short_repr
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from nemo_longpo.errors import InputError


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    recorded: bool = True,
) -> Any:
    """Return a field of a Settings class. With `recorded=False` it cannot change a stage's output, so it may differ
    between two runs that share an output."""
    limits = {"minimum": minimum, "above": above, "maximum": maximum}
    return field(default=default, metadata={"help": help, "limits": limits, "recorded": recorded})


class Settings:
    """Base of the frozen dataclasses in settings.py. Raises InputError if a value has the wrong kind or range."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, item.name)
            if value is not None or not _optional(item):
                _check(item, value)

    def recorded(self) -> dict[str, Any]:
        """Return the settings that affect the output, to be stored with it."""
        return {
            item.name: getattr(self, item.name)
            for item in fields(self)  # type: ignore[arg-type]
            if item.metadata["recorded"]
        }


AnySettings = TypeVar("AnySettings", bound=Settings)


def add_settings(parser: argparse.ArgumentParser, kind: type[Settings], title: str | None = None) -> None:
    """Add one `--flag` per setting; under a heading if `title` is given."""
    group = parser.add_argument_group(title) if title else parser
    for item in fields(kind):  # type: ignore[arg-type]
        flag = "--" + item.name.replace("_", "-")
        has_default = item.default is not None and item.default is not False and item.default != ()
        help = item.metadata["help"] + (" (default: %(default)s)" if has_default else "")
        base = _base_type(item)
        if base is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=item.default, help=help)
        elif get_origin(base) is Literal:
            group.add_argument(flag, choices=get_args(base), default=item.default, help=help)
        elif get_origin(base) is tuple:
            element = get_args(base)[0]
            group.add_argument(flag, nargs="+", type=element, default=item.default, help=help, metavar="VALUE")
        else:
            group.add_argument(flag, type=base, default=item.default, help=help, metavar=base.__name__.upper())


def settings_from(kind: type[AnySettings], values: Mapping[str, Any]) -> AnySettings:
    """Return the settings of one kind from a larger mapping, such as vars(arguments). Lists become tuples."""
    chosen = {item.name: values[item.name] for item in fields(kind) if item.name in values}  # type: ignore[arg-type]
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()})


def mappings_as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a YAML file as commands take them: a mapping, such as a chat template's values, as JSON."""
    return {name: json.dumps(value) if isinstance(value, dict) else value for name, value in values.items()}


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return readable differences of two JSON values: "settings.seed was 0, now 1"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        absent = "absent"
        return [
            change
            for key in keys
            for change in differences(old.get(key, absent), new.get(key, absent), f"{name}.{key}" if name else key)
        ]

    def short(value: Any) -> str:
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 80 else f"{text[:77]}..."

    # Settings compare as they are stored: a tuple comes back as a list.
    return [] if json.dumps(old) == json.dumps(new) else [f"{name} was {short(old)}, now {short(new)}"]


def setting_words(name: str, value: Any) -> list[str]:
    """Return a setting as words of a command line that `add_settings` can parse."""
    flag = "--" + name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else "--no-" + flag[2:]]
    return [flag, *map(str, value)] if isinstance(value, list | tuple) else [flag, str(value)]


def _optional(item: Field) -> bool:
    return NoneType in get_args(item.type)


def _base_type(item: Field) -> Any:
    """Return the type without `| None`."""
    return next(kind for kind in get_args(item.type) if kind is not NoneType) if _optional(item) else item.type


def _check(item: Field, value: Any) -> None:
    base = _base_type(item)
    if get_origin(base) is Literal:
        if value not in get_args(base):
            raise InputError(
                f"{item.name} {short_repr(value)} is not known; use one of {', '.join(map(str, get_args(base)))}"
            )
        return
    if get_origin(base) is tuple:
        element = get_args(base)[0]
        if not isinstance(value, tuple) or not all(isinstance(entry, element) for entry in value):
            raise InputError(f"{item.name} must be a list of {element.__name__} values, not {short_repr(value)}")
        return
    wanted = (int, float) if base is float else base
    if not isinstance(value, wanted) or (isinstance(value, bool) and base is not bool):
        raise InputError(f"{item.name} must be of type {base.__name__}, not {short_repr(value)}")
    _check_limits(item, value)


def _check_limits(item: Field, value: Any) -> None:
    limits = item.metadata["limits"]
    if limits["minimum"] is not None and not value >= limits["minimum"]:
        raise InputError(f"{item.name} {value} must be at least {limits['minimum']}")
    if limits["above"] is not None and not value > limits["above"]:
        raise InputError(f"{item.name} {value} must be above {limits['above']}")
    if limits["maximum"] is not None and not value <= limits["maximum"]:
        raise InputError(f"{item.name} {value} must be at most {limits['maximum']}")
