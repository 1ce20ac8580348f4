"""A comparison for people: one line per part, its details indented below, and a last line that sums it up."""

from collections import Counter
from collections.abc import Iterator

from nemo_longpo.terminal import count, printable, shortened

from .comparison_report import Report
from .logits import LogitsComparison
from .tensors import TensorComparison

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
