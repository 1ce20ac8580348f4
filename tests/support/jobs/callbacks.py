"""Callbacks for NeMo runs. Imports NeMo: import it inside of jobs, so that collecting tests does not."""

import os
import signal
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.transformer.transformer_block import TransformerBlock

from nemo_longpo.logprobs import IGNORE_LABEL
from nemo_longpo.megatron.gpt import LogprobGPTModel


class SaveGradients(pl.Callback):
    """Write the gradients of the last step as a distributed checkpoint, each in fp32 under its parameter's key."""

    def __init__(self, directory: str):
        self.directory = directory

    def on_megatron_step_end(self, step) -> None:
        if step.step_i + 1 < step.trainer.max_steps:
            return
        for parameter in step.pipeline.parameters():
            parameter.data = parameter.main_grad
        if dist.get_rank() == 0:
            Path(self.directory).mkdir(parents=True)
        dist.barrier()
        dist_checkpointing.save(step.pipeline.sharded_state_dict(), self.directory)


class SaveWeights(pl.Callback):
    """Write the weights after the last step as a distributed checkpoint."""

    def __init__(self, directory: str):
        self.directory = directory

    def on_train_end(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        if dist.get_rank() == 0:
            Path(self.directory).mkdir(parents=True)
        dist.barrier()
        dist_checkpointing.save(trainer.strategy.megatron_parallel.sharded_state_dict(), self.directory)


class PoisonGradient(pl.Callback):
    """Make one number of one rank's gradients NaN, after the backward of a step (from 1)."""

    def __init__(self, rank: int, step: int):
        self.rank, self.step = rank, step

    def on_megatron_step_end(self, step) -> None:
        if (dist.get_rank(), step.step_i + 1) == (self.rank, self.step):
            next(step.pipeline.parameters()).main_grad.view(-1)[-1] = float("nan")


class CountRows(pl.Callback):
    """Note how many rows the layers of this rank were given in each forward pass of a micro-batch."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def on_train_start(self, trainer: pl.Trainer, *args) -> None:
        blocks = [
            block for block in trainer.strategy.megatron_parallel.modules() if isinstance(block, TransformerBlock)
        ]
        blocks[0].register_forward_hook(lambda block, inputs, output: self.rows.append(output.shape[0]))


class SaveLogprobs(pl.Callback):
    """Write the log-probs of all scored rows, fp32, pairs in the order of their first tokens; of rank 0."""

    def __init__(self, file: str):
        self.file = file
        self.pairs: list[tuple[list[int], list[float]]] = []

    def on_train_start(self, trainer: pl.Trainer, *args) -> None:
        modules = trainer.strategy.megatron_parallel.modules()
        model = next(module for module in modules if isinstance(module, LogprobGPTModel))
        model.register_forward_hook(self._keep, with_kwargs=True)

    def _keep(self, model, inputs, named, output) -> None:
        self.pairs.append((inputs[0][0, :8].tolist(), output[named["labels"] != IGNORE_LABEL].tolist()))

    def on_train_end(self, *args) -> None:
        if dist.get_rank() == 0:
            np.save(self.file, np.concatenate([logprobs for _, logprobs in sorted(self.pairs)]))


class KillAfter(pl.Callback):
    """Kill this process silently, like a lost node, or send it another signal."""

    def __init__(self, step: int, number: int = signal.SIGKILL):
        self.step, self.number = step, number

    def on_train_batch_end(self, trainer: pl.Trainer, *args) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


class Interrupted(BaseException):
    """Stands for whatever ends a process, and leaves it to the next job. NeMo survives what is only an Exception."""


class InterruptAfter(pl.Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args) -> None:
        if trainer.global_step == self.step:
            raise Interrupted


class CountSaves(pl.Callback):
    """Note the step of every checkpoint that is written."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_save_checkpoint(self, trainer: pl.Trainer, *args) -> None:
        self.steps.append(trainer.global_step)


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
