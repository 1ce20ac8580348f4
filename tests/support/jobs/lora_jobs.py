"""What a worker of `distributed.WorkerPool` runs to test LoRA: the real recipe with NeMo's adapters."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import nemo_run as run
import torch.distributed as dist
from megatron.core import dist_checkpointing
from nemo.collections import llm
from support.jobs.megatron_jobs import finetune

from nemo_longpo.megatron.metrics import MetricsCallback


class SaveAdapters(pl.Callback):
    """Write the adapters of the first step, and their gradients, as distributed checkpoints."""

    def __init__(self, directory: str):
        self.directory = Path(directory)

    def on_megatron_step_end(self, step) -> None:
        trained = {name: weight for name, weight in step.pipeline.named_parameters() if weight.requires_grad}
        assert trained, "nothing is trained"
        assert all(".adapter." in name for name in trained), f"more than adapters is trained: {sorted(trained)}"
        self._save(step, "adapters")
        for weight in trained.values():
            weight.data.copy_(weight.main_grad)
        self._save(step, "gradients")

    def _save(self, step, name: str) -> None:
        if dist.get_rank() == 0:
            (self.directory / name / "weights").mkdir(parents=True)
        dist.barrier()
        state = {key: value for key, value in step.pipeline.sharded_state_dict().items() if ".adapter." in key}
        dist_checkpointing.save(state, self.directory / name / "weights")


class StopAfter(pl.Callback):
    """End the run in good order after a step, as a job whose time is up."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args) -> None:
        trainer.should_stop = trainer.global_step == self.step


def train_adapters(
    overrides: dict[str, Any],
    lora: dict[str, Any],
    save_to: str | None = None,
    stop_after: int | None = None,
) -> None:
    """`finetune` with `peft=LoRA(**lora)`."""
    callbacks = [run.Config(MetricsCallback)]
    if save_to is not None:
        callbacks.append(run.Config(SaveAdapters, save_to))
    if stop_after is not None:
        callbacks.append(run.Config(StopAfter, stop_after))
    adapters = {"peft": run.Config(llm.peft.LoRA, **lora), "trainer.callbacks": callbacks}
    finetune({**overrides, **adapters}, checkpoints=save_to is None)
