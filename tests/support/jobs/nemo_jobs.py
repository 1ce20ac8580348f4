"""Jobs of a `WorkerPool` worker with NeMo: the real recipe through `llm.finetune`, and the results for tests."""

import contextlib
import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from nemo_longpo.errors import InputError


def finetune(
    overrides: dict[str, Any],
    gradients: str | None = None,
    logprobs: str | None = None,
    checkpoints: bool = False,
    kill_after: int | None = None,
    recipe_name: str = "tiny_longpo",
    callbacks: Sequence[Any] = (),
) -> list[int]:
    """Run a recipe in this process group, with `overrides` as `nemo llm finetune` would apply them.

    Returns:
        The rows of every micro-batch that went through this rank's layers.
    """
    import fiddle as fdl
    from nemo.lightning.callback_group import CallbackGroup
    from support.jobs.callbacks import CountRows, KillAfter, SaveGradients, SaveLogprobs

    from nemo_longpo.nemo.recipes import RECIPES

    CallbackGroup.get_instance().callbacks.clear()  # NeMo's telemetry keeps one timeline per process, here of many runs
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
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator

    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    destroy_num_microbatches_calculator()
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()
    torch.manual_seed(0)


def refusal(overrides: dict[str, Any], **job: Any) -> str:
    """Return the message with which `finetune` refuses bad input."""
    try:
        finetune(overrides, **job)
    except (InputError, AssertionError) as error:
        return str(error)
    raise AssertionError("the run was not refused")


def refusal_of_poisoned_gradient(overrides: dict[str, Any], rank: int, step: int) -> str:
    """As `refusal`; after the backward of a step, a gradient of one rank is no number."""
    from support.jobs.callbacks import PoisonGradient

    return refusal(overrides, callbacks=[PoisonGradient(rank, step)])


def attempt(overrides: dict[str, Any]) -> None:
    """A run that may fail, where PyTorch unpickles whatever it is given, as older versions did."""
    with mock.patch.dict(os.environ, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1"), contextlib.suppress(Exception):
        finetune(overrides)


def embedding_rows(checkpoint: str) -> tuple[int, int]:
    """The rows of a model's embedding as training sees them, and as it records them in its own checkpoints."""
    from nemo_longpo.nemo.resume import load_architecture

    config = load_architecture(Path(checkpoint))
    return config.vocab_size, config.__io__.vocab_size


def names_of_recipes() -> list[str]:
    from nemo_longpo.nemo.recipes import RECIPES

    return list(RECIPES)


def finetune_with_shares_of_the_optimizer(overrides: dict[str, Any], weights: str) -> None:
    """As on GPUs, each data-parallel rank has its share of gradients and updates its share of the weights.

    `weights` is where they are written in the end.
    """
    from support.jobs.callbacks import SaveWeights

    from nemo_longpo.megatron.backend import CpuBackend

    with mock.patch.dict(CpuBackend.optimizer_settings, use_distributed_optimizer=True):
        finetune(overrides, callbacks=[SaveWeights(weights)])
