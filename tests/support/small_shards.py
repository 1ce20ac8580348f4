"""Shards of a few small records, and how to tamper with their manifest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nemo_longpo.shards.manifest import Provenance, ReferenceModel
from nemo_longpo.shards.schema import PairRecord
from nemo_longpo.shards.writer import ShardWriter

PROVENANCE = Provenance(
    tokenizer_fingerprint="a" * 64,
    chat_template_hash="b" * 64,
    vocab_size=100,
    reference=ReferenceModel("c" * 64, {"rope_theta": 1e4}, "float32"),
    ref_context="short",
    generation={"respond": {"max_new_tokens": 8}},
)


def make_record(index: int, **changes: object) -> PairRecord:
    """Trunk of 5 + index tokens; chosen turns [0, 2) and [4, 7); rejected turns [0, 1) and [3, 5)."""
    values: dict = {
        "doc_id": f"document {index}",
        "trunk_ids": np.arange(5 + index, dtype=np.int32),
        "chosen_ids": np.arange(10, 17, dtype=np.int32),
        "rejected_ids": np.arange(20, 25, dtype=np.int32),
        "chosen_spans": np.array([[0, 2], [4, 7]], dtype=np.int32),
        "rejected_spans": np.array([[0, 1], [3, 5]], dtype=np.int32),
        "nll_ignore_spans": np.array([[0, 1], [7 + index, 8 + index]], dtype=np.int32),
        "ref_chosen_logps": (np.full(2, -0.5, np.float32), np.full(3, -index, np.float32)),
        "ref_rejected_logps": (np.full(1, -1.5, np.float32), np.full(2, -2.5, np.float32)),
        "ref_context": "short",
    }
    return PairRecord(**(values | changes))


def write(directory: Path, *records: PairRecord, where: str = "") -> None:
    with ShardWriter(directory, PROVENANCE, max_records=2) as writer:
        for record in records:
            writer.add(record, where=where)


def edit_manifest(shards: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = shards / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
