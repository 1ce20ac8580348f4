"""Jobs of a `WorkerPool` worker: a recipe through Megatron-Bridge's `pretrain`, and the results for tests."""

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist


def pretrain(
    overrides: dict[str, Any],
    log_dir: str,
    gradients: str | None = None,
    kill_after: int | None = None,
    recipe_name: str = "tiny_longpo",
) -> list[int]:
    """Run a recipe in this process group, with `overrides` as the command line would apply them.

    `gradients` is where those of the last step are written, each in fp32 under its parameter's key; `kill_after` the
    step after which this process is lost.

    Returns:
        The rows of every micro-batch that went through this rank's layers.
    """
    from nemo_longpo.bridge import train

    config = train.build(recipe_name, [f"{name}={_spelled(value)}" for name, value in overrides.items()], log_dir)
    rows: list[int] = []
    ours: dict[str, list[Callable[[Any], None]]] = {"on_train_start": [lambda context: _count_rows(context, rows)]}
    if gradients is not None:
        ours["on_train_start"].append(lambda context: _save_gradients(context, Path(gradients)))
    if kill_after is not None:
        ours["on_train_step_end"] = [lambda context: _kill_after(context, kill_after)]
    run = train.pretrain

    def pretrain_with_ours(config: Any, step: Any, callbacks: Any) -> None:
        from megatron.bridge.training.callbacks import CallbackManager

        manager = CallbackManager()
        manager.add(callbacks)
        for event, functions in ours.items():
            for function in functions:
                manager.register(event, function)
        run(config, step, callbacks=manager)

    try:
        with mock.patch.object(train, "pretrain", pretrain_with_ours):
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


def _count_rows(context: Any, rows: list[int]) -> None:
    from megatron.core.transformer.transformer_block import TransformerBlock

    for module in context.model:
        for block in module.modules():
            if isinstance(block, TransformerBlock):
                block.register_forward_hook(lambda block, inputs, output: rows.append(output.shape[0]))


def _save_gradients(context: Any, directory: Path) -> None:
    """Write them before the optimizer's step, which may clip them."""
    from megatron.core import dist_checkpointing

    apply, (module,) = context.optimizer.step, context.model

    def save_and_step() -> Any:
        for parameter in module.parameters():
            parameter.data = parameter.main_grad.clone()
        if dist.get_rank() == 0:
            directory.mkdir(parents=True)
        dist.barrier()
        dist_checkpointing.save(module.sharded_state_dict(), str(directory))
        return apply()

    if context.state.train_state.step + 1 == context.state.cfg.train.train_iters:
        context.optimizer.step = save_and_step


def _kill_after(context: Any, step: int) -> None:
    if context.state.train_state.step + 1 == step:
        os.kill(os.getpid(), signal.SIGKILL)
