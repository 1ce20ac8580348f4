"""An engine that answers as it is told: right, wrong, or half of the questions right, for any task.

The script is made from the prompts that the evaluation is about to ask, so that the answers pass through everything a
real model's do: token ids in, ids or log-probs out, the store of answers, the harness's metrics.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from support.evaluation_models import engine_lm

from nemo_longpo.data_tools.engines.engine import Completion, Done, Sampling, Spans, indices, no_report
from nemo_longpo.data_tools.runner import Tick, Usage
from nemo_longpo.evaluation import plan, prompts

Ids = tuple[int, ...]
Script = Callable[[int], bool]
"""From the place of a question in its task, whether it is answered right."""

ALWAYS_RIGHT: Script = lambda place: True  # noqa: E731
ALWAYS_WRONG: Script = lambda place: False  # noqa: E731
HALF_RIGHT: Script = lambda place: place % 2 == 0  # noqa: E731


class ScriptedEngine:
    """`texts` are the answers to prompts, `logps` the log-probs of the last part of sequences, all by token ids."""

    max_length = None
    context_length = 1 << 20
    vocab_size = 1 << 20
    dtype = "float32"
    writes_json = False

    def __init__(self, texts: dict[Ids, list[int]], logps: dict[Ids, float]):
        self.texts, self.logps = texts, logps
        self.asked: list[Ids] = []

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        return [[index] for index in range(len(lengths))]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        tick: Tick,
        done: Done[Completion] = no_report,
        wanted: Collection[int] | None = None,
    ) -> list[Completion]:
        assert sampling.temperature == 0
        found = []
        for index in indices(len(prompts), wanted):
            prompt = tuple(prompts[index])
            self.asked.append(prompt)
            answer = self.texts[prompt][: sampling.max_new_tokens]
            found.append(Completion(answer, "stop" if len(answer) < sampling.max_new_tokens else "length"))
            tick(Usage(1, len(prompt), generated_tokens=len(answer)))
            done(index, found[-1])
        return found

    def score(
        self,
        sequences: Sequence[Sequence[int]],
        spans: Spans,
        tick: Tick,
        done: Done[list[np.ndarray]] = no_report,
        wanted: Collection[int] | None = None,
    ) -> list[list[np.ndarray]]:
        found = []
        for index in indices(len(sequences), wanted):
            sequence, ((start, end),) = tuple(sequences[index]), spans[index]
            assert 1 <= start < end == len(sequence)
            self.asked.append(sequence)
            logps = np.zeros(end - start, dtype=np.float32)
            logps[0] = self.logps[sequence]
            found.append([logps])
            tick(Usage(1, len(sequence)))
            done(index, found[-1])
        return found

    def close(self) -> None:
        """Nothing is held."""


def scripted(
    asked: plan.ModelPrompts, script: Script, unused: Path, text_of: Callable[..., str] | None = None
) -> ScriptedEngine:
    """The engine that follows `script` on these prompts. `text_of(benchmark, answers, right)` writes the texts."""
    reader = engine_lm(asked.model, unused)
    texts: dict[Ids, list[int]] = {}
    logps: dict[Ids, float] = {}
    for task in asked.tasks:
        for place, requests in enumerate(task.requests.values()):
            right = script(place)
            if requests[0].request_type == "generate_until":
                (request,) = requests
                text = (text_of or text_for)(task.task.benchmark.name, request.doc["answers"], right)
                ids = asked.model.tokenizer(text, add_special_tokens=False)["input_ids"]
                texts[tuple(reader.tok_encode(request.args[0]))] = ids
            else:
                gold = gold_choice(task, requests[0].doc)
                for index, request in enumerate(requests):
                    context, continuation = reader._encode_pair(*request.args)
                    logps[(*context, *continuation)] = 0.0 if (index == gold) == right else -1000.0
    return ScriptedEngine(texts, logps)


def text_for(benchmark: str, answers: list[str], right: bool) -> str:
    """A text that is wholly right, or wholly wrong, by the rules of a benchmark."""
    if benchmark == "longbench_v2":
        return f"The correct answer is ({answers[0] if right else other_letter(answers[0])})."
    if benchmark == "infinitebench_mc":
        return answers[1] if right else other_letter(answers[1])
    if not right:
        return "zzz"
    return answers[0] if benchmark.startswith("infinitebench") else " ".join(answers)


def other_letter(letter: str) -> str:
    return "BCDA"["ABCD".index(letter)]


def gold_choice(task: prompts.TaskPrompts, row: dict) -> int:
    """The place of the right choice, by the columns of the published data."""
    if "answerKey" in row:
        return row["choices"]["label"].index(row["answerKey"])
    if "option1" in row:
        return int(row["answer"]) - 1
    return int(row["label"] if "label" in row else row["answer"])
