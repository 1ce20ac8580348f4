"""What a comparison found, as text for people and as one JSON object."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .configuration import FieldDifference, FileDifference
from .logits import LogitsComparison
from .tensors import TensorComparison

SHOWN_TENSORS = 5
SHOWN_CHARACTERS = 60

_STATUS = {True: "PASS", False: "FAIL", None: "----"}


@dataclass(frozen=True)
class Side:
    path: str
    kind: str
    architecture: str
    parameters: int


@dataclass(frozen=True)
class Section:
    """One question, its answer in a line, and what belongs to it. `passed` is None where nothing was computed."""

    name: str
    passed: bool | None
    headline: str
    details: list[str]


@dataclass(frozen=True)
class Report:
    """`logits` is the reason where none were computed."""

    a: Side
    b: Side
    strict: bool
    fields: list[FieldDifference]
    files_equal: int
    files: list[FileDifference]
    tensors: list[TensorComparison]
    logits: LogitsComparison | str

    def sections(self) -> list[Section]:
        return [self._configuration(), self._files(), self._tensors(), self._logits()]

    @property
    def equal(self) -> bool:
        return all(section.passed is not False for section in self.sections())

    @property
    def allowed(self) -> list[str]:
        """Names of fields and files that differ and may."""
        fields = [field.name for field in self.fields if field.allowed]
        return fields + [file.name for file in self.files if file.allowed]

    def to_text(self) -> str:
        return "\n".join(self._lines())

    def to_json(self) -> dict[str, Any]:
        """Plain values; null for a number that is not finite."""
        counts = Counter(tensor.verdict for tensor in self.tensors)
        logits = {"not_computed": self.logits} if isinstance(self.logits, str) else asdict(self.logits)
        value = {
            "equal": self.equal,
            "strict": self.strict,
            "a": asdict(self.a),
            "b": asdict(self.b),
            "passed": {section.name: section.passed for section in self.sections()},
            "configuration": [asdict(difference) for difference in self.fields],
            "files": {"equal": self.files_equal, "differences": [asdict(difference) for difference in self.files]},
            "tensors": {
                "exact": counts["exact"],
                "rounded": counts["rounded"],
                "different": len(self._apart),
                "dtypes": self._dtypes,
                "not_finite": [tensor.name for tensor in self.tensors if tensor.not_finite],
                "differences": [asdict(tensor) for tensor in self._apart],
            },
            "logits": logits,
        }
        return _without_nan(value)

    @property
    def _apart(self) -> list[TensorComparison]:
        """Tensors that are not the same, the worst first."""
        found = [tensor for tensor in self.tensors if not tensor.same]
        return sorted(found, key=lambda tensor: (tensor.values > 0, -tensor.relative, -tensor.differing))

    @property
    def _dtypes(self) -> list[tuple[str | None, str | None]]:
        return list(dict.fromkeys(tensor.dtypes for tensor in self.tensors if None not in tensor.dtypes))

    def _lines(self) -> Iterator[str]:
        for label, side in (("A", self.a), ("B", self.b)):
            yield f"{label}  {side.path}: {side.kind}, {side.architecture}, {side.parameters:,} parameters"
        sections = self.sections()
        for section in sections:
            yield f"{section.name:<14} {_STATUS[section.passed]}  {section.headline}"
            yield from (f"{'':<21}{detail}" for detail in section.details)
        failed = [section.name for section in sections if section.passed is False]
        if failed:
            yield f"different: {', '.join(failed)}"
        else:
            yield f"equal, but for {', '.join(self.allowed)}" if self.allowed else "equal"

    def _configuration(self) -> Section:
        passed = all(difference.allowed for difference in self.fields)
        headline = f"{_count(len(self.fields), 'field')} not equal" if self.fields else "every field is equal"
        details = [
            f"{difference.name}: {_short(difference.a)} in A, {_short(difference.b)} in B{_mark(difference.allowed)}"
            for difference in self.fields
        ]
        return Section("configuration", passed, headline, details)

    def _files(self) -> Section:
        passed = all(difference.allowed for difference in self.files)
        details = [f"{difference.name}: {difference.how}{_mark(difference.allowed)}" for difference in self.files]
        return Section("files", passed, f"{self.files_equal} equal, {len(self.files)} not", details)

    def _tensors(self) -> Section:
        counts = Counter(tensor.verdict for tensor in self.tensors)
        headline = ", ".join(f"{count:,} {verdict}" for verdict, count in counts.items())
        details = [f"dtypes: {a} in A, {b} in B" for a, b in self._dtypes if a != b]
        apart = self._apart
        details += [_describe(tensor) for tensor in apart[:SHOWN_TENSORS]]
        if len(apart) > SHOWN_TENSORS:
            details.append(f"and {len(apart) - SHOWN_TENSORS:,} more, which --json lists")
        broken = [tensor.name for tensor in self.tensors if tensor.not_finite]
        if broken:
            details.append(f"NaN or infinities in {_count(len(broken), 'tensor')}, the first is {broken[0]}")
        rounding_refused = self.strict and counts["rounded"] > 0
        return Section("tensors", not apart and not rounding_refused, headline, details)

    def _logits(self) -> Section:
        if isinstance(self.logits, str):
            return Section("logits", None, f"not computed: {self.logits}", [])
        found = self.logits
        headline = (
            f"apart by {_amount(found.worst_sequence.relative)} of a token's largest logit, {found.tolerance:g} allowed"
        )
        details = []
        if found.common_rope:
            details.append("B computed with the rotary settings of A")
        if found.rounded_to:
            details.append(f"weights of both rounded to {found.rounded_to}")
        details += [
            f"{sequence.name}: {_count(sequence.tokens, 'token')}, {_amount(sequence.relative)} "
            f"({_amount(sequence.largest)} absolute), same next token {sequence.same_choice:.1%}, "
            f"KL {_amount(sequence.divergence)}"
            for sequence in found.sequences
        ]
        if found.first_apart is not None:
            details.append(f"apart from {_state(found, found.first_apart)} on")
        details.append(f"worst behind {_state(found, found.worst_state)}")
        return Section("logits", found.passed, headline, details)


def _describe(tensor: TensorComparison) -> str:
    if tensor.verdict in ("only in A", "only in B"):
        return f"{tensor.name}: {tensor.verdict}"
    a, b = tensor.shapes
    if a != b:
        return f"{tensor.name}: shape {a} in A, {b} in B"
    order = ", the same values in another order" if tensor.reordered else ""
    return (
        f"{tensor.name}: {tensor.differing:,} of {tensor.values:,} values differ, by at most {_amount(tensor.largest)} "
        f"({_amount(tensor.relative)} of the largest){order}"
    )


def _state(found: LogitsComparison, place: int) -> str:
    return f"{found.name_of(place)} ({_amount(found.states[place])})"


def _amount(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def _mark(allowed: bool) -> str:
    return " (allowed)" if allowed else ""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
