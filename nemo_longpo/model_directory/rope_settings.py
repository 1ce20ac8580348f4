"""RoPE settings: the base and the scaling of a model, checked, as `config.json` spells them and as Python types.

Fields are named as in Hugging Face's `rope_scaling`. `attention/rope.py` computes the angles.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.typed_fields import is_whole


@dataclass(frozen=True)
class LinearScaling:
    """All positions divided by `factor`; arXiv 2306.15595."""

    factor: float

    def __post_init__(self) -> None:
        _require_number("factor", self.factor, at_least=1)

    @property
    def magnitude(self) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """Fast frequencies stay, slow ones are divided by `factor`, with a ramp between; arXiv 2309.00071.

    A frequency is fast if it turns more than `beta_fast` times within the original length, and slow if it turns less
    than `beta_slow` times; `truncate` widens the ramp to whole dimensions. Queries and keys grow by `attention_factor`:
    by default `m(1)`, or `m(mscale) / m(mscale_all_dim)` where both are given, with `m(x) = 0.1 · x · ln(factor) + 1`.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        _require_number("factor", self.factor, at_least=1)
        _require_length(self.original_max_position_embeddings)
        _require_number("beta_slow", self.beta_slow, above=0)
        _require_number("beta_fast", self.beta_fast, at_least=self.beta_slow)
        if not isinstance(self.truncate, bool):
            raise InputError(f"truncate is {self.truncate!r}, not true or false")
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            if getattr(self, name) is not None:
                _require_number(name, getattr(self, name), above=0)

    @property
    def magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale is None or self.mscale_all_dim is None:
            return self._growth(1)
        return self._growth(self.mscale) / self._growth(self.mscale_all_dim)

    def _growth(self, scale: float) -> float:
        return 0.1 * scale * math.log(self.factor) + 1.0


@dataclass(frozen=True)
class Llama3Scaling:
    """Slow frequencies are divided as in YaRN, with the ramp over wavelengths; queries and keys do not grow.

    Wavelengths below `L / high_freq_factor` stay and those above `L / low_freq_factor` are stretched by `factor`, for
    the original length L; Llama 3.1's model card and reference code.
    """

    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float
    high_freq_factor: float

    def __post_init__(self) -> None:
        _require_number("factor", self.factor, at_least=1)
        _require_length(self.original_max_position_embeddings)
        _require_number("low_freq_factor", self.low_freq_factor, above=0)
        _require_number("high_freq_factor", self.high_freq_factor, above=self.low_freq_factor)

    @property
    def magnitude(self) -> float:
        return 1.0


RopeScaling = LinearScaling | YarnScaling | Llama3Scaling
SCALINGS: dict[str, type[RopeScaling]] = {"linear": LinearScaling, "yarn": YarnScaling, "llama3": Llama3Scaling}

# `rope_theta` stands here in transformers 5; `finetuned` is a remark that some early YaRN models carry.
_NOT_ABOUT_SCALING = {"rope_type", "type", "rope_theta", "finetuned"}


@dataclass(frozen=True)
class RopeSettings:
    """The base θ and the scaling, if any: all that angles and scores depend on."""

    theta: float
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        _require_number("rope_theta", self.theta, above=1)

    @property
    def attention_factor(self) -> float:
        """a, by which rotated queries and keys are multiplied."""
        return 1.0 if self.scaling is None else self.scaling.magnitude

    def require_reach(
        self, positions: int, head_size: int, where: str, *, length: str, base: str = "", spare: int = 0
    ) -> None:
        """Raises InputError, beginning with `where`, if heads of size D cannot tell so many positions apart.

        The slowest rotation turns by θ^(−(D−2)/D) per position (arXiv 2104.09864), so it repeats after 2π·θ^((D−2)/D):
        no training helps beyond. A scaling slows it by `factor` at most. `length`, with `spare` positions behind it,
        and `base` name what may be set to other values.
        """
        if head_size <= 2:
            return
        part = (head_size - 2) / head_size
        slow = 2 * math.pi * (1.0 if self.scaling is None else self.scaling.factor)
        most = math.floor(slow * self.theta**part)
        if positions <= most:
            return
        advice = [f"{base} of {_rounded_up((positions / slow) ** (1 / part)):g} or more"] if base else []
        advice += [f"{length} of at most {most - spare:,}"] if most > spare else []
        raise InputError(
            f"{where}: {positions - spare:,} tokens{f' with {spare:,} for answers' if spare else ''} cannot be told "
            f"apart: with RoPE base {self.theta:g} even the slowest rotation repeats after {most:,} positions; give "
            f"{' or '.join(advice)}"
        )

    def softmax_scale(self, head_size: int) -> float:
        """a² / √D: queries and keys need no factor of their own when the scores have it."""
        return self.attention_factor**2 * float(head_size**-0.5)


