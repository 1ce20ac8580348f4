"""Which engine runs the model, with which settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError

from .. import options, settings
from .engine import ReportingEngine


@dataclass(frozen=True)
class EngineOptions:
    """How to run the model: what may change the output, and the settings of each engine."""

    common: settings.EngineSettings = field(default_factory=settings.EngineSettings)
    transformers: settings.TransformersSettings = field(default_factory=settings.TransformersSettings)
    vllm: settings.VllmSettings = field(default_factory=settings.VllmSettings)
    server: settings.ServerSettings = field(default_factory=settings.ServerSettings)

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
            options.settings_from(settings.EngineSettings, values),
            options.settings_from(settings.TransformersSettings, values),
            options.settings_from(settings.VllmSettings, values),
            options.settings_from(settings.ServerSettings, values),
        )

    def load(self, model: Path, *, writes_json: bool = False, share_prefixes: bool = False) -> ReportingEngine:
        """Return an engine; with `writes_json` it writes JSON if it can. `share_prefixes` lets engine transformers
        compute once what requests begin with in common; the others always do. Raises InputError if the library is
        missing or the model cannot be loaded."""
        if self.common.engine == "vllm":
            from .vllm_engine import VllmEngine

            return VllmEngine(model, self.common, self.vllm, writes_json=writes_json)
        if self.common.engine == "server":
            from .server import ServerEngine

            return ServerEngine(model, self.common, self.server)
        from .hf_engine import TransformersEngine

        return TransformersEngine(model, self.common, self.transformers, share_prefixes=share_prefixes)
