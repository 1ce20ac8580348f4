"""What stages that run the model share: source, prompts, chat format, engine, recorded settings."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

from nemo_longpo.errors import InputError

from .. import model, options, pairs
from ..chat.format import ChatFormat
from ..engines.engine import Engine, ResumingEngine
from ..engines.engine_options import EngineOptions
from ..prompts import Prompts, choose_prompts
from ..runner import PartResult, PartsJob, Process, Progress, Row, Tick, open_parts, read_stage_settings, run_parts
from ..settings import TemplateKwargs, TemplateSettings, WorkShare
from .registry import Report, StageCall


@dataclass(frozen=True)
class LoadedModel:
    """The loaded model, its chat format and the wording of its prompts."""

    chat: ChatFormat
    engine: Engine
    prompts: Prompts

    def check_short(self, prompt: list[int], max_new_tokens: int, where: str) -> None:
        """Raises InputError if a short prompt and its answer do not fit the model's own context."""
        if len(prompt) + max_new_tokens > self.engine.context_length:
            raise InputError(
                f"{where}: a prompt of {len(prompt)} tokens and max_new_tokens {max_new_tokens} exceed the model's "
                f"context of {self.engine.context_length}; run `longpo data chunk` with a smaller --chunk-tokens"
            )

    def check_long(self, length: int, max_new_tokens: int, where: str) -> None:
        """Raises InputError if a whole document and an answer do not fit the engine's limit."""
        if self.engine.max_length is not None and length + max_new_tokens > self.engine.max_length:
            raise InputError(
                f"{where}: the whole document makes a prompt of {length} tokens, which with max_new_tokens "
                f"{max_new_tokens} exceeds the engine's max_model_len of {self.engine.max_length}; raise it, or run "
                "`longpo data chunk` with a smaller --max-document-tokens"
            )


WorkOnRows = Callable[[list[Row], Tick, LoadedModel], PartResult]


def run_with_model(
    call: StageCall,
    settings: options.Settings,
    work: WorkOnRows,
    check: Callable[[Row, ChatFormat], object],
    writes_json: bool = False,
) -> Report:
    """Run a stage: `work` on every part of the input, after `check` on every row of a hand-made input.

    The engine is loaded for the first missing part, so a finished stage costs nothing. With `writes_json` it can
    force answers to be JSON, if it supports this. Raises InputError if an input, a prompt or an option cannot be used.
    """
    share, engine_options = call.settings(WorkShare), EngineOptions.from_mapping(call.values)
    source = open_parts(call.stage, call.input, share)
    told = call.settings(TemplateKwargs).or_recorded(source.history())
    chat = model.load_chat(call.model, _chat_day(call, source.history()), told)
    if call.settings(TemplateSettings).chat_date is not None and chat.printed_day is None:
        raise InputError(f"the chat template of {call.model} prints no date; leave out chat_date")
    # A stage's output is checked part by part: reading all of it first would take each process minutes.
    if not source.history():
        pairs.check_own_rows(source, lambda row: check(row, chat))
    prompts = choose_prompts(call.prompts, source.history())

    def make_process() -> Process:
        engine = engine_options.load(call.model, writes_json=writes_json)

        def process(rows: list[Row], progress: Progress) -> PartResult:
            return work(
                rows, progress, LoadedModel(chat, ResumingEngine(engine, progress.kept, progress.expect), prompts)
            )

        return process

    return run_parts(
        PartsJob(
            name=call.stage,
            source=source,
            output=call.output,
            settings=settings.recorded()
            | {"engine": engine_options.common.recorded(), "prompts": prompts.to_dict()}
            | {"model": model.model_identity(call.model, engine_options.common)}
            | model.tokenizer_identity(chat)
            | model.rendering_identity(chat),
            make_process=make_process,
            share=share,
        )
    )


def _chat_day(call: StageCall, history: dict[str, Any]) -> date:
    """Return the given date; else that of this output's first start; else that of the latest earlier stage; else today.

    So a stage that is restarted after midnight keeps its prompts, and all stages use the same date.
    """
    template = call.settings(TemplateSettings)
    begun = (read_stage_settings(call.output) or {}).get("settings")
    for found in (begun, *reversed(history.values())):
        if template.chat_date is None and isinstance(found, dict) and "chat_date" in found:
            return options.settings_from(TemplateSettings, found).day() or date.today()
    return template.day() or date.today()
