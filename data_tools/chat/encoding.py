"""Turn one stretch of a conversation into token ids as if it stood in its place in the whole text.

SentencePiece-like tokenizers put a space in front of a text ("dummy prefix"). A stretch in the middle of a text must
not get one, unless it follows a special token and the tokenizer starts afresh there. Which of these a tokenizer does
is found out by asking it, not by looking at its class.
"""

from typing import Any, Literal

from nemo_longpo.errors import InputError

Place = Literal["start", "after_special", "inside"]

# Texts that end a word in every tokenizer, so that what follows is encoded as in the middle of a text.
_ANCHORS = ("\n", "\t", "|", "~", "0")
_PROBES = ("a", " a", "Ab", "7")


class TextEncoder:
    """Encodes stretches of text with a Hugging Face tokenizer. Raises InputError for tokenizers beyond its rules."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.special_ids = frozenset(tokenizer.added_tokens_decoder) | frozenset(tokenizer.all_special_ids)
        # An anchor that merges with a probe gives None, one that swallows it gives no ids: neither will do.
        self._anchors = [anchor for anchor in _ANCHORS if all(self._strip(anchor, probe) for probe in _PROBES)]
        if not self._anchors:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path} merges every probe text with its neighbours; "
                "use a model with a BPE, Unigram or word-level tokenizer"
            )
        self._has_prefix = any(self._direct(probe, False) != self._strip(self._anchors[0], probe) for probe in _PROBES)
        self._prefix_after_special = self._has_prefix and self._adds_prefix_after_special()

    def encode(self, text: str, place: Place, *, content: bool) -> list[int]:
        """Token ids of `text` standing at `place`.

        Special tokens spelled out in `content` (a document, an answer) stay plain text: no document can end a turn.
        In template pieces they are special.
        """
        if not text:
            return []
        prefixed = place == "start" or (place == "after_special" and self._prefix_after_special)
        if prefixed or not self._has_prefix:
            return self._direct(text, content)
        for anchor in self._anchors:
            ids = self._strip(anchor, text, content)
            if ids is not None:
                return ids
        raise InputError(f"the tokenizer merges the text {text[:40]!r} with any text in front of it")

    def _direct(self, text: str, content: bool) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, verbose=False, split_special_tokens=content)
        return list(encoded["input_ids"])

    def _strip(self, anchor: str, text: str, content: bool = False) -> list[int] | None:
        """Ids of anchor + text without the anchor's, or None if the two merge."""
        head, whole = self._direct(anchor, content), self._direct(anchor + text, content)
        return whole[len(head) :] if whole[: len(head)] == head else None

    def _adds_prefix_after_special(self) -> bool:
        token_id, token = min(self.tokenizer.added_tokens_decoder.items())
        whole = self._direct(token.content + "a", False)
        return whole == [token_id, *self._direct("a", False)]
