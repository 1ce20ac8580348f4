"""From settings to a loaded engine. Each library is imported only when it is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError

from ..options import settings_from
from ..settings import EngineSettings, ServerSettings, TransformersSettings, VllmSettings
from .base import Engine


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

    def load(self, model: Path, *, writes_json: bool = False) -> Engine:
        """An engine that writes JSON if that is asked for and it can. Raises InputError if the library is missing or
        the model cannot be loaded."""
        if self.common.engine == "vllm":
            from .vllm_engine import VllmEngine

            return VllmEngine(model, self.common, self.vllm, writes_json=writes_json)
        if self.common.engine == "server":
            from .server import ServerEngine

            return ServerEngine(model, self.common, self.server)
        from .hf_engine import TransformersEngine

        return TransformersEngine(model, self.common, self.transformers)
