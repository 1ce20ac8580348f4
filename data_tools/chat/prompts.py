"""The wording of what the model is asked, as templates with {placeholders}; `--prompts FILE` replaces them."""

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError

from ..jsonl import read_json_object

_PLACEHOLDER = re.compile(r"\{(document|instruction|count)\}")


@dataclass(frozen=True)
class Prompts:
    """`ask` joins a document (or a chunk of it) and an instruction to one user message; `write_instruction` makes the
    model write instructions about a chunk."""

    ask: str = "{document}\n\n{instruction}"
    write_instruction: str = (
        "Below is a passage.\n\n<passage>\n{document}\n</passage>\n\n"
        "Think of {count} different requests that a careful reader could make about this passage. Each one must be "
        "answerable from the passage alone, must make sense to someone who holds a much longer text that contains the "
        'passage, and so must name the people, things or ideas it is about instead of saying "the passage". Mix '
        "questions about details, about reasons and connections, and tasks such as summing up or comparing.\n"
        "Write them as a numbered list, one request per line, and nothing else."
    )

    def ask_about(self, document: str, instruction: str) -> str:
        return _fill(self.ask, {"document": document, "instruction": instruction})

    def request_instructions(self, document: str, count: int) -> str:
        return _fill(self.write_instruction, {"document": document, "count": str(count)})

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


_REQUIRED = {"ask": ("{document}", "{instruction}"), "write_instruction": ("{document}",)}


def load_prompts(path: str | Path | None) -> Prompts:
    """Prompts from a JSON object with the keys "ask" and "write_instruction"; None gives the built-in wording.

    Raises InputError for an unknown key, a value that is not text, or a missing placeholder.
    """
    return Prompts() if path is None else prompts_from_dict(read_json_object(Path(path)), str(path))


def choose_prompts(path: str | None, history: dict[str, Any]) -> Prompts:
    """The given file; else the wording that an earlier stage used; else the built-in one."""
    if path is not None:
        return load_prompts(path)
    for settings in reversed(list(history.values())):
        if "prompts" in settings:
            return prompts_from_dict(settings["prompts"], "the input's settings.json")
    return Prompts()


def prompts_from_dict(content: dict, where: str) -> Prompts:
    """Raises InputError naming `where` and the key."""
    known = [field.name for field in fields(Prompts)]
    for key, value in content.items():
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}; the keys are {', '.join(known)}")
        if not isinstance(value, str):
            raise InputError(f"{where}: key {key!r} must be text, not {type(value).__name__}")
        for placeholder in _REQUIRED[key]:
            if placeholder not in value:
                raise InputError(f"{where}: key {key!r} lacks the placeholder {placeholder}; add it")
    return Prompts(**content)


def _fill(template: str, values: dict[str, str]) -> str:
    """One pass, so that braces inside a document stay as they are."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)
