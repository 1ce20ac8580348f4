"""The result of a comparison: which parts passed, everything as one JSON object, and the same as lines for people.

For people each part has one line, its details indented below, and a last line sums up.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from nemo_longpo.terminal import count, printable, shortened

from .logits import LogitsComparison
from .small_files import FieldDifference, FileDifference
from .tensors import TensorComparison


@dataclass(frozen=True)
class Side:
    path: str
    kind: str
    architecture: str
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """Differences of all parts. `logits` is the reason where none were computed."""

    a: Side
    b: Side
    strict: bool
    fields: list[FieldDifference]
    files_equal: int
    files: list[FileDifference]
    tensors: list[TensorComparison]
    logits: LogitsComparison | str

    @property
    def passed(self) -> dict[str, bool | None]:
        """By part; None where nothing was computed."""
        same = ("exact",) if self.strict else ("exact", "rounded")
        return {
            "configuration": all(field.allowed for field in self.fields),
            "files": all(file.allowed for file in self.files),
            "tensors": all(tensor.verdict in same for tensor in self.tensors),
            "logits": None if isinstance(self.logits, str) else self.logits.passed,
        }

    @property
    def failed(self) -> list[str]:
        return [part for part, passed in self.passed.items() if passed is False]

    @property
    def equal(self) -> bool:
        return not self.failed

    @property
    def allowed(self) -> list[str]:
        """Names of fields and files that differ and may."""
        fields = [field.name for field in self.fields if field.allowed]
        return fields + [file.name for file in self.files if file.allowed]

    @property
    def apart(self) -> list[TensorComparison]:
        """Tensors that are neither exact nor rounded, the worst first."""
        apart = [tensor for tensor in self.tensors if tensor.verdict not in ("exact", "rounded")]
        return sorted(apart, key=lambda tensor: (tensor.values > 0, -tensor.relative, -tensor.differing))

    @property
    def dtypes(self) -> list[tuple[str | None, str | None]]:
        """Every pair of A's and B's dtype."""
        return list(dict.fromkeys(tensor.dtypes for tensor in self.tensors if None not in tensor.dtypes))

    @property
    def not_finite(self) -> list[str]:
        """Tensors with NaN or infinities on either side."""
        return [tensor.name for tensor in self.tensors if tensor.not_finite]

    def to_json(self) -> dict[str, Any]:
        """Plain values; null for a number that is not finite."""
        verdicts = Counter(tensor.verdict for tensor in self.tensors)
        value = {
            "equal": self.equal,
            "strict": self.strict,
            "passed": self.passed,
            "a": asdict(self.a),
            "b": asdict(self.b),
            "configuration": [asdict(field) for field in self.fields],
            "files": {"equal": self.files_equal, "differences": [asdict(file) for file in self.files]},
            "tensors": {
                "exact": verdicts["exact"],
                "rounded": verdicts["rounded"],
                "different": len(self.apart),
                "dtypes": self.dtypes,
                "not_finite": self.not_finite,
                "differences": [asdict(tensor) for tensor in self.apart],
            },
            "logits": {"not_computed": self.logits} if isinstance(self.logits, str) else asdict(self.logits),
        }
        return json.loads(json.dumps(value), parse_constant=lambda name: None)


SHOWN_TENSORS = 5
SHOWN_CHARACTERS = 60

_STATUS = {True: "PASS", False: "FAIL", None: "----"}


def format_report(report: Report) -> str:
    lines = [
        f"{label}  {side.path}: {side.kind}, {side.architecture}, {side.parameters:,} parameters"
        for label, side in (("A", report.a), ("B", report.b))
    ]
    parts = {"configuration": _fields, "files": _files, "tensors": _tensors, "logits": _logits}
    for name, describe in parts.items():
        headline, *details = describe(report)
        lines.append(f"{name:<14} {_STATUS[report.passed[name]]}  {headline}")
        lines += [f"{'':<21}{detail}" for detail in details]
    if report.failed:
        lines.append(f"different: {', '.join(report.failed)}")
    else:
        lines.append(f"equal, but for {', '.join(report.allowed)}" if report.allowed else "equal")
    return "\n".join(map(printable, lines))


def _fields(report: Report) -> Iterator[str]:
    yield f"{count(len(report.fields), 'field')} not equal" if report.fields else "every field is equal"
    for field in report.fields:
        a, b = (shortened(str(value), SHOWN_CHARACTERS) for value in (field.a, field.b))
        yield f"{field.name}: {a} in A, {b} in B" + " (allowed)" * field.allowed


def _files(report: Report) -> Iterator[str]:
    yield f"{report.files_equal} equal, {len(report.files)} not"
    for file in report.files:
        yield f"{file.name}: {file.how}" + " (allowed)" * file.allowed


def _tensors(report: Report) -> Iterator[str]:
    verdicts = Counter(tensor.verdict for tensor in report.tensors)
    yield ", ".join(f"{number:,} {verdict}" for verdict, number in verdicts.items())
    for a, b in report.dtypes:
        if a != b:
            yield f"dtypes: {a} in A, {b} in B"
    yield from (_describe(tensor) for tensor in report.apart[:SHOWN_TENSORS])
    if len(report.apart) > SHOWN_TENSORS:
        yield f"and {len(report.apart) - SHOWN_TENSORS:,} more, which --json lists"
    if report.not_finite:
        yield f"NaN or infinities in {count(len(report.not_finite), 'tensor')}, the first is {report.not_finite[0]}"


def _logits(report: Report) -> Iterator[str]:
    logits = report.logits
    if isinstance(logits, str):
        yield f"not computed: {logits}"
        return
    yield f"apart by {_amount(logits.worst_relative)} of a token's largest logit, {logits.tolerance:g} allowed"
    if logits.common_rope:
        yield "B computed with the rotary settings of A"
    if logits.rounded_to:
        yield f"weights of both rounded to {logits.rounded_to}"
    for sequence in logits.sequences:
        yield (
            f"{sequence.name}: {count(sequence.tokens, 'token')}, {_amount(sequence.relative)} "
            f"({_amount(sequence.largest)} absolute), same next token {sequence.same_choice:.1%}, "
            f"KL {_amount(sequence.divergence)}"
        )
    if logits.first_apart is not None:
        yield f"apart from {_state(logits, logits.first_apart)} on"
    yield f"worst behind {_state(logits, logits.worst_state)}"


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


def _state(logits: LogitsComparison, place: int) -> str:
    return f"{logits.name_of(place)} ({_amount(logits.states[place])})"


def _amount(value: float) -> str:
    return f"{value:.1e}" if value else "0"
