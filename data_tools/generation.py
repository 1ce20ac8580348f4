"""What the stages have in common in which the model writes: source, prompts, chat format, engine, recorded settings."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .chat import ChatFormat
from .engines.base import Engine
from .model import load_chat, model_identity, tokenizer_identity
from .options import EngineOptions, Placement, choose_prompts
from .prompts import Prompts
from .rows import PartsSource, Row
from .stage import PartResult, Process, Stage, Tick, run_stage

# (rows of a part, progress, chat format, engine, prompts, the stage's settings) -> the part's result
WriteRows = Callable[[list[Row], Tick, ChatFormat, Engine, Prompts, Any], PartResult]


def run_generation(
    name: str,
    write_rows: WriteRows,
    settings: Any,
    *,
    input_path: Path,
    model: Path,
    output: Path,
    prompts_file: str | None,
    engine_options: EngineOptions,
    placement: Placement,
) -> dict[str, int]:
    """Run stage `name`: `write_rows` on every part of the input. `settings` is a dataclass, recorded with the output.

    Prompts are those of `prompts_file`, else those that the input was made with. The engine is loaded for the first
    part that is missing, so a finished stage costs nothing. Raises InputError.
    """
    source = PartsSource(input_path, rows_per_part=placement.part_size)
    prompts = choose_prompts(prompts_file, source.history())
    chat = load_chat(model)

    def make_process() -> Process:
        engine = engine_options.load(model)
        return lambda rows, tick: write_rows(rows, tick, chat, engine, prompts, settings)

    return run_stage(
        Stage(
            name=name,
            source=source,
            output=output,
            settings=asdict(settings)
            | {"engine": engine_options.name, "prompts": prompts.to_dict()}
            | {"model": model_identity(model, engine_options.dtype)}
            | tokenizer_identity(chat),
            make_process=make_process,
            rank=placement.rank,
            world_size=placement.world_size,
        )
    )
