"""What stages that run the model share: source, prompts, chat format, engine, recorded settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError

from ..chat.format import ChatFormat
from ..engines.engine import Engine, ReportingEngine, ResumingEngine
from ..model import load_chat, model_identity, rendering_identity, tokenizer_identity
from ..options import Settings, settings_from
from ..pairs import check_own_rows
from ..prompts import Prompts, choose_prompts
from ..runner import PartResult, PartsJob, Process, Progress, Row, Tick, open_parts, read_stage_settings, run_parts
from ..settings import EngineSettings, ServerSettings, TemplateSettings, TransformersSettings, VllmSettings, WorkShare
from .registry import Report, StageCall


@dataclass(frozen=True)
class EngineOptions:
    """How to run the model: what may change the output, and the settings of each engine."""

    common: EngineSettings = field(default_factory=EngineSettings)
    transformers: TransformersSettings = field(default_factory=TransformersSettings)
    vllm: VllmSettings = field(default_factory=VllmSettings)
    server: ServerSettings = field(default_factory=ServerSettings)

    def __post_init__(self) -> None:
        """Raises InputError if a setting belongs to an engine that is not the chosen one."""
        for name in ("transformers", "vllm", "server"):
            own = getattr(self, name)
            changed = [item.name for item in fields(own) if getattr(own, item.name) != item.default]
            if changed and name != self.common.engine:
                raise InputError(
                    f"{changed[0]} is a setting of engine {name}, but the engine is {self.common.engine}; "
                    "remove it or choose the other engine"
                )

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> "EngineOptions":
        return EngineOptions(
            settings_from(EngineSettings, values),
            settings_from(TransformersSettings, values),
            settings_from(VllmSettings, values),
            settings_from(ServerSettings, values),
        )

    def load(self, model: Path, *, writes_json: bool = False, share_prefixes: bool = False) -> ReportingEngine:
        """Return an engine; with `writes_json` it writes JSON if it can. `share_prefixes` lets engine transformers
        compute once what requests begin with in common; the others always do. Raises InputError if the library is
        missing or the model cannot be loaded."""
        if self.common.engine == "vllm":
            from ..engines.vllm_engine import VllmEngine

            return VllmEngine(model, self.common, self.vllm, writes_json=writes_json)
        if self.common.engine == "server":
            from ..engines.server import ServerEngine

            return ServerEngine(model, self.common, self.server)
        from ..engines.hf_engine import TransformersEngine

        return TransformersEngine(model, self.common, self.transformers, share_prefixes=share_prefixes)


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
    settings: Settings,
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
    chat = load_chat(call.model, _chat_day(call, source.history()))
    if call.settings(TemplateSettings).chat_date is not None and chat.printed_day is None:
        raise InputError(f"the chat template of {call.model} prints no date; leave out chat_date")
    # A stage's output is checked part by part: reading all of it first would take each process minutes.
    if not source.history():
        check_own_rows(source, lambda row: check(row, chat))
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
            | {"model": model_identity(call.model, engine_options.common)}
            | tokenizer_identity(chat)
            | rendering_identity(chat),
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
            return settings_from(TemplateSettings, found).day() or date.today()
    return template.day() or date.today()
