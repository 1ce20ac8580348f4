"""What the stages share in which the model works: source, prompts, chat format, engine, recorded settings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError

from ..chat.format import ChatFormat
from ..doc_ids import check_own_rows
from ..engines.base import Engine
from ..engines.load import EngineOptions
from ..engines.resuming import ResumingEngine
from ..model import load_chat, model_identity, rendering_identity, tokenizer_identity
from ..options import Settings, settings_from
from ..prompts import Prompts, choose_prompts
from ..runner.parts import PartResult, PartsJob, Process, run_parts
from ..runner.progress import Progress, Tick
from ..runner.rows import Row, open_parts, read_stage_settings
from ..settings import TemplateSettings, WorkShare


@dataclass(frozen=True)
class ModelStage:
    """Where a stage reads and writes, and with which model. `prompts_file` None: the wording that the input was made
    with, or the built-in one."""

    input: Path
    output: Path
    model: Path
    prompts_file: str | None = None
    template: TemplateSettings = field(default_factory=TemplateSettings)
    engine: EngineOptions = field(default_factory=EngineOptions)
    share: WorkShare = field(default_factory=WorkShare)


@dataclass(frozen=True)
class LoadedModel:
    """The loaded model, its chat format and the wording of its prompts."""

    chat: ChatFormat
    engine: Engine
    prompts: Prompts


WorkOnRows = Callable[[list[Row], Tick, LoadedModel], PartResult]


def run_with_model(
    name: str,
    where: ModelStage,
    settings: Settings,
    work: WorkOnRows,
    check: Callable[[Row, ChatFormat], object],
    writes_json: bool = False,
) -> dict[str, int]:
    """Run stage `name`: `work` on every part of the input, after `check` on every row of an input made by hand.

    The engine is loaded for the first part that is missing, so a finished stage costs nothing. With `writes_json` it
    can hold answers to JSON, if it can at all. Raises InputError.
    """
    source = open_parts(name, where.input, where.share)
    chat = load_chat(where.model, _chat_day(where, source.history()))
    if where.template.chat_date is not None and chat.printed_day is None:
        raise InputError(f"the chat template of {where.model} prints no date; leave out chat_date")
    # What a stage wrote is checked when its turn comes: reading all of it first would take each process minutes.
    if not source.history():
        check_own_rows(source, lambda row: check(row, chat))
    prompts = choose_prompts(where.prompts_file, source.history())

    def make_process() -> Process:
        engine = where.engine.load(where.model, writes_json=writes_json)

        def process(rows: list[Row], progress: Progress) -> PartResult:
            return work(
                rows, progress, LoadedModel(chat, ResumingEngine(engine, progress.kept, progress.expect), prompts)
            )

        return process

    return run_parts(
        PartsJob(
            name=name,
            source=source,
            output=where.output,
            settings=settings.recorded()
            | {"engine": where.engine.common.recorded(), "prompts": prompts.to_dict()}
            | {"model": model_identity(where.model, where.engine.common)}
            | tokenizer_identity(chat)
            | rendering_identity(chat),
            make_process=make_process,
            share=where.share,
        )
    )


def _chat_day(where: ModelStage, history: dict[str, Any]) -> date:
    """The date given; else the one that this output was begun with; else that of the latest stage before; else today.

    So a stage that is started again after midnight goes on with its prompts, and all stages use the same.
    """
    begun = (read_stage_settings(where.output) or {}).get("settings")
    for found in (begun, *reversed(history.values())):
        if where.template.chat_date is None and isinstance(found, dict) and "chat_date" in found:
            return settings_from(TemplateSettings, found).day() or date.today()
    return where.template.day() or date.today()


def check_short(engine: Engine, prompt: list[int], max_new_tokens: int, where: str) -> None:
    """A short prompt and its answer must fit the model's own context. Raises InputError with the numbers."""
    if len(prompt) + max_new_tokens > engine.context_length:
        raise InputError(
            f"{where}: a prompt of {len(prompt)} tokens and max_new_tokens {max_new_tokens} exceed the model's "
            f"context of {engine.context_length}; run `longpo data chunk` with a smaller --chunk-tokens"
        )


def check_long(engine: Engine, length: int, max_new_tokens: int, where: str) -> None:
    """A whole document and an answer must fit what the engine takes. Raises InputError with the numbers."""
    if engine.max_length is not None and length + max_new_tokens > engine.max_length:
        raise InputError(
            f"{where}: the whole document makes a prompt of {length} tokens, which with max_new_tokens "
            f"{max_new_tokens} exceeds the engine's max_model_len of {engine.max_length}; raise it, or run "
            "`longpo data chunk` with a smaller --max-document-tokens"
        )
