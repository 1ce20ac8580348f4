"""Options that several stages share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError

from .engines.base import Engine
from .model import load_engine
from .prompts import Prompts, load_prompts, prompts_from_dict


@dataclass(frozen=True)
class Placement:
    """Which share of the parts this process makes, and how large parts are when the input has none of its own."""

    rank: int = 0
    world_size: int = 1
    part_size: int = 32


@dataclass(frozen=True)
class EngineOptions:
    """How to run the model. Only `name` and `dtype` may change what comes out."""

    name: str = "transformers"
    dtype: str = "auto"
    device: str = "auto"
    batch_tokens: int = 16384

    def load(self, model: Path) -> Engine:
        return load_engine(self.name, model, dtype=self.dtype, device=self.device, batch_tokens=self.batch_tokens)


def choose_prompts(path: str | None, history: dict[str, Any]) -> Prompts:
    """The given file; else the wording that an earlier stage used; else the built-in one."""
    if path is not None:
        return load_prompts(path)
    for settings in reversed(list(history.values())):
        if "prompts" in settings:
            return prompts_from_dict(settings["prompts"], "the input's settings.json")
    return Prompts()


def check_fits(engine: Engine, prompt: list[int], max_new_tokens: int, where: str) -> None:
    """A short prompt and its answer must fit the model's own context. Raises InputError with the numbers."""
    if len(prompt) + max_new_tokens > engine.context_length:
        raise InputError(
            f"{where}: a prompt of {len(prompt)} tokens and --max-new-tokens {max_new_tokens} exceed the model's "
            f"context of {engine.context_length}; run `longpo data chunk` with a smaller --chunk-tokens"
        )
