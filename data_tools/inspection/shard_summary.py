"""Summarise shards in numbers: the object that `longpo data inspect --json` prints.

Answers are compared token by token.
"""

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from nemo_longpo.shards import reader as shard_reader, schema

Ids = Sequence[int]
_SHORTEST_RUN = 2  # tokens in a row


def similarity(left: Ids, right: Ids) -> float:
    """Return 2 · L / (len(left) + len(right)) with L the tokens of a longest common subsequence.

    1 is equal, 0 is nothing shared; two empty answers are equal. Exact, in len(left) · len(right) / 64 steps of a
    machine word: two answers of 4,000 tokens take milliseconds.
    """
    if not len(left) + len(right):
        return 1.0
    # Hyyrö 2004: bit i of the row is 0 where left[: i + 1] has a longer common subsequence with the processed part of
    # `right` than left[:i].
    places: dict[int, int] = {}
    for index, token in enumerate(left):
        places[token] = places.get(token, 0) | 1 << index
    every = (1 << len(left)) - 1
    row = every
    for token in right:
        hits = row & places.get(token, 0)
        row = ((row + hits) | (row - hits)) & every
    return 2 * (len(left) - row.bit_count()) / (len(left) + len(right))


def differences(left: Ids, right: Ids) -> tuple[list[bool], list[bool]]:
    """Return for every token of both answers whether it belongs to a part in which they differ.

    A single shared token between two such parts counts as different: it is chance, and would split them.
    """
    differ = [True] * len(left), [True] * len(right)
    for start_left, start_right, length in SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks():
        at_start = start_left == start_right == 0
        at_end = start_left + length == len(left) and start_right + length == len(right)
        if length >= _SHORTEST_RUN or at_start or at_end:
            differ[0][start_left : start_left + length] = [False] * length
            differ[1][start_right : start_right + length] = [False] * length
    return differ


_PERCENTILES = {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100}
SPREAD = (*_PERCENTILES, "mean")
_SAME_EDGES = (
    ("tokens_per_sequence",),
    ("chosen_tokens_per_turn", "rejected_tokens_per_turn"),
    ("similarity_per_turn",),
    ("chosen_logp_per_token", "rejected_logp_per_token"),
    ("margin_per_document",),
)
_FIXED = {"similarity_per_turn": (0.0, 1.0)}


Values = dict[str, np.ndarray]
"""float64 arrays by name, over documents or over turns (all documents' turns in order)."""


def measure(records: Iterable[schema.PairRecord]) -> Values:
    """Read every record once and return its numbers; no token ids are kept.

    Log-probs are the reference's, in nats, over an answer's tokens with the end of turn. A margin is log p(chosen) −
    log p(rejected), summed over the tokens of a turn or of all turns of a document; per token, it is the difference of
    the two answers' means. A sequence is the trunk and the longer branch. Prompts are the short ones, if every record
    has them.
    """
    documents, turns, prompts = array("d"), array("d"), array("d")
    for record in records:
        trunk, chosen, rejected = record.lengths
        documents.extend((trunk + max(chosen, rejected), record.turns))
        prompts.extend(map(len, record.short_prompt_ids or ()))
        for turn in range(record.turns):
            left = record.chosen_ids[slice(*record.chosen_spans[turn])].tolist()
            right = record.rejected_ids[slice(*record.rejected_spans[turn])].tolist()
            sums = logp_sum(record.ref_chosen_logps[turn]), logp_sum(record.ref_rejected_logps[turn])
            turns.extend((len(left), len(right), *sums, similarity(left, right)))
    lengths, counts = np.array(documents).reshape(-1, 2).T
    chosen_tokens, rejected_tokens, chosen_sums, rejected_sums, shared = np.array(turns).reshape(-1, 5).T
    chosen_means, rejected_means = (
        chosen_sums / np.maximum(chosen_tokens, 1),
        rejected_sums / np.maximum(rejected_tokens, 1),
    )
    margins, owner = chosen_sums - rejected_sums, np.repeat(np.arange(len(counts)), counts.astype(np.int64))
    return {
        "tokens_per_sequence": lengths,
        "turns_per_document": counts,
        "chosen_tokens_per_turn": chosen_tokens,
        "rejected_tokens_per_turn": rejected_tokens,
        **({"prompt_tokens_per_turn": np.array(prompts)} if len(prompts) == len(chosen_tokens) else {}),
        "length_difference_per_turn": chosen_tokens - rejected_tokens,
        "similarity_per_turn": shared,
        "chosen_logp_per_token": chosen_means,
        "rejected_logp_per_token": rejected_means,
        "margin_per_document": np.bincount(owner, weights=margins, minlength=len(counts)),
        "margin_per_turn": margins,
        "margin_per_token": chosen_means - rejected_means,
    }


def logp_sum(logps: np.ndarray) -> float:
    """Return the sum in float64, to keep precision over thousands of float32 values."""
    return float(logps.sum(dtype=np.float64))


def summarise(reader: shard_reader.ShardReader, values: Values, *, verified: bool) -> dict[str, Any]:
    """Return provenance, counts, and the spread of everything that can go wrong in preference data.

    "Prefers chosen" is the share of margins above 0. A histogram's bin i is [edges[i], edges[i + 1]).
    """
    manifest = reader.manifest
    percents = list(_PERCENTILES.values())
    return {
        "directory": str(reader.directory),
        "verified": verified,
        "files": len(manifest.files),
        "bytes": sum(file.bytes for file in manifest.files),
        "counts": asdict(manifest.counts),
        "measured": len(values["turns_per_document"]),
        "length_histogram": dict(sorted(manifest.length_histogram.items(), key=lambda item: int(item[0]))),
        "distributions": {
            name: dict(zip(SPREAD, [*np.percentile(array, percents).tolist(), float(array.mean())], strict=True))
            for name, array in values.items()
        },
        "histograms": _histograms(values),
        "reference_prefers_chosen": {
            what: float(np.mean(values[name] > 0))
            for what, name in (
                ("documents", "margin_per_document"),
                ("turns", "margin_per_turn"),
                ("turns_per_token", "margin_per_token"),
            )
        },
        "ref_context": manifest.ref_context,
        "reference": asdict(manifest.reference),
        "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
        "chat_template_hash": manifest.chat_template_hash,
        "vocab_size": manifest.vocab_size,
        "schema_version": manifest.schema_version,
        "generation": manifest.generation,
    }


def _histograms(values: dict[str, np.ndarray]) -> dict[str, dict[str, list[float]]]:
    histograms = {}
    for group in _SAME_EDGES:
        together = np.concatenate([values[name] for name in group])
        low, high = _FIXED.get(group[0], (float(together.min()), float(together.max())))
        edges = even_edges(low, high, whole=bool((together % 1 == 0).all()) and group[0] not in _FIXED)
        for name in group:
            histograms[name] = {"edges": edges, "counts": np.histogram(values[name], edges)[0].tolist()}
    return histograms


def even_edges(low: float, high: float, *, bins: int = 16, whole: bool = False) -> list[float]:
    """Return round, evenly spaced edges around [low, high], with `high` below the last one; at most `bins` + 2 bins.

    With `whole`, a bin is at least 1 wide.
    """
    span = (high - low) / bins or 1.0
    power = 10.0 ** math.floor(math.log10(span))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span * (1 - 1e-9))
    if whole:
        step = max(step, 1.0)
    first = math.floor(low / step + 1e-9)
    last = math.floor(high / step + 1e-9) + 1
    return [round(index * step, 10) for index in range(first, last + 1)]
