"""What is asked of whom, and every prompt of it, before any weights are loaded."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from nemo_longpo.data_tools.engines.engine import ReportingEngine
from nemo_longpo.data_tools.engines.engine_options import EngineOptions
from nemo_longpo.data_tools.runner import Usage
from nemo_longpo.errors import InputError

from . import chat_completions, models, prompts, sources, suites
from .benchmarks import Benchmark, EvalTask, Preparation
from .eval_settings import ChatTemplateUse, JudgeSettings, QuestionSettings, TooLong
from .judge import dialogues
from .language_model import Answers, EngineLM


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is asked of whom. `lengths` and `samples` replace those of the benchmarks where they are given."""

    models: tuple[str, ...]
    benchmarks: tuple[Benchmark, ...]
    output: Path
    engine: EngineOptions
    data: Path | None = None
    lengths: tuple[int, ...] = ()
    samples: int | None = None
    seed: int = QuestionSettings.seed
    chat_template: ChatTemplateUse = QuestionSettings.chat_template
    system_prompt: str | None = QuestionSettings.system_prompt
    too_long: TooLong = QuestionSettings.too_long
    wording: Path | None = None
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    day: date = field(default_factory=date.today)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    chat_completions: bool = False
    tokenizer: Path | None = None

    def uses_chat_template(self, benchmark: Benchmark) -> bool:
        return benchmark.chat_template if self.chat_template == "auto" else self.chat_template == "always"

    def recorded(self) -> dict[str, Any]:
        """What results.json says of the questions; the models' identities say who was asked, and by which engine.

        Raises InputError if the file of another wording cannot be read.
        """
        if self.wording is not None and not self.wording.is_file():
            raise InputError(f"{self.wording} is no file; give --wording one")
        return {
            "suite": [benchmark.name for benchmark in self.benchmarks],
            "lengths": list(self.lengths) or "as each benchmark has them",
            "samples": self.samples or "as each benchmark has them",
            "seed": self.seed,
            "system_prompt": self.system_prompt,
            "too_long": self.too_long,
            "files": {} if self.data is None else sources.hashes(self.data, self.benchmarks),
            "wording": None if self.wording is None else hashlib.sha256(self.wording.read_bytes()).hexdigest(),
            "benchmarks": {
                benchmark.name: {
                    "metric": benchmark.metric,
                    "num_fewshot": benchmark.num_fewshot,
                    "samples": self.samples or benchmark.samples,
                    "max_new_tokens": benchmark.max_new_tokens,
                    "chat_template": self.uses_chat_template(benchmark),
                }
                for benchmark in self.benchmarks
            },
        } | ({"judge": self.judge.recorded()} if self.is_judged else {})

    @property
    def is_judged(self) -> bool:
        return any(benchmark.ability == "chat" for benchmark in self.benchmarks)


@dataclass(frozen=True, kw_only=True)
class ModelPrompts:
    """All that one model will be asked."""

    model: models.EvalModel
    tasks: list[prompts.TaskPrompts | dialogues.DialoguePrompts]


def prepare(evaluation: Evaluation, *, count_computed: bool = False) -> list[ModelPrompts]:
    """Build every prompt of every model, without any weights; `count_computed` compares them for what they share.

    Raises InputError if a model, a file, a length or a setting is at fault.
    """
    own_words = suites.ESSAYS if evaluation.wording else ()
    sources.require(evaluation.benchmarks, evaluation.data, may_lack=own_words)
    if evaluation.chat_completions:
        opened = models.open_chat_models(
            evaluation.models,
            evaluation.engine,
            tokenizer=evaluation.tokenizer,
            template_kwargs=evaluation.template_kwargs,
        )
    else:
        opened = models.open_models(
            evaluation.models,
            evaluation.engine,
            day=evaluation.day,
            chat_template=any(map(evaluation.uses_chat_template, evaluation.benchmarks)),
            max_length=max(evaluation.lengths, default=None),
            template_kwargs=evaluation.template_kwargs,
        )
    return [_prepare_model(evaluation, model, count_computed) for model in opened]


