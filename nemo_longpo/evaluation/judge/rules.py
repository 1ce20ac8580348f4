"""What a judge is told and what it says: its prompt with places to fill, and a rating in its reply."""

import re
import string

from nemo_longpo.errors import InputError

Rating = float | None
LOWEST, HIGHEST = 1, 10
"""Of the ratings of both benchmarks."""


def fill(template: str, where: str, **values: str) -> str:
    """Put values into the `{name}` places of a judge's prompt. Raises InputError if the names are others than these."""
    check_places(template, where, set(values))
    return template.format(**values)


def check_places(template: str, where: str, names: set[str]) -> None:
    """Raises InputError if the template's `{name}` places are others than these."""
    found = set(places(template, where))
    if found != names:
        raise InputError(
            f"{where} has places for {', '.join(sorted(found)) or 'nothing'}, where {', '.join(sorted(names))} are "
            "filled in; fetch the file again, or correct it"
        )


def places(template: str, where: str) -> list[str]:
    """The names in braces of a judge's prompt, "" for those without one.

    Raises InputError if braces do not match, or hold more than a name.
    """
    try:
        found = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise InputError(f"{where} is no template ({error}); fetch the file again, or correct it") from error
    for name, form, conversion in found:
        if form or conversion:
            raise InputError(
                f"{where} says how to write {name or 'a value'}, not only where; fetch the file again, or correct it"
            )
    return [str(name) for name, _, _ in found]


def within_limits(text: str) -> Rating:
    """The first number in a text, if it is a rating."""
    found = re.search(r"\d+(?:\.\d+)?", text)
    value = float(found[0]) if found else None
    return value if value is not None and LOWEST <= value <= HIGHEST else None
