"""A user message between the template's pieces, tokenised as the whole conversation would be.

Tokenizers cut a conversation at its special tokens and tokenise what lies between two of them as one text, in which a
token may hold the end of a piece and the beginning of the message ("\\n\\n" in ChatML). So a message is tokenised
together with what stands around it, up to the next special tokens. A token that holds both belongs to the message.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nemo_longpo.shards.schema import Span

from .encoding import Place, TextEncoder


@dataclass(frozen=True)
class Message:
    """Ids of the piece in front, of the message, and of the piece behind; `stretches` are spans of `ids`."""

    before: list[int]
    ids: list[int]
    after: list[int]
    stretches: list[Span]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What stands around a message: ids of the pieces up to the next special tokens, then text that touches it.

    `spaces` at the end of `lead` belong to the message. `strips`: whether white space on the message's left and on
    its right is left out, by the template or by a special token that takes it.
    """

    before: list[int]
    lead: str
    lead_ids: list[int]
    spaces: str
    place: Place  # of the lead
    tail: str
    tail_ids: list[int]
    after: list[int]
    strips: tuple[bool, bool]

    def message(self, encoder: TextEncoder, text: str, stretches: Sequence[Span]) -> Message:
        """Tokenise a text in this place. `stretches` are characters [start, end) of it."""
        left, right = self.strips
        begun = text.lstrip() if left else text
        written = self.spaces + (begun.rstrip() if right else begun)
        if not written:
            return Message([*self.before, *self.lead_ids], [], [*self.tail_ids, *self.after], [(0, 0)] * len(stretches))
        encoded = encoder.encoded(self.lead + written + self.tail, self.place, content=True)
        ids, end = encoded.ids, len(self.lead) + len(written)
        first, stop = len(self.lead_ids), len(ids) - len(self.tail_ids)
        if ids[:first] != self.lead_ids:
            first = next(token for token in range(len(ids)) if encoded.characters(token)[1] > len(self.lead))
        if ids[stop:] != self.tail_ids:
            stop = len(ids)
            while stop > first and encoded.characters(stop - 1)[0] >= end:
                stop -= 1
        moved = len(self.lead) + len(self.spaces) + len(begun) - len(text)
        found = [encoded.span(max(start + moved, 0), min(last + moved, end)) for start, last in stretches]
        return Message(
            before=[*self.before, *ids[:first]],
            ids=ids[first:stop],
            after=[*ids[stop:], *self.after],
            stretches=[(max(a - first, 0), b - first) if a < b else (0, 0) for a, b in found],
        )


def make_frame(
    encoder: TextEncoder, before: str, spaces: str, after: str, strips: tuple[bool, bool], *, at_start: bool
) -> Frame:
    """Make a frame from the texts of two pieces, the first one without its trailing `spaces`."""
    place: Place = "start" if at_start else "inside"
    ids, cut = encoder.encode(before, place, content=False), encoder.behind_special(before, place)
    lead, lead_ids = before[cut.character :], ids[cut.token :]
    if cut.token:
        place = "after_special"
    if encoder.encode(lead, place, content=True) != lead_ids:  # a tokenizer beyond these rules: message and piece apart
        lead, lead_ids, cut = "", [], replace(cut, token=len(ids))
        place = "inside"
    after_ids, stop = encoder.encode(after, "inside", content=False), encoder.in_front_of_special(after)
    tail, tail_ids = after[: stop.character], after_ids[: stop.token]
    if encoder.encode(tail, "inside", content=True) != tail_ids:
        tail, tail_ids, stop = "", [], replace(stop, token=0)
    swallows = cut.swallows and not lead
    return Frame(
        before=ids[: cut.token],
        lead=lead,
        lead_ids=lead_ids,
        spaces="" if swallows else spaces,
        place=place,
        tail=tail,
        tail_ids=tail_ids,
        after=after_ids[stop.token :],
        strips=(strips[0] or swallows, strips[1] or (stop.swallows and not tail)),
    )
