"""What a run compares at its start: log-probs of its policy with those that a reference model left in the shards.

A policy with the weights of the reference must give the same numbers on what the reference read, once queries and keys
are turned by the reference's RoPE. Pure: the forward is the caller's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.model_directory.rope_settings import RopeSettings

from .manifest import Manifest
from .reader import ShardReader
from .schema import PairRecord

LONGEST = 32768
"""Tokens of a prompt with its answers; a forward of more takes too long for a check."""
CANDIDATES = 16
"""Documents, spread over the shards, of which the shortest are compared."""
ALLOWED_MEAN = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Mean absolute difference per token that two programs of one model may show in a dtype. Between float32 programs it is
some 1e-6, between bfloat16 ones up to 0.03; another model or template gives more than these bounds."""


@dataclass(frozen=True)
class Deviation:
    """Absolute differences per token: `documents` in the order compared, of each the tokens, their mean and their
    maximum (nats); not finite where a log-prob is not."""

    documents: tuple[str, ...]
    tokens: tuple[int, ...]
    means: tuple[float, ...]
    maxima: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.average(self.means, weights=self.tokens))

    @property
    def max(self) -> float:
        return float(np.max(self.maxima))

    @property
    def worst(self) -> str:
        """The document with the largest mean; one that is not finite counts as the largest."""
        return self.documents[int(np.argmax(np.nan_to_num(self.means, nan=np.inf)))]

    def __str__(self) -> str:
        return (
            f"over {sum(self.tokens)} answer tokens of {len(self.documents)} document(s) by {self.mean:.2g} on average "
            f"and {self.max:.2g} at most (the most in document {self.worst!r})"
        )


def samples(reader: ShardReader, count: int, longest: int) -> list[PairRecord]:
    """Return what to compare: `count` pairs, or fewer, of at most `longest` tokens, the shortest of `CANDIDATES`.

    Of a reference that read the short context, each is one turn behind its short prompt; none if the shards do not hold
    the prompts. Of one that read the whole document, each is a record as it is trained. Every response token is scored,
    and nothing else. Raises InputError if a record is damaged.
    """
    places = np.unique(np.linspace(0, len(reader) - 1, min(len(reader), CANDIDATES), dtype=int)) if len(reader) else []
    found = [pair for record in map(reader.__getitem__, places) for pair in _as_read(record)]
    return sorted((pair for pair in found if tokens(pair) <= longest), key=tokens)[:count]


def tokens(record: PairRecord) -> int:
    """Tokens of the trunk and the longer branch."""
    trunk, chosen, rejected = record.lengths
    return trunk + max(chosen, rejected)


def _as_read(record: PairRecord) -> list[PairRecord]:
    if record.ref_context == "long":
        return [replace(record, nll_ignore_spans=np.array([[0, len(record.trunk_ids)]], np.int32))]
    prompts = record.short_prompt_ids
    if prompts is None:
        return []
    return [record.turn_alone(min(range(record.turns), key=lambda turn: len(prompts[turn])))]


def deviation(pairs: Sequence[PairRecord], sums: NDArray[np.float64]) -> Deviation:
    """Return the deviation of `pairs` from `sums`, float64 [ranks, pairs, 3]: (tokens, Σ |difference|, max) of what
    each rank saw. Ranks that saw the same tokens do no harm to a mean, nor do ranks that saw none."""
    seen, total, _ = sums.sum(0).T
    return Deviation(
        documents=tuple(pair.doc_id for pair in pairs),
        tokens=tuple(sum(map(len, (*pair.ref_chosen_logps, *pair.ref_rejected_logps))) for pair in pairs),
        means=tuple((total / seen).tolist()),
        maxima=tuple(sums[:, :, 2].max(0).tolist()),
    )


def allowed_mean(*dtypes: str) -> float:
    """Return the largest mean difference of one model's log-probs in these dtypes: the coarsest counts. An unknown one
    counts as bfloat16."""
    return max(ALLOWED_MEAN.get(dtype, ALLOWED_MEAN["bfloat16"]) for dtype in dtypes)


def reference_rope(manifest: Manifest, policy: RopeSettings) -> RopeSettings:
    """Return the reference's RoPE, which a model with the policy's can take on for the comparison.

    Raises InputError, with a text to stand behind "since", if it cannot: the manifest does not record the RoPE, or one
    that is not trained here, or one that scales the scores otherwise, for which layers are built.
    """
    recorded = manifest.reference.rope
    if not recorded:
        raise InputError("the shards do not record the reference's RoPE")
    try:
        reference = ModelConfig.parse(recorded, "the shards' manifest").rope
    except InputError as error:
        raise InputError(f"the reference has a RoPE that is not trained here ({error})") from None
    if reference.attention_factor != policy.attention_factor:
        raise InputError(
            f"the reference's RoPE scaling multiplies queries and keys by {reference.attention_factor:g}, and the "
            f"policy's by {policy.attention_factor:g}"
        )
    return reference
