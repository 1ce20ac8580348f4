"""Questions of one or more turns, each asked after the model's own answers to those before."""

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.instance import Instance

from nemo_longpo.errors import InputError

from ..benchmarks import Benchmark
from ..language_model import Asked, EngineLM
from .client import Messages

Rating = float | None
LOWEST, HIGHEST = 1, 10
"""Of the ratings of both benchmarks."""
_PLACEHOLDER = "."  # for an answer that is not there yet; some templates refuse an empty one


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """What the user says, turn by turn.

    `shown` is what transcripts show of it, where a turn holds a whole document. `extra` is what the judge is told
    beside question and answer, by name.
    """

    id: str
    turns: tuple[str, ...]
    category: str = ""
    shown: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class JudgedTask:
    """A benchmark of dialogues. `judge_messages(dialogue, answers)` is what the judge reads about the last of the
    answers, and `rating(reply)` what its reply says, from LOWEST to HIGHEST, or None if it says nothing of that kind.

    `rules` is the SHA-256 of what the judge is told, apart from questions and answers. `shortened` dialogues were cut
    in the middle by the rules of their benchmark.
    """

    benchmark: Benchmark
    dialogues: tuple[Dialogue, ...]
    judge_messages: Callable[[Dialogue, Sequence[str]], Messages]
    rating: Callable[[str], Rating]
    rules: str
    shortened: int = 0
    length: None = None


@dataclass(frozen=True)
class Transcript:
    """A dialogue, what the model read turn by turn, and what it answered."""

    dialogue: Dialogue
    prompts: list[str]
    answers: list[str]


@dataclass(frozen=True, kw_only=True)
class DialoguePrompts:
    """What a benchmark of dialogues asks a model. Tokens are those of dialogues with answers at their longest, except
    that the answers to earlier turns count as read and not as written again. `dropped` dialogues did not fit in
    `max_length` tokens; with `drop` those of `task` that turn out not to fit are left out of the transcripts."""

    task: JudgedTask
    system_prompt: str | None
    max_length: int
    drop: bool
    dropped: int
    longest_prompt: int
    prompt_tokens: int
    most_new_tokens: int

    @property
    def name(self) -> str:
        return self.task.benchmark.name

    @property
    def questions(self) -> int:
        return len(self.task.dialogues)

    @property
    def distinct(self) -> dict[str, Asked]:
        """A request per turn, each of the mean length, under names of their own: a prompt is not known before the
        answers to earlier turns."""
        most = self.task.benchmark.max_new_tokens
        turns = self.most_new_tokens // most
        one = self.prompt_tokens // turns
        return {f"{self.name}:{turn}": Asked(f"{self.name}:{turn}", one, most, one - 1) for turn in range(turns)}

    @property
    def computed(self) -> list[tuple[int, int]]:
        """The ranges of positions to compute, as if every prompt had the mean length and shared nothing."""
        return [(0, one.prompt_tokens) for one in self.distinct.values()]

    def answer(self, model: EngineLM) -> list["Transcript"]:
        """Ask every turn of every dialogue, and return the answers, in order; those of one turn are asked together.

        Raises InputError if an answer has more tokens when it is read than when it was written, and does not fit.
        """
        transcripts = [Transcript(dialogue, [], []) for dialogue in self.task.dialogues]
        for turn in range(max(len(dialogue.turns) for dialogue in self.task.dialogues)):
            asked = {
                index: _request(model, self.system_prompt, self.task, own.dialogue, own.answers)
                for index, own in enumerate(transcripts)
                if turn < len(own.dialogue.turns)
            }
            too_long = {index for index, request in asked.items() if not self._fits(model, request)}
            transcripts = [own for index, own in enumerate(transcripts) if index not in too_long]
            if not transcripts:
                raise InputError(f"{self.task.benchmark.name}: no question fits with the model's answers; leave it out")
            requests = [request for index, request in asked.items() if index not in too_long]
            going_on = [own for own in transcripts if turn < len(own.dialogue.turns)]
            answers = model.generate_until(requests, disable_tqdm=True)
            for transcript, request, answer in zip(going_on, requests, answers, strict=True):
                transcript.prompts.append(request.args[0])
                transcript.answers.append(answer)
        return transcripts

    def _fits(self, model: EngineLM, request: Instance) -> bool:
        tokens = sum(model.request_tokens(request))
        if tokens > self.max_length and not self.drop:
            raise InputError(
                f"{self.task.benchmark.name}: question {request.doc['id']} takes {tokens:,} tokens with the answers so "
                f"far, and the model reads {self.max_length:,}; drop and count what does not fit with --too-long drop "
                "(answers are kept)"
            )
        return tokens <= self.max_length


