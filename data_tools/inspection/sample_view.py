"""The page's view of one document: its context, and turn by turn the chunk, the instruction and both answers.

Token ids become readable pieces of text. A token may be a part of a character, and may decode differently at the start.
So tokens are decoded after the tokens before them, and the tokens of one character stay together.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any, NamedTuple

import numpy as np
import regex

from nemo_longpo.shards.schema import PairRecord, Span, spans_to_mask
from nemo_longpo.terminal import number

from .drawings import signed
from .shard_summary import differences, logp_sum, similarity

_LEAD = 8  # tokens to decode before the first one
_LONGEST_GROUP = 8
_AROUND = 24  # tokens to look at on both sides of a cut
_BROKEN = "\ufffd"  # how a part of a character decodes


@dataclass(frozen=True)
class Group:
    """Tokens [start, end) of a list, which decode to `text` together."""

    start: int
    end: int
    text: str
    special: bool = False


class TokenText:
    """Decodes with a Hugging Face tokenizer; without one, the text of a token is its id."""

    def __init__(self, tokenizer: Any | None):
        self._tokenizer = tokenizer
        added = [] if tokenizer is None else tokenizer.added_tokens_decoder.items()
        self._special = frozenset(token for token, added_token in added if added_token.special)

    def groups(self, ids: Sequence[int], start: int = 0, end: int | None = None) -> list[Group]:
        """Return groups that cover ids[start:end]. Tokens before `start` only help to decode."""
        end = len(ids) if end is None else end
        if self._tokenizer is None:
            return [Group(at, at + 1, f"{ids[at]} ") for at in range(start, end)]
        spans = self._whole_characters(ids, start, end)
        leads = [max(0, start - _LEAD), *(first for first, _ in spans)]
        return [
            Group(first, last, self._text_behind(ids[lead:first], ids[first:last]), ids[last - 1] in self._special)
            for lead, (first, last) in zip(leads, spans, strict=False)
        ]

    def elided(self, ids: Sequence[int], start: int, end: int, head: int, tail: int) -> list[tuple[int, int]]:
        """Return the ranges of ids[start:end] to show: all, or about `head` tokens at its start and `tail` at its end.

        Cuts are made between two characters as readers see them (grapheme clusters).
        """
        first, last = self._border(ids, start + head, end), self._border(ids, end - tail, end)
        return [(start, end)] if end - start <= head + tail or first >= last else [(start, first), (last, end)]

    def _border(self, ids: Sequence[int], at: int, end: int) -> int:
        """Return the first place from `at` on that is not inside a grapheme cluster."""
        groups = self.groups(ids, max(at - _AROUND, 0), min(at + _AROUND, end))
        borders = {cluster.start() for cluster in regex.finditer(r"\X", "".join(group.text for group in groups))}
        length = 0
        for group in groups:
            if group.start >= at and length in borders:
                return group.start
            length += len(group.text)
        return at

    def _whole_characters(self, ids: Sequence[int], start: int, end: int) -> list[tuple[int, int]]:
        """Return the shortest spans that decode to whole characters; tokens of an incomplete one are single."""
        spans, first = [], start
        for last in range(start + 1, end + 1):
            if self._is_broken(ids[first:last]):
                later = next((at for at in range(first + 1, last) if not self._is_broken(ids[at:last])), None)
                if later is None and last < end and last - first < _LONGEST_GROUP:
                    continue
                if later is not None:
                    spans.append((first, later))
                    first = later
            spans.append((first, last))
            first = last
        return spans

    def _text_behind(self, lead: Sequence[int], ids: Sequence[int]) -> str:
        """Return what `ids` add to the text of `lead`."""
        before, whole, own = self._decode(lead), self._decode([*lead, *ids]), self._decode(ids)
        pairs = zip(before, whole, strict=False)
        text = whole[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) :]
        # Some decoders fail on a whole run of bytes because of a broken character in `lead`.
        return own if _BROKEN in text and _BROKEN not in own else text

    def _is_broken(self, ids: Sequence[int]) -> bool:
        return _BROKEN in self._decode(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        assert self._tokenizer is not None
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


MOST_TURNS = 8  # of a document
CONTEXT_END = 160  # tokens at either end of a context or an instruction
CHUNK_END = 1024  # tokens at either end of a chunk
ANSWER_START, ANSWER_END = 384, 128  # tokens shown of a long answer; the others are counted and summed
SHADES = (0.001, 0.01, 0.05, 0.2, 0.5, 0.9)  # a token's shade, by its probability: the lower, the darker
_VISIBLE = str.maketrans({"\n": "↵\n", "\t": "⇥\t", "\r": "␍"})


class Token(NamedTuple):
    """One token, or several that make one character; `note` holds their ids and log-probs."""

    classes: str
    note: str
    text: str


def document_view(record: PairRecord, text: TokenText) -> dict[str, Any]:
    """Return a document's context and turns. Passages are lists of (kind, words), as `_passage` makes them.

    A turn's short prompt is shown where its chunk cannot be, for it is the chunk and the instruction.
    """
    trunk = len(record.trunk_ids)
    sides = {
        "chosen": (record.chosen_ids, record.chosen_spans, record.ref_chosen_logps),
        "rejected": (record.rejected_ids, record.rejected_spans, record.ref_rejected_logps),
    }
    ids = {side: np.concatenate([record.trunk_ids, branch]).tolist() for side, (branch, _, _) in sides.items()}
    ignored = spans_to_mask(record.nll_ignore_spans, len(ids["chosen"]))

    def passage(start: int, end: int, most: int) -> list[tuple[str, str]]:
        return list(_passage(ids["chosen"], (start, end), ignored, most, text))

    turns, last_end = [], 0
    for turn in range(min(record.turns, MOST_TURNS)):
        spans = {side: tuple((spans[turn] + trunk).tolist()) for side, (_, spans, _) in sides.items()}
        logps = {side: values[turn] for side, (_, _, values) in sides.items()}
        answers = [ids[side][slice(*spans[side])] for side in sides]
        chunk = None if record.chunk_spans is None else record.chunk_spans[turn].tolist()
        shown = chunk is not None and chunk[0] < chunk[1]
        prompt = [] if shown or record.short_prompt_ids is None else record.short_prompt_ids[turn].tolist()
        turns.append(
            {
                "margin": logp_sum(logps["chosen"]) - logp_sum(logps["rejected"]),
                "similarity": similarity(*answers),
                "chunk": chunk,
                "chunk_passage": passage(chunk[0], chunk[1], CHUNK_END) if chunk else [],
                "prompt_tokens": len(prompt),
                "prompt_passage": list(_passage(prompt, (0, len(prompt)), np.zeros(len(prompt)), CHUNK_END, text)),
                "instruction": passage(last_end, spans["chosen"][0], CONTEXT_END) if turn else [],
                "answers": [
                    _answer(side, ids[side], spans[side], logps[side], differ, text)
                    for side, differ in zip(sides, differences(*answers), strict=True)
                ],
            }
        )
        last_end = spans["chosen"][1]
    return {"context": passage(0, trunk, CONTEXT_END), "turns": turns, "left_out": max(record.turns - MOST_TURNS, 0)}


def _passage(ids: list[int], span: Span, ignored: np.ndarray, most: int, text: TokenText) -> Iterator[tuple[str, str]]:
    """Yield (kind, words) of ids[start:end] with `most` tokens at either end.

    The kinds are "text", "template" (what the NLL leaves out, line breaks as signs to save room) and "elided".
    """
    shown = text.elided(ids, *span, most, most)
    for first, last in shown:
        if first > span[0]:
            yield "elided", f"… {number(first - shown[0][1])} tokens not shown …"
        for template, groups in groupby(text.groups(ids, first, last), key=lambda group: bool(ignored[group.start])):
            words = "".join(group.text for group in groups)
            yield ("template", words.replace("\n", "↵")) if template else ("text", words)


def _answer(
    side: str, ids: list[int], span: Span, logps: np.ndarray, differ: list[bool], text: TokenText
) -> dict[str, Any]:
    """Return an answer's facts and tokens; a string among the tokens replaces those left out."""
    start, end = span
    total = logp_sum(logps)
    tokens: list[Token | str] = []
    shown = text.elided(ids, start, end, ANSWER_START, ANSWER_END)
    for first, last in shown:
        if first > start:
            left_out = logps[shown[0][1] - start : first - start]
            tokens.append(f"… {number(len(left_out))} tokens, Σ log p {signed(logp_sum(left_out))}, not shown …")
        for group in text.groups(ids, first, last):
            at = slice(group.start - start, group.end - start)
            shade = f"q{len(SHADES) - bisect_right(SHADES, math.exp(min(logp_sum(logps[at]), 0.0)))}"
            blank = group.text != "" and not group.text.strip(" ")
            notes = [
                f"token {token}: log p {logp:.4f}".replace("-", "−") + f", p {math.exp(min(logp, 0.0)):.3g}"
                for token, logp in zip(ids[group.start : group.end], logps[at].tolist(), strict=True)
            ]
            tokens.append(
                Token(
                    shade + " d" * any(differ[at]) + " s" * group.special + " w" * blank,
                    "\n".join(notes),
                    # White space that is easy to miss is shown as a sign.
                    "·" * len(group.text) if blank else group.text.translate(_VISIBLE) or "∅",
                )
            )
    facts = f"{number(len(logps))} tokens · Σ log p {signed(total)} · mean {signed(total / max(len(logps), 1))}"
    return {"side": side, "facts": facts, "tokens": tokens}
