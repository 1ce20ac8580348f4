"""What a chat template puts around contents, as token ids.

The template is rendered with marker words for contents; the text between the markers is what the template adds.
Pieces and answers are tokenised apart, user messages with the text around them (encoding.py), so the place of every
token is known by construction.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from nemo_longpo.errors import InputError, one_line
from nemo_longpo.shards import fingerprint, schema

from .encoding import Frame, Message, Place, TextEncoder, make_frame

_ROLES = ("user", "assistant")
_PADDING = "\t\n\t"
# Whatever a template prints of a date, it is not the same for both of these.
_OTHER_DAYS = (date(1987, 1, 9), date(1994, 6, 15))
_RENDERING_ERRORS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError, MemoryError)
"""What the expressions of a template may raise, beside Jinja's own errors."""


@dataclass(frozen=True, kw_only=True)
class TurnPieces:
    """A conversation of n turns: 2n contents between 2n + 1 pieces."""

    piece_ids: list[list[int]]
    places: list[Place]  # of each content
    spaces: list[str]  # a piece's trailing spaces belong to the content behind it: tokenizers merge them with its word
    strips: list[tuple[bool, bool]]  # whether the template strips a content on the left, on the right
    frames: list[Frame]  # of each user message


class ChatTemplate:
    """The pieces of a Hugging Face tokenizer's chat template, for conversations of any number of turns.

    A template that asks for the time is told midnight of `day`, so that it says the same tomorrow. Raises InputError if
    there is no template, if it refuses user/assistant turns, changes contents, renders an answer of any turn otherwise
    than it prompts for one, does not end an answer with a special token, says something else each time, or is told
    something (`kwargs`) that changes nothing.

    Every answer stands behind what prompts for it. A template that writes less in front of earlier answers than of the
    last one, as Qwen3's leaves their thinking out, is completed: each turn of a pair is an answer to learn.
    """

    def __init__(self, tokenizer: Any, day: date, kwargs: Mapping[str, Any] | None = None):
        self._text = fingerprint.chat_template(tokenizer)
        self.tokenizer = tokenizer
        self._day = day
        self._kwargs = dict(kwargs or {})
        self._check_kwargs()
        self._encoder = TextEncoder(tokenizer)
        self._made: dict[int, TurnPieces] = {}
        if self._pieces(1, "") != self._pieces(1, ""):
            raise InputError(
                f"the chat template of {tokenizer.name_or_path} says something else each time it is used; use a "
                "template without chance"
            )
        closing = self.turn_pieces(1).piece_ids[2]
        ends = [index for index, token in enumerate(closing) if token in self._encoder.special_ids]
        if not ends:
            raise InputError(
                f"the chat template of {tokenizer.name_or_path} does not end an assistant's turn with a special "
                "token, so the model could not learn to stop; add its end-of-turn token to the template"
            )
        self.end_of_turn_ids: list[int] = closing[: ends[0] + 1]
        end = tokenizer.convert_ids_to_tokens(self.end_of_turn_ids[-1])
        # What the template writes between an answer and its last token, where this is tokens of its own.
        self.end_text = self._pieces(1, "")[2].partition(end)[0] if ends[0] else ""
        self._encoder.keep_as_text(self.special_ids())
        self._check_generation_prompt()

    def prints_day(self) -> bool:
        return any(self._pieces(2, "", day) != self._pieces(2, "") for day in _OTHER_DAYS)

    def pieces_hash(self) -> str:
        """sha256 of what the template writes around the contents of two turns, and which of them it strips."""
        content = [self._pieces(2, ""), self.turn_pieces(2).strips]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def user_message(self, pieces: TurnPieces, turn: int, text: str, stretches: Sequence[schema.Span] = ()) -> Message:
        """A user message with the pieces around it. `stretches` are characters [start, end) of the text."""
        return pieces.frames[turn].message(self._encoder, text, stretches)

    def answer_ids(self, text: str) -> list[int]:
        """Return the token ids of an answer, tokenised apart: a model has read its opening before it writes a token.

        White space at its ends is what the template leaves there. Text of the template between an answer and the
        turn's last token is part of it, because a token may hold the answer's last word and this text.
        """
        pieces = self.turn_pieces(1)
        left, right = pieces.strips[1]
        text = text.lstrip() if left else text
        text = text.rstrip() if right else text
        text = self._written(text, behind=0) or text
        return self._encoder.encode(pieces.spaces[1] + text + self.end_text, pieces.places[1], content=True)

    def rewrites(self, text: str) -> bool:
        """Whether the template writes an answer otherwise than it stands here, in the last turn or in an earlier one,
        but for white space at its ends: templates of models that think leave out what they take for a thought."""
        return any(self._written(text, behind) is None for behind in (0, 1))

    def _written(self, text: str, behind: int) -> str | None:
        """The text as the template writes it for an answer with `behind` turns behind it; None if it changes more than
        white space at the ends, or refuses it."""

        def rendered(answer: str) -> str:
            contents = ["content0qzx", answer, *("content1qzx", "content2qzx") * behind]
            messages = [
                {"role": role, "content": told} for role, told in zip(_ROLES * (behind + 1), contents, strict=True)
            ]
            return self._render(messages, add_generation_prompt=False)

        before, _, after = rendered("content3qzx").partition("content3qzx")
        try:
            found = rendered(text)
        except InputError:
            return None
        written = found.removeprefix(before).removesuffix(after)
        same = found == before + written + after and written in text and written.strip() == text.strip()
        return written if same else None

    def turn_pieces(self, turns: int) -> TurnPieces:
        if turns not in self._made:
            self._made[turns] = self._make_pieces(turns)
        return self._made[turns]

    def special_ids(self) -> frozenset[int]:
        """The added tokens that stand in the template's pieces, whatever the tokenizer's files call them. White space
        is none of them, although Gemma's files add tokens for it."""
        written = {token for piece in self.turn_pieces(2).piece_ids for token in piece} & self._encoder.special_ids
        return frozenset(token for token in written if self.tokenizer.convert_ids_to_tokens(token).strip())

    def _make_pieces(self, turns: int) -> TurnPieces:
        pieces = self._pieces(turns, "")
        padded = self._pieces(turns, _PADDING)
        lefts = [not piece.endswith(_PADDING) for piece in padded[:-1]]
        rights = [not piece.startswith(_PADDING) for piece in padded[1:]]
        stripped = [piece.rstrip(" ") for piece in pieces[:-1]] + pieces[-1:]
        spaces = [piece[len(short) :] for piece, short in zip(pieces, stripped, strict=True)]
        piece_ids = [
            self._encoder.encode(piece, "inside" if index else "start", content=False)
            for index, piece in enumerate(stripped)
        ]
        made = TurnPieces(
            piece_ids=piece_ids,
            places=[self._place_after(piece_ids, index) for index in range(2 * turns)],
            spaces=spaces[:-1],
            strips=list(zip(lefts, rights, strict=True)),
            frames=[
                make_frame(
                    self._encoder,
                    stripped[index],
                    spaces[index],
                    stripped[index + 1],
                    (lefts[index], rights[index]),
                    at_start=index == 0,
                )
                for index in range(0, 2 * turns, 2)
            ],
        )
        if turns > 1:
            self._check_turn_ends(made)
        return made

    def _place_after(self, piece_ids: list[list[int]], index: int) -> Place:
        if not piece_ids[index]:
            return "inside" if index else "start"
        return "after_special" if piece_ids[index][-1] in self._encoder.special_ids else "inside"

    def _pieces(self, turns: int, padding: str, day: date | None = None) -> list[str]:
        """Return the template's text around 2 * turns contents. Each content is a marker word between `padding`."""
        markers = [f"content{index}qzx" for index in range(2 * turns)]
        messages = [
            {"role": role, "content": padding + marker + padding}
            for role, marker in zip(_ROLES * turns, markers, strict=True)
        ]
        rendered = self._render(messages, add_generation_prompt=False, day=day)
        pieces = _split(rendered, markers, self.tokenizer.name_or_path)
        if not padding:
            opening = pieces[-2]
            pieces[1:-2:2] = [opening if opening.startswith(piece) else piece for piece in pieces[1:-2:2]]
        return pieces

    def _render(self, messages: list[dict[str, str]], *, add_generation_prompt: bool, day: date | None = None) -> str:
        midnight = datetime.combine(day or self._day, time())
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._text,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self._kwargs,
                strftime_now=midnight.strftime,  # the one clock that transformers gives to templates
            )
        except (TemplateError, *_RENDERING_ERRORS) as error:
            raise InputError(
                f"the chat template of {self.tokenizer.name_or_path} {_what_failed(error, self._text)}"
            ) from error

    def _check_kwargs(self) -> None:
        taken = {*inspect.signature(self.tokenizer.apply_chat_template).parameters, "messages", "strftime_now"}
        told = self._kwargs
        for name in told:
            if name in taken:
                raise InputError(f"chat_template_kwargs names {name}, which is not for the template; leave it out")
        message = [{"role": "user", "content": "content0qzx"}]
        conversation = [*message, {"role": "assistant", "content": "content1qzx"}]

        def written() -> list[str]:
            return [
                self._render(message, add_generation_prompt=True),
                self._render([*conversation, *conversation], add_generation_prompt=False),
            ]

        for name in told:
            self._kwargs = {other: value for other, value in told.items() if other != name}
            without = written()
            self._kwargs = told
            if written() == without:
                raise InputError(
                    f"the chat template of {self.tokenizer.name_or_path} writes the same with {name} "
                    f"{json.dumps(told[name])} in chat_template_kwargs and without; leave it out"
                )

    def _check_turn_ends(self, pieces: TurnPieces) -> None:
        end = self.end_of_turn_ids
        if any(piece[: len(end)] != end for piece in pieces.piece_ids[2::2]):
            raise InputError(
                f"the chat template of {self.tokenizer.name_or_path} ends an assistant's turn differently in the "
                "middle and at the end of a conversation; use a template with one end-of-turn token"
            )

    def _check_generation_prompt(self) -> None:
        """What prompts for a first and a second answer must be what answers are written behind, also earlier ones."""
        one, two = self._pieces(1, ""), self._pieces(2, "")
        (opening, first), (_, second) = self._prompt(1), self._prompt(2)
        for prompt, piece in ((first, one[1]), (second, two[3]), (first, two[1])):
            if opening != one[0] or prompt.rstrip(" ") != piece.rstrip(" "):
                raise InputError(
                    f"the chat template of {self.tokenizer.name_or_path} prompts for an answer with {prompt!r} but "
                    f"writes answers after {piece!r}; use a template where the two are the same, or make them so with "
                    "--chat-template-kwargs (Qwen3's: '{\"enable_thinking\": false}')"
                )

    def _prompt(self, turns: int) -> tuple[str, str]:
        """What the template writes in front of the last user message, and behind it to prompt for an answer."""
        contents = [f"content{index}qzx" for index in range(2 * turns - 1)]
        messages = [{"role": role, "content": text} for role, text in zip(_ROLES * turns, contents, strict=False)]
        before, _, behind = self._render(messages, add_generation_prompt=True).rpartition(contents[-1])
        return before, behind


def _what_failed(error: Exception, template: str) -> str:
    """Say what a template refuses, if it raised an error of its own, or else what is wrong with it."""
    if isinstance(error, TemplateSyntaxError):
        line = template.splitlines()[error.lineno - 1].strip() if error.lineno <= len(template.splitlines()) else ""
        return f"has a syntax error in line {error.lineno}, {line[:80]!r} ({error.message}); correct it there"
    if type(error) is TemplateError:
        return f"refuses alternating user and assistant turns ({error}); use a model whose template takes them"
    return f"fails on alternating user and assistant turns ({one_line(error)}); correct the template"


def _split(rendered: str, markers: list[str], model: str) -> list[str]:
    pieces = []
    for marker in markers:
        piece, found, rendered = rendered.partition(marker)
        if not found or marker in rendered:
            raise InputError(
                f"the chat template of {model} drops, repeats or changes message contents; use a template that "
                "writes every user and assistant message once, in order"
            )
        pieces.append(piece)
    return [*pieces, rendered]
