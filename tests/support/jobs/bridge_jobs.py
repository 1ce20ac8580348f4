"""Jobs of a `WorkerPool` worker: a recipe through Megatron-Bridge's `pretrain`, and the results for tests."""

import gc
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist


def pretrain(
    overrides: dict[str, Any],
    log_dir: str,
    gradients: str | None = None,
    weights: str | None = None,
    kill_after: int | None = None,
    shares_of_the_optimizer: bool = False,
    recipe_name: str = "tiny_longpo",
) -> list[int]:
    """Run a recipe in this process group, with `overrides` as the command line would apply them.

    `gradients` is where those of the last step are written, each in fp32 under its parameter's key; `weights` where
    those of the end are; `kill_after` the step after which this process is lost. With `shares_of_the_optimizer` each
    data-parallel rank has its share of gradients, and updates its share of the weights, as on GPUs.

    Returns:
        The rows of every micro-batch that went through this rank's layers.
    """
    from nemo_longpo.bridge import run_settings, train

    config = train.build(recipe_name, [f"{name}={_spelled(value)}" for name, value in overrides.items()], log_dir)
    rows: list[int] = []
    ours: list[tuple[str, Callable[..., None], Any]] = [("on_train_start", _count_rows, rows)]
    if gradients is not None:
        ours.append(("on_train_start", _save_gradients, Path(gradients)))
    if weights is not None:
        ours.append(("on_train_end", _save_weights, Path(weights)))
    if kill_after is not None:
        ours.append(("on_train_step_end", _kill_after, kill_after))
    leave_process_group()  # what a job of another kind has set
    run, complete = train.pretrain, run_settings.complete

    def complete_with_shares(config: Any) -> None:
        complete(config)
        config.ddp.use_distributed_optimizer = config.optimizer.use_distributed_optimizer = shares_of_the_optimizer

    def pretrain_with_ours(config: Any, step: Any, callbacks: Any) -> None:
        from megatron.bridge.training.callbacks import CallbackManager

        manager = CallbackManager()
        manager.add(callbacks)
        for event, function, argument in ours:
            manager.register(event, partial(function, argument))
        run(config, step, callbacks=manager)

    try:
        with mock.patch.object(train, "pretrain", pretrain_with_ours):
            with mock.patch.object(run_settings, "complete", complete_with_shares):
                train.train(config)
    finally:
        leave_process_group()
    return rows


def _spelled(value: Any) -> str:
    """As in Hydra's grammar."""
    if isinstance(value, list):
        return f"[{','.join(map(_spelled, value))}]"
    return "null" if value is None else str(value)


def leave_process_group() -> None:
    """Forget everything global that the next job of this process will set again."""
    from megatron.bridge.training.initialize import destroy_global_state

    destroy_global_state()
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()
    torch.manual_seed(0)


def _count_rows(rows: list[int], context: Any) -> None:
    from megatron.core.transformer.transformer_block import TransformerBlock

    for module in context.model:
        for block in module.modules():
            if isinstance(block, TransformerBlock):
                block.register_forward_hook(lambda block, inputs, output: rows.append(output.shape[0]))


def _save_gradients(directory: Path, context: Any) -> None:
    """Write them before the optimizer's step, which may clip them."""
    apply = context.optimizer.step

    def save_and_step() -> Any:
        for module in context.model:
            for parameter in module.parameters():
                parameter.data = parameter.main_grad.clone()
        _save_weights(directory, context)
        return apply()

    if context.state.train_state.step + 1 == context.state.cfg.train.train_iters:
        context.optimizer.step = save_and_step


def _save_weights(directory: Path, context: Any) -> None:
    from megatron.core import dist_checkpointing

    if dist.get_rank() == 0:
        directory.mkdir(parents=True)
    dist.barrier()
    (module,) = context.model
    dist_checkpointing.save(module.sharded_state_dict(), str(directory))


def _kill_after(step: int, context: Any) -> None:
    if context.state.train_state.step + 1 == step:
        os.kill(os.getpid(), signal.SIGKILL)