def _prepare_model(evaluation: Evaluation, model: models.EvalModel, count_computed: bool) -> ModelPrompts:
    reader = reader_of(evaluation, model)
    held = prompts.HeldTexts()
    tasks: list[prompts.TaskPrompts | dialogues.DialoguePrompts] = []
    for benchmark in evaluation.benchmarks:
        templated = evaluation.uses_chat_template(benchmark)
        preparation = _preparation(evaluation, model, reader, templated)
        if benchmark.lengths and model.tokenizer is None:
            raise InputError(
                f"{benchmark.name} is made to a length in tokens; give the model's tokenizer with --tokenizer DIR"
            )
        if benchmark.lengths and not preparation.lengths_of(benchmark):
            raise InputError(
                f"{benchmark.name} begins at {min(benchmark.lengths):,} tokens, and {model.directory} reads "
                f"{model.max_length:,}; say which lengths to build with --lengths"
            )
        # Of one length at a time: the texts of all would not fit the memory.
        for length in preparation.lengths_of(benchmark) if benchmark.lengths else (None,):
            own = preparation if length is None else replace(preparation, lengths=(length,))
            for task in resolve_name(benchmark.build)(benchmark, own):
                asked = _prompts_of(evaluation, task, reader, own, templated, held=held, count_computed=count_computed)
                tasks.append(asked)
    return ModelPrompts(model=model, tasks=tasks)


def _prompts_of(
    evaluation: Evaluation,
    task: EvalTask | dialogues.JudgedTask,
    reader: EngineLM,
    preparation: Preparation,
    templated: bool,
    *,
    held: prompts.HeldTexts,
    count_computed: bool,
) -> prompts.TaskPrompts | dialogues.DialoguePrompts:
    if isinstance(task, dialogues.JudgedTask):
        if not templated:
            raise InputError(
                f"{task.benchmark.name} is made of conversations, which need the chat template; leave it out, or leave "
                "out --chat-template never"
            )
        return dialogues.dialogue_prompts(
            task,
            reader,
            preparation.max_length,
            system_prompt=evaluation.system_prompt,
            drop=evaluation.too_long == "drop",
        )
    return prompts.prompts_of(
        task,
        reader,
        preparation.max_length,
        chat_template=templated,
        system_prompt=evaluation.system_prompt,
        samples=preparation.samples_of(task.benchmark),
        seed=evaluation.seed,
        too_long=evaluation.too_long,
        again=partial(_again, task.benchmark, preparation, str(task.task.config.task)),
        held=held,
        count_computed=count_computed,
    )


def _again(benchmark: Benchmark, preparation: Preparation, name: str) -> EvalTask:
    """Build a task once more."""
    made: list[EvalTask] = resolve_name(benchmark.build)(benchmark, preparation)
    return next(task for task in made if task.task.config.task == name)


def _preparation(evaluation: Evaluation, model: models.EvalModel, reader: EngineLM, templated: bool) -> Preparation:
    system = [{"role": "system", "content": evaluation.system_prompt}] if evaluation.system_prompt else []

    def count_tokens(prompt: str, answer_prefix: str) -> int:
        if not templated:
            return len(reader.tok_encode(f"{prompt} {answer_prefix}" if answer_prefix else prompt))
        messages = [*system, {"role": "user", "content": prompt}]
        if answer_prefix:
            messages.append({"role": "assistant", "content": answer_prefix})
        return len(reader.tok_encode(reader.apply_chat_template(messages, add_generation_prompt=not answer_prefix)))

    return Preparation(
        data=evaluation.data,
        tokenizer=model.tokenizer,
        count_tokens=count_tokens,
        max_length=model.max_length,
        lengths=evaluation.lengths,
        samples=evaluation.samples,
        seed=evaluation.seed,
        wording=evaluation.wording,
        shorten=evaluation.too_long == "official",
        questions=evaluation.output / "questions",
    )


def answers_of(evaluation: Evaluation, model: models.EvalModel) -> Answers:
    return Answers(evaluation.output / "answers", model.identity)


def reader_of(evaluation: Evaluation, model: models.EvalModel) -> EngineLM:
    """Return a language model that makes prompts and knows what is answered."""

    def no_engine() -> ReportingEngine:
        raise AssertionError("nothing is asked while prompts are made")

    return language_model(evaluation, model, answers_of(evaluation, model), no_engine, lambda _: None, lambda _: None)


def language_model(
    evaluation: Evaluation,
    model: models.EvalModel,
    answers: Answers,
    load_engine: Callable[[], ReportingEngine],
    tick: Callable[[Usage], None],
    answered: Callable[[str], None],
) -> EngineLM:
    if model.chat is not None:
        retries = evaluation.engine.server.retries
        return chat_completions.ChatLM(
            model.tokenizer, answers, model.chat, retries, tick, evaluation.day, answered, evaluation.template_kwargs
        )
    return EngineLM(
        model.tokenizer,
        model.stop_ids,
        answers,
        load_engine,
        tick,
        evaluation.day,
        answered,
        evaluation.template_kwargs,
    )
