"""Questions of one or more turns, each asked after the model's own answers to those before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lm_eval.api.instance import Instance

from nemo_longpo.errors import InputError

from ..benchmarks import Benchmark
from ..language_model import Asked, EngineLM
from .client import Messages
from .rules import Rating

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
    """What a benchmark of dialogues asks a model: `asked` by name and length, turn by turn.

    A turn after an answer that is not there yet has a name of its own, and the length that it has if that answer is as
    long as it may get. `computed` are the positions to compute for what is not answered. `dropped` dialogues did not
    fit in `max_length` tokens; with `drop` those of `task` that turn out not to fit are left out of the transcripts.
    """

    task: JudgedTask
    system_prompt: str | None
    max_length: int
    drop: bool
    dropped: int
    asked: tuple[Asked, ...]
    computed: list[tuple[int, int]]

    @property
    def name(self) -> str:
        return self.task.benchmark.name

    @property
    def questions(self) -> int:
        return len(self.task.dialogues)

    @property
    def distinct(self) -> dict[str, Asked]:
        return {one.key: one for one in self.asked}

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
        asked, _ = model.read(request)
        tokens = asked.prompt_tokens + asked.new_tokens
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
    asked: list[Asked] = []
    for dialogue in task.dialogues:
        sizes = [_longest(model, system_prompt, task, dialogue, turn) for turn in range(len(dialogue.turns))]
        most = max(sizes) + task.benchmark.max_new_tokens
        if most <= max_length:
            kept.append(dialogue)
            asked += _asked(model, system_prompt, task, dialogue, sizes)
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
        task=replace(task, dialogues=tuple(kept)),
        system_prompt=system_prompt,
        max_length=max_length,
        drop=drop,
        dropped=len(task.dialogues) - len(kept),
        asked=tuple(asked),
        computed=[(0, one.prompt_tokens) for one in asked if one.key not in model.answers],
    )


def _asked(
    model: EngineLM, system_prompt: str | None, task: JudgedTask, dialogue: Dialogue, longest: Sequence[int]
) -> list[Asked]:
    """Every turn as it is asked, as far as the answers before it are known."""
    found: list[Asked] = []
    answers: list[str] = []
    for turn, tokens in enumerate(longest):
        if len(answers) < turn:
            name = f"{task.benchmark.name}:{dialogue.id}:{turn}"
            found.append(Asked(name, tokens, task.benchmark.max_new_tokens, tokens - 1))
            continue
        request = _request(model, system_prompt, task, dialogue, answers)
        own, _ = model.read(request)
        found.append(own)
        if own.key in model.answers:
            answers.append(model.recall(request, own.key))
    return found


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
