"""The result of a comparison: which parts passed, and everything as one JSON object."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

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
