"""What a worker of `distributed.WorkerPool` runs: the real recipe through `llm.finetune`, and what tests want of it."""

import contextlib
import gc
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import fiddle as fdl
import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
from megatron.core.transformer.transformer_block import TransformerBlock
from nemo.lightning.callback_group import CallbackGroup

from nemo_longpo.errors import InputError
from nemo_longpo.logprobs import IGNORE_LABEL
from nemo_longpo.megatron.gpt import LogprobGPTModel
from nemo_longpo.recipes.factories import RECIPES

# NeMo's telemetry keeps one timeline per process; a worker lives through many runs.
CallbackGroup.get_instance().callbacks.clear()


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
    """Kill this process without a word, as a node that is lost."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def finetune(
    overrides: dict[str, Any],
    gradients: str | None = None,
    logprobs: str | None = None,
    checkpoints: bool = False,
    kill_after: int | None = None,
    recipe_name: str = "tiny_longpo",
    callbacks: Sequence[pl.Callback] = (),
) -> list[int]:
    """Run a recipe in this process group, with `overrides` as `nemo llm finetune` would apply them.

    Returns:
        The rows of every micro-batch that went through this rank's layers.
    """
    recipe = RECIPES[recipe_name]()
    recipe.trainer.enable_progress_bar = False
    if not checkpoints:
        recipe.log.ckpt = None
        recipe.trainer.enable_checkpointing = False
    for path, value in overrides.items():
        *parents, name = path.split(".")
        owner = recipe
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, value)
    run = fdl.build(recipe)
    counter = CountRows()
    run.keywords["trainer"].callbacks.append(counter)
    if gradients is not None:
        run.keywords["trainer"].callbacks.append(SaveGradients(gradients))
    if logprobs is not None:
        run.keywords["trainer"].callbacks.append(SaveLogprobs(logprobs))
    if kill_after is not None:
        run.keywords["trainer"].callbacks.append(KillAfter(kill_after))
    run.keywords["trainer"].callbacks.extend(callbacks)
    try:
        run()
    finally:
        leave_process_group()
    return counter.rows


def leave_process_group() -> None:
    """Forget everything global that the next job of this process will set again."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    destroy_num_microbatches_calculator()
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()
    torch.manual_seed(0)


def refusal(overrides: dict[str, Any], **job: Any) -> str:
    """The sentence with which `finetune` refuses bad input."""
    try:
        finetune(overrides, **job)
    except (InputError, AssertionError) as error:
        return str(error)
    raise AssertionError("the run was not refused")


def attempt(overrides: dict[str, Any]) -> None:
    """A run that may fail, where PyTorch unpickles whatever it is given, as older versions did."""
    with mock.patch.dict(os.environ, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1"), contextlib.suppress(Exception):
        finetune(overrides)
