"""What shards hold, in numbers."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nemo_longpo.shards.reader import ShardReader


def inspect_shards(directory: Path, *, verify: bool) -> dict[str, Any]:
    """Counts, lengths, tokens per turn and reference margins; with `verify`, every hash, span and sum is recomputed.

    A margin is the reference's log p(chosen) − log p(rejected), summed over a document's turns and tokens.
    Raises InputError.
    """
    reader = ShardReader(directory)
    if verify:
        reader.verify()
    records = list(reader)
    lengths = reader.lengths()
    margins = [_total(record.ref_chosen_logps) - _total(record.ref_rejected_logps) for record in records]
    manifest = reader.manifest
    return {
        "directory": str(directory),
        "verified": verify,
        "files": len(manifest.files),
        "bytes": sum(file.bytes for file in manifest.files),
        "counts": asdict(manifest.counts),
        "longest_sequence_tokens": _spread(lengths[:, 0] + lengths[:, 1:].max(axis=1)),
        "length_histogram": dict(sorted(manifest.length_histogram.items(), key=lambda item: int(item[0]))),
        "turns_per_document": _spread([record.turns for record in records]),
        "chosen_tokens_per_turn": _spread([len(turn) for record in records for turn in record.ref_chosen_logps]),
        "rejected_tokens_per_turn": _spread([len(turn) for record in records for turn in record.ref_rejected_logps]),
        "reference_margin": _spread(margins),
        "reference_prefers_chosen": float(np.mean(np.asarray(margins) > 0)),
        "ref_context": manifest.ref_context,
        "reference": asdict(manifest.reference),
        "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
        "chat_template_hash": manifest.chat_template_hash,
        "vocab_size": manifest.vocab_size,
    }


def format_summary(summary: dict[str, Any]) -> str:
    """The summary as aligned lines for people."""
    lines = []
    for name, value in summary.items():
        label = name.replace("_", " ")
        if name == "length_histogram":
            text = ", ".join(f"≤{bucket}: {count}" for bucket, count in value.items())
        elif isinstance(value, dict):
            text = ", ".join(f"{key} {_number(item)}" for key, item in value.items())
        else:
            text = _number(value)
        lines.append(f"{label:26} {text}")
    return "\n".join(lines)


def _total(turns: tuple[np.ndarray, ...]) -> float:
    return float(sum(turn.sum(dtype=np.float64) for turn in turns))


def _spread(values: Any) -> dict[str, float]:
    array = np.asarray(values, dtype=np.float64)
    return {"min": float(array.min()), "mean": float(array.mean()), "max": float(array.max())}


def _number(value: Any) -> str:
    return (
        f"{value:.4g}"
        if isinstance(value, float) and not value.is_integer()
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )
