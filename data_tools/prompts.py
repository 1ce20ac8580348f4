"""The prompts of the model as templates with {placeholders}; `--prompts FILE` replaces them."""

import random
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.json_input import read_json_object

from .quality.language import language, names_text, needs_space, script, words

_PLACEHOLDER = re.compile(r"\{(document|instruction|count|form)\}")

_LEAD_INS = (
    "Based on the document:",
    "Going by the text:",
    "With the document in mind:",
    "Using only what the text says:",
    "Drawing on the document:",
    "Relying on the text alone:",
    "Referring to the document:",
    "Working from the text:",
    "On the basis of the document:",
    "Please use the document for this:",
    "Please base your answer on the text:",
    "Keep to what the document says:",
    "I have a request about the text:",
    "Please look at the document for this one:",
    "Usando solo el documento:",
    "Con base en el texto:",
    "Teniendo en cuenta lo que dice el documento:",
    "À partir du document :",
    "En vous appuyant sur le texte :",
    "En tenant compte du seul document :",
    "Auf der Grundlage des Dokuments:",
    "Bitte nur mit Hilfe des Textes:",
    "Eine Bitte zu diesem Dokument:",
    "Com base no documento:",
    "A partir do texto:",
    "Levando em conta apenas o documento:",
    "Usando solo il documento:",
    "Per questo basati sul testo:",
    "Con il documento alla mano:",
    "На основе документа:",
    "Опираясь на текст:",
    "Пожалуйста, исходите только из документа:",
    "根据文档：",
    "请依据文本：",
    "仅就文档而言：",
    "この文書に基づいて：",
    "本文をもとに：",
    "文書の内容だけから：",
    "문서를 바탕으로:",
    "본문에 근거하여:",
    "글의 내용만 가지고:",
    "استنادا إلى المستند:",
    "بناء على النص:",
    "اعتمادا على المستند وحده:",
)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompt templates. `ask` joins a document (or a chunk of it) and an instruction to one user message;
    `write_instruction` makes the model write several instructions about a chunk, `write_one_instruction` one. {form} in
    the former becomes `as_json` for an engine that can enforce JSON, else `as_list`. `lead_ins` refer to the text at
    the start of some instructions; each can precede any question or command in its language."""

    ask: str = "{document}\n\n{instruction}"
    write_instruction: str = (
        "Below is a passage.\n\n<passage>\n{document}\n</passage>\n\n"
        "Think of {count} different requests that a careful reader could make about this passage. Each one must be "
        "answerable from the passage alone, must make sense to someone who holds a much longer text that contains the "
        'passage, and so must name the people, things or ideas it is about instead of saying "the passage". Mix '
        "questions about details, about reasons and connections, and tasks such as summing up or comparing.\n"
        "{form}"
    )
    as_list: str = "Write them as a numbered list, one request per line, and nothing else."
    as_json: str = "Write them as a JSON list of {count} strings, one request per string, and nothing else."
    write_one_instruction: str = (
        "Below is a passage.\n\n<passage>\n{document}\n</passage>\n\n"
        "Think of one request that a careful reader could make about this passage. It must be answerable from the "
        "passage alone, must make sense to someone who holds a much longer text that contains the passage, and so must "
        'name the people, things or ideas it is about instead of saying "the passage". It may be a question about a '
        "detail, about a reason or a connection, or a task such as summing up or comparing.\n"
        "Write the request and nothing else."
    )
    lead_ins: tuple[str, ...] = _LEAD_INS

    def ask_about(self, document: str, instruction: str) -> str:
        return _fill(self.ask, {"document": document, "instruction": instruction})

    def document_start(self, instruction: str) -> int:
        """Return where the document begins in the text of `ask_about`, in characters."""
        before, _, _ = self.ask.partition("{document}")
        return len(_fill(before, {"instruction": instruction}))

    def may_ask_for_json(self, count: int) -> bool:
        """Return whether the wording leaves the form of the answer open."""
        return count > 1 and "{form}" in self.write_instruction

    def request_instructions(self, document: str, count: int, *, as_json: bool = False) -> str:
        template = self.write_one_instruction if count == 1 else self.write_instruction
        form = _fill(self.as_json if as_json else self.as_list, {"count": str(count)})
        return _fill(template, {"document": document, "count": str(count), "form": form})

    def with_lead_in(self, instruction: str, rng: random.Random) -> str:
        """Return a drawn lead-in and the instruction; the instruction alone if none fits.

        A lead-in fits an instruction in its own language (in its own script, if the lead-in's language is unknown),
        unless the instruction names the text or begins with the same two words as a lead-in.
        """
        opening = words(instruction)[:2]
        if names_text(instruction) or any(words(lead_in)[:2] == opening for lead_in in self.lead_ins):
            return instruction
        spoken = language(instruction)
        fitting = [lead_in for lead_in in self.lead_ins if _fits(lead_in, instruction, spoken)]
        if not fitting:
            return instruction
        lead_in = rng.choice(fitting)
        return f"{lead_in} {instruction}" if needs_space(lead_in, instruction) else lead_in + instruction

    def without_lead_in(self, instruction: str) -> str:
        for lead_in in sorted(self.lead_ins, key=len, reverse=True):  # one may begin with another
            if instruction.startswith(lead_in):
                return instruction[len(lead_in) :].lstrip()
        return instruction

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


_REQUIRED = {
    "ask": ("{document}", "{instruction}"),
    "write_instruction": ("{document}",),
    "write_one_instruction": ("{document}",),
    "as_list": (),
    "as_json": (),
}


def load_prompts(path: str | Path | None) -> Prompts:
    """Return prompts from a JSON object with the texts "ask", "write_instruction", "write_one_instruction", "as_list"
    and "as_json", and the list of texts "lead_ins".

    Missing keys, or None instead of a file, stand for the built-in wording. Raises InputError if a key is unknown, a
    value has the wrong kind, or a placeholder is missing.
    """
    if path is None:
        return Prompts()
    return prompts_from_dict(read_json_object(Path(path), "give an object such as docs/data.md shows"), str(path))


def choose_prompts(path: str | None, history: dict[str, Any]) -> Prompts:
    """Return the prompts of the given file; else those that an earlier stage used; else the built-in ones."""
    if path is not None:
        return load_prompts(path)
    for settings in reversed(list(history.values())):
        if "prompts" in settings:
            return prompts_from_dict(settings["prompts"], "the input's settings.json")
    return Prompts()


def prompts_from_dict(content: dict, where: str) -> Prompts:
    """Return prompts. Raises InputError if a key is unknown, a value has the wrong kind or a placeholder is missing."""
    if not isinstance(content, dict):
        raise InputError(f"{where}: prompts must be an object with texts, not a {type(content).__name__}")
    known = [field.name for field in fields(Prompts)]
    for key, value in content.items():
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}; the keys are {', '.join(known)}")
        if key == "lead_ins":
            _check_lead_ins(value, where)
            continue
        if not isinstance(value, str):
            raise InputError(f"{where}: key {key!r} must be text, not {type(value).__name__}")
        for placeholder in _REQUIRED[key]:
            if placeholder not in value:
                raise InputError(f"{where}: key {key!r} lacks the placeholder {placeholder}; add it")
    # A file's wording for several instructions also applies to a single one, unless it has its own.
    several = content.get("write_instruction", Prompts.write_one_instruction)
    given = {"write_one_instruction": several, "lead_ins": Prompts.lead_ins} | content
    return replace(Prompts(), **(given | {"lead_ins": tuple(given["lead_ins"])}))


def _fits(lead_in: str, instruction: str, spoken: str) -> bool:
    own = language(lead_in)
    return own == spoken if own else script(lead_in) == script(instruction)


def _check_lead_ins(value: Any, where: str) -> None:
    if not isinstance(value, list | tuple):
        raise InputError(f"{where}: key 'lead_ins' must be a list of texts ([] for none), not {type(value).__name__}")
    for index, lead_in in enumerate(value):
        if not isinstance(lead_in, str) or not lead_in.strip():
            raise InputError(f"{where}: key 'lead_ins[{index}]' must be non-empty text, not {lead_in!r}")


def _fill(template: str, values: dict[str, str]) -> str:
    """Fill in all placeholders in one pass, so that braces inside a document stay as they are."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)
