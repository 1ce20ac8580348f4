"""Turn one stretch of a conversation into token ids as if it stood in its place in the whole text.

SentencePiece-like tokenizers put a space in front of a text ("dummy prefix"). A stretch in the middle of a text must
not get one, unless it follows a special token and the tokenizer starts afresh there. Each tokenizer is
asked which of these it does; its class does not say.

Tokenizers cut a conversation at its special tokens and tokenise what lies between two of them as one text, in which a
token may hold the end of a piece and the beginning of the message ("\\n\\n" in ChatML). So a user message is tokenised
together with what stands around it, its `Frame`, up to the next special tokens. A token that holds both belongs to the
message.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nemo_longpo.errors import InputError
from nemo_longpo.shards.schema import Span

Place = Literal["start", "after_special", "inside"]

# Texts that end a word in every tokenizer, so that what follows is encoded as in the middle of a text.
_ANCHORS = ("\n", "\t", "|", "~", "0")
_PROBES = ("a", " a", "Ab", "7")


@dataclass(frozen=True)
class Encoded:
    """The token ids of a stretch of text. The tokenizer's answer may begin with an anchor, which is not part of it."""

    ids: list[int]
    _answer: Any
    _anchor_text: int = 0  # characters
    _anchor_ids: int = 0

    def span(self, start: int, end: int) -> Span:
        """The tokens, [first, last), that hold characters [start, end) of the stretch: those at its borders too.

        (0, 0) if the tokenizer does not know its tokens' characters (those written in Python do not).
        """
        if not self._answer.is_fast:
            return 0, 0
        places = range(start + self._anchor_text, end + self._anchor_text)
        # A tokenizer may have no token for a space at the border.
        first = next((token for place in places if (token := self._token(place)) is not None), None)
        last = next((token for place in reversed(places) if (token := self._token(place)) is not None), None)
        if first is None or last is None:
            return 0, 0
        # A character may take several tokens, of which the first one was found.
        while last + 1 < len(self._answer["input_ids"]) and self._starts(last + 1) <= places[-1]:
            last += 1
        return first - self._anchor_ids, last + 1 - self._anchor_ids

    def characters(self, token: int) -> Span:
        """The characters of the stretch that a token holds."""
        found = self._answer.token_to_chars(token + self._anchor_ids)
        return found.start - self._anchor_text, found.end - self._anchor_text

    def _token(self, character: int) -> int | None:
        return self._answer.char_to_token(character)

    def _starts(self, token: int) -> int:
        return self._answer.token_to_chars(token).start


@dataclass(frozen=True)
class Cut:
    """A place at a special token: how many tokens and characters stand in front of it. `swallows`: the special token
    also takes the white space on the side of the cut."""

    token: int = 0
    character: int = 0
    swallows: bool = False


class TextEncoder:
    """Encodes stretches of text with a Hugging Face tokenizer. Raises InputError if it merges every text."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.special_ids = frozenset(tokenizer.added_tokens_decoder) | frozenset(tokenizer.all_special_ids)
        # An anchor that merges with a probe gives None, one that swallows it gives no ids: neither can be used.
        self._anchors = [anchor for anchor in _ANCHORS if all(self._strip(anchor, probe) for probe in _PROBES)]
        if not self._anchors:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path} merges every probe text with its neighbours; "
                "use a model with a BPE, Unigram or word-level tokenizer"
            )
        self._has_prefix = any(self._direct(probe, False) != self._strip(self._anchors[0], probe) for probe in _PROBES)
        self._prefix_after_special = self._has_prefix and self._adds_prefix_after_special()

    def keep_as_text(self, tokens: Iterable[int]) -> None:
        """Let these added tokens be plain text in contents too, although the tokenizer's files do not call them
        special, as DeepSeek's do not its openings of turns. This holds for the tokenizer itself from here on."""
        added = self.tokenizer.added_tokens_decoder
        marks = [added[token] for token in sorted(tokens) if token in added and not added[token].special]
        if marks and self.tokenizer.is_fast:
            self.tokenizer.backend_tokenizer.add_special_tokens(marks)

    def encode(self, text: str, place: Place, *, content: bool) -> list[int]:
        """Return token ids of `text` at `place`.

        Special tokens spelled out in `content` (a document, an answer) stay plain text: no document can end a turn,
        or begin one. In template pieces they are special.
        """
        return self.encoded(text, place, content=content).ids if text else []

    def encoded(self, text: str, place: Place, *, content: bool) -> Encoded:
        """Encode a text that is not empty, and keep the place of every character."""
        prefixed = place == "start" or (place == "after_special" and self._prefix_after_special)
        if prefixed or not self._has_prefix:
            answer = self._answer(text, content)
            return Encoded(list(answer["input_ids"]), answer)
        for anchor in self._anchors:
            head, answer = self._direct(anchor, content), self._answer(anchor + text, content)
            if answer["input_ids"][: len(head)] == head:
                return Encoded(answer["input_ids"][len(head) :], answer, len(anchor), len(head))
        raise InputError(f"the tokenizer merges the text {text[:40]!r} with any text in front of it")

    def behind_special(self, text: str, place: Place) -> Cut:
        """Return the place behind the last special token of a template's piece; its beginning if there is none."""
        found = self._special_tokens(text, place)
        if not found:
            return Cut()
        token, (_, end), kind = found[-1]
        if kind.rstrip:
            end = len(text) - len(text[end:].lstrip())
        return Cut(token + 1, end, kind.rstrip)

    def in_front_of_special(self, text: str) -> Cut:
        """Return the place in front of the first special token of a piece behind a message; its end if there is
        none."""
        found = self._special_tokens(text, "inside")
        if not found:
            return Cut(len(self.encode(text, "inside", content=False)), len(text))
        token, (start, _), kind = found[0]
        return Cut(token, len(text[:start].rstrip()) if kind.lstrip else start, kind.lstrip)

    def _special_tokens(self, text: str, place: Place) -> list[tuple[int, Span, Any]]:
        """(number of the token, its characters, the added token) of every special token in a piece."""
        if not text or not self.tokenizer.is_fast:
            return []
        encoded, added = self.encoded(text, place, content=False), self.tokenizer.added_tokens_decoder
        return [
            (index, encoded.characters(index), added[token])
            for index, token in enumerate(encoded.ids)
            if token in added
        ]

    def _answer(self, text: str, content: bool) -> Any:
        return self.tokenizer(text, add_special_tokens=False, verbose=False, split_special_tokens=content)

    def _direct(self, text: str, content: bool) -> list[int]:
        return list(self._answer(text, content)["input_ids"])

    def _strip(self, anchor: str, text: str, content: bool = False) -> list[int] | None:
        """Ids of anchor + text without the anchor's, or None if the two merge."""
        head, whole = self._direct(anchor, content), self._direct(anchor + text, content)
        return whole[len(head) :] if whole[: len(head)] == head else None

    def _adds_prefix_after_special(self) -> bool:
        token_id, token = min(self.tokenizer.added_tokens_decoder.items())
        whole = self._direct(token.content + "a", False)
        return whole == [token_id, *self._direct("a", False)]


@dataclass(frozen=True)
class Message:
    """Ids of the piece in front, of the message, and of the piece behind; `stretches` are spans of `ids`."""

    before: list[int]
    ids: list[int]
    after: list[int]
    stretches: list[Span]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The surroundings of a message: ids of the pieces up to the next special tokens, then text that touches it.

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
