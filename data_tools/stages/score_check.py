"""Check the engine of `score`: score a few of its sequences again by plain Hugging Face forwards."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nemo_longpo import atomic, terminal
from nemo_longpo.errors import InputError

from ..engines.engine import Engine
from ..engines.hf_model import load_model
from ..runner.rows import SETTINGS_NAME
from ..settings import EngineSettings, ScoreSettings

REPORT_NAME = "verification.json"
# For longer sequences, a float32 forward on a CPU takes too long.
LONGEST = 32768


@dataclass(frozen=True)
class Scored:
    """A sequence that the engine has scored: one array of log-probs per span, which is one response."""

    document: str
    sequence: list[int]
    spans: list[tuple[int, int]]
    logps: list[np.ndarray]


@dataclass(frozen=True)
class Difference:
    """Differences of two scorings: absolute, per token (mean and max) and between the sums of whole responses."""

    mean: float
    max: float
    sum_mean: float
    sum_max: float


def compare(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> Difference:
    """Return the difference of two scorings of the same responses, in order; not finite if a log-prob is not."""
    pairs = [(left.astype(np.float64), right.astype(np.float64)) for left, right in zip(found, expected, strict=True)]
    tokens = np.abs(np.concatenate([left - right for left, right in pairs]))
    sums = np.abs([left.sum() - right.sum() for left, right in pairs])
    return Difference(float(tokens.mean()), float(tokens.max()), float(sums.mean()), float(sums.max()))


def allowed_mean(own: Difference | None, tokens: int, tolerance: float) -> float:
    """Return an engine's largest allowed mean difference to float32: (2 + 4 / sqrt(tokens)) * own + tolerance.

    `own` is the mean difference of Hugging Face itself in the engine's dtype, over the same tokens (None, 0: the engine
    runs in float32). Two roundings of one kind have similar errors, but not on the same tokens: the second term allows
    for chance in a mean over few tokens. A wrong RoPE base, a shifted span or other weights differ far more.
    """
    return (0.0 if own is None else (2 + 4 / tokens**0.5) * own.mean) + tolerance


class EngineCheck:
    """The check of one process; a context manager around its stage.

    `verification.json` is written with the first committed part, not before: a directory without parts is no output.
    A process that finds this file checks nothing.
    """

    def __init__(self, model: Path, common: EngineSettings, settings: ScoreSettings, output: Path):
        self._model, self._common, self._settings = model, common, settings
        self._output = output
        self._report: dict[str, Any] | None = None

    def __enter__(self) -> "EngineCheck":
        return self

    def __exit__(self, *_: object) -> None:
        self._publish()

    def check(self, engine: Engine, scored: Sequence[Scored]) -> None:
        """Check the scored sequences of a part before it is committed.

        Raises InputError if a log-prob is not finite, or if the sample differs from Hugging Face by more than
        `allowed_mean`.
        """
        _check_finite(scored)
        self._publish()
        if self._report is not None or (self._output / REPORT_NAME).is_file():
            return
        fitting = [item for item in scored if len(item.sequence) <= LONGEST]
        shortest_first = sorted(fitting, key=lambda item: (len(item.sequence), item.document, item.sequence))
        sample = shortest_first[: self._settings.verify_samples]
        if sample:
            self._report = self._verify(engine.dtype, sample)
        elif self._settings.verify_samples:
            tqdm.write(f"score: no sequence of at most {LONGEST} tokens to check the engine with", file=sys.stderr)

    def _verify(self, dtype: str, sample: list[Scored]) -> dict[str, Any]:
        device = self._device()
        found = [logps for item in sample for logps in item.logps]
        exact = self._score(sample, "float32", device)
        rounded = exact if dtype == "float32" else self._score(sample, dtype, device)
        own = None if dtype == "float32" else compare(rounded, exact)
        to_exact = compare(found, exact)
        tokens = sum(len(logps) for logps in found)
        allowed = allowed_mean(own, tokens, self._settings.verify_tolerance)
        numbers = (
            f"over {tokens} tokens of {', '.join(dict.fromkeys(item.document for item in sample))}, the engine's "
            f"log-probs in {dtype} differ from Hugging Face's in float32 by {to_exact.mean:.2g} on average "
            f"({to_exact.max:.2g} at most); {allowed:.2g} on average is allowed"
        )
        if not to_exact.mean <= allowed:
            raise InputError(
                f"{numbers}: check that the engine runs {self._model} with the same rope_theta and dtype, or raise "
                "verify_tolerance; the part was not written"
            )
        tqdm.write(terminal.printable(f"score: {numbers}"), file=sys.stderr)
        return {
            "engine_dtype": dtype,
            "device": str(device),
            "sample": [{"doc_id": item.document, "length": len(item.sequence)} for item in sample],
            "responses": len(found),
            "tokens": tokens,
            "allowed_mean": allowed,
            "engine_to_float32": asdict(to_exact),
            "engine_to_huggingface": asdict(compare(found, rounded)),
            "huggingface_to_float32": None if own is None else asdict(own),
        }

    @torch.inference_mode()
    def _score(self, sample: list[Scored], dtype: str, device: torch.device) -> list[np.ndarray]:
        """Return the responses' log-probs by one forward per sequence, without batches, padding or a cache."""
        model = load_model(self._model, dtype, self._common.rope_theta).to(device)
        responses = []
        for item in sample:
            ids = torch.tensor([item.sequence], device=device)
            first = min(start for start, _ in item.spans)
            logits = model(ids, use_cache=False, logits_to_keep=len(item.sequence) - first + 1).logits[0]
            logps = logits[:-1].float().log_softmax(-1).gather(-1, ids[0, first:, None])[:, 0].cpu().numpy()
            responses += [logps[start - first : end - first] for start, end in item.spans]
        return responses

    def _device(self) -> torch.device:
        """Return the device; "auto" is a GPU with room for the model in float32 beside the engine, else the CPU."""
        name = self._settings.verify_device
        if name == "auto":
            files = sum(path.stat().st_size for path in self._model.glob("*.safetensors"))
            # 16-bit files double in float32; a quarter more for activations.
            roomy = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 2.5 * files
            return torch.device("cuda" if roomy else "cpu")
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise InputError(f"verify_device {name!r} cannot be used ({error}); use cpu or cuda") from error

    def _publish(self) -> None:
        path = self._output / REPORT_NAME
        if self._report is not None and (self._output / SETTINGS_NAME).is_file() and not path.is_file():
            atomic.write_file(path, json.dumps(self._report, indent=2) + "\n", keep_existing=True)


def _check_finite(scored: Sequence[Scored]) -> None:
    for item in scored:
        if not all(np.isfinite(logps).all() for logps in item.logps):
            raise InputError(
                f"document {item.document!r}: the engine gives a log-prob that is not finite in a sequence of "
                f"{len(item.sequence)} tokens; run it with dtype float32 or bfloat16, within the model's own length"
            )