def dialogue_prompts(
    task: JudgedTask, model: EngineLM, max_length: int, *, system_prompt: str | None, drop: bool
) -> DialoguePrompts:
    """Count what a task asks, with every answer as long as it may get.

    Raises InputError if a dialogue does not fit `max_length` tokens so, unless those are to be dropped, and if all are.
    """
    kept: list[Dialogue] = []
    read: list[int] = []
    for dialogue in task.dialogues:
        sizes = [_longest(model, system_prompt, task, dialogue, turn) for turn in range(len(dialogue.turns))]
        most = max(sizes) + task.benchmark.max_new_tokens
        if most <= max_length:
            kept.append(dialogue)
            read += sizes
        elif not drop:
            raise InputError(
                f"{task.benchmark.name}: question {dialogue.id} takes up to {most:,} tokens with answers of "
                f"{task.benchmark.max_new_tokens:,}, and the model reads {max_length:,}; leave this benchmark out, or "
                "drop and count what does not fit with --too-long drop"
            )
    if not kept:
        raise InputError(
            f"{task.benchmark.name}: none of {len(task.dialogues):,} questions fits the {max_length:,} tokens that the "
            "model reads; leave this benchmark out"
        )
    return DialoguePrompts(
        task=JudgedTask(**vars(task) | {"dialogues": tuple(kept)}),
        system_prompt=system_prompt,
        max_length=max_length,
        drop=drop,
        dropped=len(task.dialogues) - len(kept),
        longest_prompt=max(read),
        prompt_tokens=sum(read),
        most_new_tokens=len(read) * task.benchmark.max_new_tokens,
    )


def _request(
    model: EngineLM, system_prompt: str | None, task: JudgedTask, dialogue: Dialogue, answers: Sequence[str]
) -> Instance:
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    for question, answer in zip(dialogue.turns, answers, strict=False):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": dialogue.turns[len(answers)]})
    greedy = {"until": [], "max_gen_toks": task.benchmark.max_new_tokens, "do_sample": False, "temperature": 0.0}
    return Instance(
        request_type="generate_until",
        doc={"id": dialogue.id},
        arguments=(model.apply_chat_template(messages), greedy),
        idx=len(answers),
    )


def _longest(model: EngineLM, system_prompt: str | None, task: JudgedTask, dialogue: Dialogue, turn: int) -> int:
    request = _request(model, system_prompt, task, dialogue, [_PLACEHOLDER] * turn)
    asked, _ = model.read(request)
    return asked.prompt_tokens + turn * task.benchmark.max_new_tokens


def fill(template: str, where: str, **values: str) -> str:
    """Put values into the `{name}` places of a judge's prompt. Raises InputError if the names are others than these."""
    check_places(template, where, set(values))
    return template.format(**values)


def check_places(template: str, where: str, names: set[str]) -> None:
    """Raises InputError if the template's `{name}` places are others than these."""
    found = set(places(template, where))
    if found != names:
        raise InputError(
            f"{where} has places for {', '.join(sorted(found)) or 'nothing'}, where {', '.join(sorted(names))} are "
            "filled in; fetch the file again, or correct it"
        )


def places(template: str, where: str) -> list[str]:
    """The names in braces of a judge's prompt, "" for those without one. Raises InputError if braces do not match."""
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise InputError(f"{where} is no template ({error}); fetch the file again, or correct it") from error


def within_limits(text: str) -> Rating:
    """The first number in a text, if it is a rating."""
    found = re.search(r"\d+(?:\.\d+)?", text)
    value = float(found[0]) if found else None
    return value if value is not None and LOWEST <= value <= HIGHEST else None
