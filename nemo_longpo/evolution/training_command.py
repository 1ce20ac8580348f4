"""How a round starts its trainer, NeMo or Megatron-Bridge: the command, and the trainer's names of settings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_longpo import setting_names, trainers
from nemo_longpo.placement import GLOBAL_BATCH_SIZE

Settings = Mapping[str, Any]


class TrainingCommand:
    """NeMo's; `BridgeCommand` overrides what differs."""

    trainer = trainers.NEMO
    programs: tuple[str, ...] = ("longpo", "nemo")
    """What its environment must have."""
    module: str | None = None
    """Python's module that trains, on each rank; None if the last of `programs` starts the ranks itself."""
    sizes: tuple[str, ...] = ("trainer.num_nodes", "trainer.devices")
    """Settings that an executor decides: nodes, and processes on each."""
    places: tuple[str, ...] = ("trainer.devices", "trainer.num_nodes", "trainer.strategy.", "data.num_workers")
    """Settings of where and how fast, not of what is learned: they may differ when a run is continued."""

    def setting(self, name: str) -> str:
        """Return this trainer's name of one of NeMo's settings."""
        return name

    @property
    def steps(self) -> str:
        return self.setting("trainer.max_steps")

    @property
    def own(self) -> list[str]:
        """Settings that the rounds set themselves."""
        names = ("data.paths", "data.seq_length", "resume.restore_config.path", "log.log_dir", "log.name")
        return [self.setting(name) for name in names]

    def words(
        self, recipe: str, settings: Settings, shards: Path, length: int, start: Path, training: Path
    ) -> list[str]:
        """Return what stands behind the program: a recipe and its settings."""
        return [
            *("llm", "finetune", "--factory", recipe, "--yes"),
            *(f"data.paths={shards}", f"data.seq_length={length}"),
            *(f"resume.restore_config.path={start}", f"log.log_dir={training}"),
            *(f"{key}={json.dumps(value) if isinstance(value, list) else value}" for key, value in settings.items()),
        ]

    def batch_size(self, settings: Settings) -> int:
        return int(settings.get(self.setting("data.global_batch_size"), GLOBAL_BATCH_SIZE))

    def learned(self, settings: Settings) -> dict[str, Any]:
        """Return the settings that decide what is learned."""
        return {name: value for name, value in settings.items() if not name.startswith(self.places)}


class BridgeCommand(TrainingCommand):
    """Megatron-Bridge's; torchrun starts a process for each GPU."""

    trainer = trainers.BRIDGE
    programs = ("longpo", "torchrun", "python")
    module = "nemo_longpo.bridge.train"
    sizes = ()
    places = (
        *(f"model.{kind}_parallel_size" for kind in ("tensor_model", "pipeline_model", "context")),
        *("model.sequence_parallel", "model.recompute_", "model.cp_comm_type", "model.hierarchical_context_parallel_"),
        *("model.cpu_offloading", "ddp.", "dataset.num_workers"),
    )

    def setting(self, name: str) -> str:
        return setting_names.translate_name(name)

    def words(
        self, recipe: str, settings: Settings, shards: Path, length: int, start: Path, training: Path
    ) -> list[str]:
        return [
            *("--recipe", recipe, "--log-dir", str(training)),
            *(f"dataset.paths={json.dumps([str(shards)])}", f"dataset.seq_length={length}"),
            f"checkpoint.pretrained_checkpoint={start}",
            *(f"{key}={_in_hydras_words(value)}" for key, value in settings.items()),
        ]


def _in_hydras_words(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | bool | None) else str(value)


COMMANDS: dict[str, TrainingCommand] = {
    command.trainer.name: command for command in (TrainingCommand(), BridgeCommand())
}
