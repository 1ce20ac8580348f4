"""What shards hold, in numbers: the object that `longpo data inspect --json` prints."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from nemo_longpo.shards.reader import ShardReader

from .measures import Measures

_PERCENTILES = {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100}
SPREAD = (*_PERCENTILES, "mean")
_STEPS = (1, 2, 5, 10)
_SAME_EDGES = (
    ("tokens_per_sequence",),
    ("chosen_tokens_per_turn", "rejected_tokens_per_turn"),
    ("similarity_per_turn",),
    ("chosen_logp_per_token", "rejected_logp_per_token"),
    ("margin_per_document",),
)
_FIXED = {"similarity_per_turn": (0.0, 1.0)}


def summarise(reader: ShardReader, measures: Measures, *, verified: bool) -> dict[str, Any]:
    """Provenance, counts, and the spread of everything that can go wrong in preference data.

    A margin is the reference's log p(chosen) − log p(rejected) in nats, summed over the tokens of a turn or of all
    turns of a document; per token, it is the difference of the two answers' means. "Prefers chosen" is the share of
    margins above 0. `similarity_per_turn` is defined in similarity.py. A histogram's bin i is [edges[i], edges[i + 1]).
    """
    manifest = reader.manifest
    margins = measures.turn_margins
    token_margins = measures.chosen_means - measures.rejected_means
    values = {
        "tokens_per_sequence": measures.sequence_tokens,
        "turns_per_document": measures.turns,
        "chosen_tokens_per_turn": measures.chosen_tokens,
        "rejected_tokens_per_turn": measures.rejected_tokens,
        "length_difference_per_turn": measures.chosen_tokens - measures.rejected_tokens,
        "similarity_per_turn": measures.similarity,
        "chosen_logp_per_token": measures.chosen_means,
        "rejected_logp_per_token": measures.rejected_means,
        "margin_per_document": measures.document_margins,
        "margin_per_turn": margins,
        "margin_per_token": token_margins,
    }
    return {
        "directory": str(reader.directory),
        "verified": verified,
        "files": len(manifest.files),
        "bytes": sum(file.bytes for file in manifest.files),
        "counts": asdict(manifest.counts),
        "length_histogram": dict(sorted(manifest.length_histogram.items(), key=lambda item: int(item[0]))),
        "distributions": {name: _spread(array) for name, array in values.items()},
        "histograms": _histograms(values),
        "reference_prefers_chosen": {
            "documents": _share_above_zero(measures.document_margins),
            "turns": _share_above_zero(margins),
            "turns_per_token": _share_above_zero(token_margins),
        },
        "ref_context": manifest.ref_context,
        "reference": asdict(manifest.reference),
        "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
        "chat_template_hash": manifest.chat_template_hash,
        "vocab_size": manifest.vocab_size,
        "schema_version": manifest.schema_version,
        "generation": manifest.generation,
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    """Percentiles are interpolated."""
    found = {name: float(np.percentile(values, percent)) for name, percent in _PERCENTILES.items()}
    return found | {"mean": float(values.mean())}


def _share_above_zero(margins: np.ndarray) -> float:
    return float(np.mean(margins > 0))


def _histograms(values: dict[str, np.ndarray]) -> dict[str, dict[str, list[float]]]:
    found = {}
    for group in _SAME_EDGES:
        together = np.concatenate([values[name] for name in group])
        low, high = _FIXED.get(group[0], (float(together.min()), float(together.max())))
        edges = even_edges(low, high, whole=bool((together % 1 == 0).all()) and group[0] not in _FIXED)
        for name in group:
            found[name] = {"edges": edges, "counts": np.histogram(values[name], edges)[0].tolist()}
    return found


def even_edges(low: float, high: float, *, bins: int = 16, whole: bool = False) -> list[float]:
    """Round, evenly spaced edges around [low, high], with `high` below the last one; at most `bins` + 2 bins.

    With `whole`, a bin is at least 1 wide.
    """
    span = (high - low) / bins or 1.0
    power = 10.0 ** math.floor(math.log10(span))
    step = next(factor * power for factor in _STEPS if factor * power >= span * (1 - 1e-9))
    if whole:
        step = max(step, 1.0)
    first = math.floor(low / step + 1e-9)
    last = math.floor(high / step + 1e-9) + 1
    return [round(index * step, 10) for index in range(first, last + 1)]