def parse_scaling(
    settings: Mapping[str, Any] | None, where: str, max_position_embeddings: int | None = None
) -> RopeScaling | None:
    """The scaling that a `rope_scaling` object describes; None if the angles are plain.

    A scaling without an original length takes `max_position_embeddings`, as in Hugging Face. Raises InputError, which
    names the file `where`, if the scaling is not supported, not complete or not possible.
    """
    given = {name: value for name, value in (settings or {}).items() if value is not None}
    kind = given.get("rope_type") or given.get("type") or "default"
    given = {name: value for name, value in given.items() if name not in _NOT_ABOUT_SCALING}
    if not isinstance(kind, str) or kind not in {*SCALINGS, "default"}:
        raise InputError(
            f"{where}: rope scaling of type {kind} is not supported; choose {', '.join(SCALINGS)} or none "
            "(`longpo convert import --rope-scaling`)"
        )
    known = {item.name: item.default for item in fields(SCALINGS[kind])} if kind in SCALINGS else {}
    if "original_max_position_embeddings" in known and max_position_embeddings:
        given.setdefault("original_max_position_embeddings", max_position_embeddings)
    if unknown := sorted(given.keys() - known.keys()):
        raise InputError(f"{where}: rope scaling of type {kind} has no setting {', '.join(unknown)}; remove it")
    if missing := [name for name, default in known.items() if default is MISSING and name not in given]:
        raise InputError(f"{where}: rope scaling of type {kind} needs {', '.join(missing)}; add it")
    try:
        return None if kind == "default" else SCALINGS[kind](**given)
    except InputError as error:
        raise InputError(f"{where}: rope scaling of type {kind}: {error}") from None


def scaling_settings(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The `rope_scaling` object of a scaling: plain values, complete without the rest of a `config.json`."""
    if scaling is None:
        return None
    (kind,) = (name for name, kind in SCALINGS.items() if isinstance(scaling, kind))
    return {"rope_type": kind, **{name: value for name, value in asdict(scaling).items() if value is not None}}


def usable_positions(length: int | None, scaling: RopeScaling | None) -> int | None:
    """Positions that a model is made for, by its configuration's `length` (`max_position_embeddings`).

    A linear or YaRN scaling may stand beside the length before it (as in Qwen2.5 and vLLM) or after it, so the larger
    reading counts. None if the configuration does not say.
    """
    if length is None or scaling is None or isinstance(scaling, Llama3Scaling):
        return length
    unscaled = scaling.original_max_position_embeddings if isinstance(scaling, YarnScaling) else length
    return max(length, int(unscaled * scaling.factor))


def _require_number(name: str, value: object, *, at_least: float = -math.inf, above: float = -math.inf) -> None:
    number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not (number and value >= at_least and value > above):  # type: ignore[operator]
        wanted = f"above {above:g}" if above > -math.inf else f"of at least {at_least:g}"
        raise InputError(f"{name} is {value!r}; it must be a number {wanted}")


def _rounded_up(value: float) -> float:
    """To two digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit


def _require_length(value: object) -> None:
    if not is_whole(value):
        raise InputError(f"original_max_position_embeddings is {value!r}; it must be a whole number of positions")
