"""Ratings of a model's answers: asked for once, kept with all that was said, turned into scores; and their price."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from nemo_longpo import atomic
from nemo_longpo.errors import InputError
from nemo_longpo.terminal import note, shortened

from ..benchmarks import JudgedBy, Sample, TaskScores
from ..eval_settings import JudgeSettings
from ..language_model import Answers, key_of
from .client import Judge, Messages, Reply
from .dialogues import DialoguePrompts, JudgedTask, Transcript
from .rules import HIGHEST

_SHOWN = 80  # characters of a reply in a message
_CHARACTERS_PER_TOKEN = 4  # of English text, roughly


def judge_answers(
    asked: DialoguePrompts, transcripts: Sequence[Transcript], judge: Judge, output: Path, label: str
) -> TaskScores:
    """Have every answer rated that was not rated before, and score the model called `label`.

    Under `output`, `transcripts/` gets the conversations, and `judgements/` one JSON line per rating: the key, and
    question, answer, prompt hash, reply, rating, judge and day. Fields have FastChat's names where it has them.
    The score of a question is the mean of its turns. Raises InputError if the judge fails, or never gives a rating.
    """
    task = asked.task
    _write_transcripts(output / "transcripts" / task.benchmark.name / f"{label}.jsonl", transcripts, label)
    turns = [(own, turn) for own in transcripts for turn in range(len(own.answers))]
    messages = [task.judge_messages(own.dialogue, own.answers[: turn + 1]) for own, turn in turns]
    kept = Answers(output / "judgements", judge.identity)
    keys = [key_of(own) for own in messages]
    # What two answers have in common is asked once.
    missing = list({key: index for index, key in enumerate(keys) if key not in kept}.values())

    def keep(place: int, reply: Reply) -> None:
        index = missing[place]
        row = _row(task, *turns[index], messages[index], reply)
        kept.put(keys[index], row | {"model": label, "judge": judge.name, "date": date.today().isoformat()})

    if missing:
        judge.ask([messages[index] for index in missing], keep)
    rows = [kept[key] for key in keys]
    return _scores(asked, turns, rows, judge.name, label)


def _row(task: JudgedTask, own: Transcript, turn: int, messages: Messages, reply: Reply) -> dict[str, Any]:
    shown = own.dialogue.shown or own.dialogue.turns
    said = asdict(reply)
    return {
        "benchmark": task.benchmark.name,
        "question_id": int(own.dialogue.id),
        "category": own.dialogue.category,
        "turn": turn + 1,
        "questions": list(shown[: turn + 1]),
        "answers": own.answers[: turn + 1],
        "prompt_sha256": key_of(messages),
        "judgment": said.pop("text"),
        "score": task.rating(reply.text),
        "judge_server": said,
    }


def _scores(
    asked: DialoguePrompts, turns: list[tuple[Transcript, int]], rows: list[dict[str, Any]], judge: str, label: str
) -> TaskScores:
    """Ratings are read again from the replies, so that they follow the rule as it is now."""
    task, row = asked.task, asked.task.benchmark
    parts: dict[str, dict[str, float]] = {own.dialogue.id: {} for own, _ in turns}
    unscored = []
    for (own, turn), judged in zip(turns, rows, strict=True):
        rating = task.rating(judged["judgment"])
        if rating is None:
            unscored.append(f"{own.dialogue.id} turn {turn + 1}")
        else:
            parts[own.dialogue.id][f"turn {turn + 1}"] = rating / HIGHEST
    if len(unscored) == len(rows):
        raise InputError(
            f"{row.title} of {label}: none of {len(rows):,} replies of the judge {judge} holds a rating such as "
            f"[[5]]; the first begins {shortened(rows[0]['judgment'], _SHOWN)!r}; choose another judge"
        )
    if unscored:
        note(
            f"longpo: {row.title} of {label}: {judge} gave no rating to question {', '.join(unscored)}; not in the mean"
        )
    days = sorted(judged["date"] for judged in rows)
    return TaskScores(
        benchmark=row.name,
        length=None,
        metric=row.metric,
        ability=row.ability,
        title=row.title,
        column=row.column,
        samples=tuple(
            _sample(own, parts[own.dialogue.id]) for own, turn in turns if not turn and parts[own.dialogue.id]
        ),
        dropped=asked.dropped + len(task.dialogues) - len(parts),
        shortened=task.shortened,
        scale=row.scale,
        unscored=len(unscored),
        judge=JudgedBy(name=judge, first_day=days[0], last_day=days[-1], rules=task.rules),
    )


def _sample(own: Transcript, parts: dict[str, float]) -> Sample:
    return Sample(
        id=own.dialogue.id,
        score=sum(parts.values()) / len(parts),
        prompt_hash=key_of("\0".join(own.prompts)),
        answer=own.answers[0] if len(own.answers) == 1 else own.answers,
        expected=own.dialogue.extra.get("reference", own.dialogue.extra.get("answer")),
        category=own.dialogue.category,
        parts=parts,
    )


def _write_transcripts(path: Path, transcripts: Sequence[Transcript], label: str) -> None:
    """One line per question, with the fields of FastChat's model_answer files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "question_id": int(own.dialogue.id),
            "model_id": label,
            "questions": list(own.dialogue.shown or own.dialogue.turns),
            "choices": [{"index": 0, "turns": own.answers}],
        }
        for own in transcripts
    ]
    atomic.write_file(path, "".join(json.dumps(line) + "\n" for line in lines))


@dataclass(frozen=True, kw_only=True)
class Price:
    """Of one model's answers to one benchmark. `counted` says by what tokens are counted.

    `least_read` is with empty answers, `most_read` with answers at their longest. `most_written` is with every reply at
    its limit; a reply is usually a tenth of that.
    """

    title: str
    counted: str
    judgements: int
    least_read: int
    most_read: int
    most_written: int

    def describe(self, settings: JudgeSettings) -> str:
        """One sentence, with the cost if the price is known."""
        text = (
            f"{self.title}: {self.judgements:,} judgements by {settings.judge_model or 'the judge'}, which reads "
            f"{self.least_read:,} to {self.most_read:,} tokens ({self.counted}, answers empty or "
            f"at their longest) and writes at most {self.most_written:,}"
        )
        if not settings.judge_price:
            return text
        into, out = (price / 1e6 for price in settings.judge_price)
        most = self.most_read * into + self.most_written * out
        return f"{text}: {self.least_read * into:,.2f} to {most:,.2f} at --judge-price"


def price(asked: DialoguePrompts, settings: JudgeSettings, count_tokens: Callable[[str], int]) -> Price:
    """Price the judgements of one model's answers, none of which may be there yet."""
    task = asked.task
    judged = [(dialogue, turns) for dialogue in task.dialogues for turns in range(1, len(dialogue.turns) + 1)]
    texts = [
        message["content"] for dialogue, turns in judged for message in task.judge_messages(dialogue, [""] * turns)
    ]
    counted, least = "by the tokenizer of the judged model", sum(map(count_tokens, texts))
    if not least:  # the judged model has none here
        counted = f"at {_CHARACTERS_PER_TOKEN} characters each"
        least = sum(map(len, texts)) // _CHARACTERS_PER_TOKEN
    return Price(
        title=task.benchmark.title,
        counted=counted,
        judgements=len(judged),
        least_read=least,
        most_read=least + sum(turns for _, turns in judged) * task.benchmark.max_new_tokens,
        most_written=len(judged) * settings.judge_max_tokens,
    )
