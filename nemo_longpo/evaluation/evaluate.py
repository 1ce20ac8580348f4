"""The whole of `longpo eval`: check everything, ask what was not asked yet, score; or say how long that takes."""

import fcntl
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace

from nemo_longpo import atomic, live_status
from nemo_longpo.costs import answering, model_shape
from nemo_longpo.data_tools.engines.engine import ReportingEngine
from nemo_longpo.errors import InputError

from . import plan, prompts, workload
from .benchmarks import ModelScores, Sample, TaskScores
from .judge import client, dialogues, judgements
from .language_model import EngineLM


def evaluate(evaluation: plan.Evaluation) -> list[ModelScores]:
    """Answer and score everything; answers and ratings that are there already are not asked for again.

    Raises InputError as `prepare` does, and if the judge that some benchmark needs is at fault, before any work.
    """
    judge = None
    if evaluation.is_judged:
        judge = client.Judge(evaluation.judge)
        judge.check()
    asked = plan.prepare(evaluation)
    evaluation.output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(atomic.locked(evaluation.output, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            raise InputError(
                f"another longpo eval writes to {evaluation.output}; wait for it, or give another --output"
            ) from None
        except OSError:
            pass  # the file system has no locks
        weights = [_weights(model) for model in asked]
        tokens = [sum(own.values()) for own in weights]
        status = stack.enter_context(
            live_status.StatusFile(evaluation.output, "evaluation", kept=False, total=sum(tokens), unit="token")
        )
        return [_run_model(evaluation, model, judge, status, sum(tokens[:place])) for place, model in enumerate(asked)]


def _weights(asked: plan.ModelPrompts) -> dict[str, int]:
    distinct = {key: one for task in asked.tasks for key, one in task.distinct.items()}
    return {key: one.prompt_tokens + one.new_tokens for key, one in distinct.items()}


def _run_model(
    evaluation: plan.Evaluation,
    asked: plan.ModelPrompts,
    judge: client.Judge | None,
    status: live_status.StatusFile,
    before: int,
) -> ModelScores:
    answers, weights = plan.answers_of(evaluation, asked.model), _weights(asked)
    known = filter(answers.__contains__, weights)
    with workload.Progress(asked.model.label, weights, known, status, before) as progress:

        def load_engine() -> ReportingEngine:
            engine = asked.model.load_engine()
            progress.begin()
            return engine

        model = plan.language_model(evaluation, asked.model, answers, load_engine, progress, progress.answered)
        try:
            scores: list[TaskScores] = []
            for task in asked.tasks:
                scores.append(_scores(evaluation, asked.model.label, task, model, judge))
                progress.finish(task.distinct)
        finally:
            model.close()  # the next model needs the memory
    return ModelScores(
        label=asked.model.label,
        identity=dict(asked.model.identity),
        tasks=_merged(scores),
        max_length=asked.model.max_length,
    )


def estimate(evaluation: plan.Evaluation, machine: answering.Machine) -> tuple[list[workload.Work], list[str]]:
    """Count what every model would still be asked, per benchmark and length, and say how long it takes; in a sentence
    each, what judges would read.

    Raises InputError as `prepare` does, or if the machine is too small for a model.
    """
    works, prices = [], []
    for asked in plan.prepare(evaluation, count_computed=True):
        reader, config = plan.reader_of(evaluation, asked.model), asked.model.config
        shape = None if config is None else model_shape.ModelShape.of(config)
        parts: dict[tuple[str, int | None], list[prompts.TaskPrompts | dialogues.DialoguePrompts]] = defaultdict(list)
        for task in asked.tasks:
            parts[task.task.benchmark.name, task.task.length].append(task)
            if isinstance(task, dialogues.DialoguePrompts):
                price = judgements.price(task, evaluation.judge, reader.count)
                prices.append(f"{asked.model.label}: {price.describe(evaluation.judge)}")
        works += [workload.work_of(asked.model.label, own, reader.answers, shape, machine) for own in parts.values()]
    return works, prices


def _scores(
    evaluation: plan.Evaluation,
    label: str,
    task: prompts.TaskPrompts | dialogues.DialoguePrompts,
    model: EngineLM,
    judge: client.Judge | None,
) -> TaskScores:
    if isinstance(task, prompts.TaskPrompts):
        return _task_scores(task, prompts.answer(task, model))
    assert judge is not None, "evaluate() opens one if a benchmark is judged"
    return judgements.judge_answers(task, task.answer(model), judge, evaluation.output, label)


def _task_scores(asked: prompts.TaskPrompts, samples: list[Sample]) -> TaskScores:
    row = asked.task.benchmark
    return TaskScores(
        benchmark=row.name,
        length=asked.task.length,
        metric=row.metric,
        ability=row.ability,
        title=row.title,
        column=row.column,
        samples=tuple(samples),
        dropped=asked.dropped,
        shortened=asked.task.shortened,
        scale=row.scale,
    )


def _merged(scores: Iterable[TaskScores]) -> tuple[TaskScores, ...]:
    """One entry per benchmark and length: the subjects of one benchmark count by their questions."""
    parts: dict[tuple[str, int | None], list[TaskScores]] = defaultdict(list)
    for task in scores:
        parts[task.benchmark, task.length].append(task)
    return tuple(
        replace(
            own[0],
            samples=tuple(sample for task in own for sample in task.samples),
            dropped=sum(task.dropped for task in own),
            shortened=sum(task.shortened for task in own),
            unscored=sum(task.unscored for task in own),
        )
        for own in parts.values()
    )
