"""Random preference pairs for tests: unequal lengths, several turns, ignored spans."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from support import tiny_models as tiny
from transformers import PreTrainedTokenizerBase

from nemo_longpo.shards.fingerprint import tokenizer_fingerprint
from nemo_longpo.shards.manifest import Provenance, ReferenceModel
from nemo_longpo.shards.schema import PairRecord
from nemo_longpo.shards.writer import ShardWriter


def random_record(rng: np.random.Generator, vocab_size: int, trunk: int, turns: int, doc_id: str = "doc") -> PairRecord:
    """A record of `turns` turns after a trunk of `trunk` random tokens; responses of 1 to 9 tokens, gaps of 2 to 5."""
    instructions = [rng.integers(0, vocab_size, rng.integers(2, 6)) for _ in range(turns - 1)]
    sides = [_random_branch(rng, vocab_size, instructions) for _ in ("chosen", "rejected")]
    (chosen_ids, chosen_spans, chosen_logps), (rejected_ids, rejected_spans, rejected_logps) = sides
    return PairRecord(
        doc_id=doc_id,
        trunk_ids=rng.integers(0, vocab_size, trunk).astype(np.int32),
        chosen_ids=chosen_ids,
        rejected_ids=rejected_ids,
        chosen_spans=chosen_spans,
        rejected_spans=rejected_spans,
        nll_ignore_spans=np.array([[0, 2], [trunk - 2, trunk]], np.int32),
        ref_chosen_logps=chosen_logps,
        ref_rejected_logps=rejected_logps,
        ref_context="short",
    )


def uneven_records(vocab_size: int) -> list[PairRecord]:
    """Four records of 1 to 3 turns and unequal lengths; some turn straddles a context-parallel shard boundary."""
    rng = np.random.default_rng(7)
    return [random_record(rng, vocab_size, 13 + 11 * i, turns, f"doc-{i}") for i, turns in enumerate((1, 3, 2, 3))]


def edge_records(vocab_size: int) -> list[PairRecord]:
    """Trunks of one token, of three (fewer than 2 · cp, and ranks without any) and without padding; equal answers."""
    rng = np.random.default_rng(11)
    one, three = (random_record(rng, vocab_size, trunk, 2, f"trunk-of-{trunk}") for trunk in (1, 3))
    equal = random_record(rng, vocab_size, 21, 3, "equal-branches")
    same_length = {
        "rejected_ids": rng.permutation(equal.chosen_ids),
        "rejected_spans": equal.chosen_spans,
        "ref_rejected_logps": tuple(2 * logps for logps in equal.ref_chosen_logps),
    }
    return [
        replace(one, nll_ignore_spans=np.array([[0, 1]], np.int32)),
        replace(three, nll_ignore_spans=np.array([[0, 1], [2, 3]], np.int32)),
        random_record(rng, vocab_size, 65, 1, "unpadded-trunk"),
        replace(equal, **same_length),
    ]


def with_short_prompts(records: list[PairRecord], vocab_size: int) -> list[PairRecord]:
    """Give every turn a random short prompt: of 1 token, of 6, of 11, …"""
    rng = np.random.default_rng(13)

    def prompts(record: PairRecord) -> tuple[np.ndarray, ...]:
        return tuple(rng.integers(0, vocab_size, 1 + 5 * turn).astype(np.int32) for turn in range(record.turns))

    return [replace(record, short_prompt_ids=prompts(record)) for record in records]


def _random_branch(rng: np.random.Generator, vocab_size: int, instructions: list[np.ndarray]):
    ids: list[np.ndarray] = []
    spans, logps, place = [], [], 0
    for instruction in [np.empty(0, int), *instructions]:
        response = rng.integers(0, vocab_size, rng.integers(1, 10))
        ids += [instruction, response]
        spans.append((place + len(instruction), place + len(instruction) + len(response)))
        place = spans[-1][1]
        logps.append(-rng.random(len(response)).astype(np.float32) * 4)
    return np.concatenate(ids).astype(np.int32), np.array(spans, np.int32), tuple(logps)


def write_shards(
    directory: Path,
    records: list[PairRecord],
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    weights_sha256: str = "0" * 64,
    reference: ReferenceModel | None = None,
) -> Path:
    """Write a shard directory for `tokenizer`, by default with an arbitrary reference."""
    reference = reference or ReferenceModel(weights_sha256, rope={}, dtype="float32")
    provenance = Provenance(
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        chat_template_hash="0" * 64,
        vocab_size=vocab_size,
        reference=reference,
        ref_context=records[0].ref_context,
        generation={},
    )
    with ShardWriter(directory, provenance) as writer:
        for record in records:
            writer.add(record)
    return directory


def write_tiny_shards(directory: Path, records: list[PairRecord], family: str = "mistral") -> Path:
    """Write shards for the tokenizer and the vocabulary of a family's tiny model."""
    tokenizer = tiny.tiny_tokenizer(tiny.DEFAULT_STYLE[family])
    return write_shards(directory, records, tokenizer, tiny.tiny_model(family, tokenizer).config.vocab_size)


def plain_record(record: PairRecord) -> dict[str, list]:
    """Return a record in the form of `reference.longpo_step`, which does not use our classes."""
    return {
        "trunk": record.trunk_ids.tolist(),
        "chosen": record.chosen_ids.tolist(),
        "rejected": record.rejected_ids.tolist(),
        "chosen_spans": record.chosen_spans.tolist(),
        "rejected_spans": record.rejected_spans.tolist(),
        "ignore_spans": record.nll_ignore_spans.tolist(),
        "ref_chosen": [turn.tolist() for turn in record.ref_chosen_logps],
        "ref_rejected": [turn.tolist() for turn in record.ref_rejected_logps],
        "short_prompts": [turn.tolist() for turn in record.short_prompt_ids or ()],
    }
