"""The checkpoints of a run: marked while they are written, recorded when they are complete, old ones removed."""

import shutil
from collections import deque
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.bridge.training import callbacks, checkpointing, config

from nemo_longpo.atomic import explain_full_disk
from nemo_longpo.checkpoints import forms, integrity, run_directory
from nemo_longpo.megatron import topology


class RunCheckpoints(checkpointing.DefaultCheckpointManager):
    """Bridge's manager, for `CheckpointConfig.custom_manager_class`.

    Bridge writes `run_config.yaml` and `train_state.pt` after the weights, and points its tracker files at a checkpoint
    before that: after a kill, neither shows which one is complete. Here a file `iter_…-unfinished` stands beside a
    checkpoint from before its first byte until after its last, and while it is removed; what is marked never counts.

    `most_recent_k` checkpoints stay. Bridge's own removal would count directories that are still being written, so it
    is switched off. The record of sizes and hashes is written by a thread of the first rank; a run that is killed
    before leaves a usable checkpoint whose later changes cannot be detected.
    """

    def __init__(self, checkpoint_config: config.CheckpointConfig):
        super().__init__(checkpoint_config)
        self._kept, checkpoint_config.most_recent_k = checkpoint_config.most_recent_k, -1
        self._begun: deque[Path] = deque()
        self._recorder = integrity.Recorder()
        self._listens = False

    def save(
        self, ctx: checkpointing.CheckpointSaveContext, callback_manager: callbacks.CallbackManager | None
    ) -> None:
        folder = Path(str(ctx.state.cfg.checkpoint.save))
        checkpoint = folder / forms.iteration_name(ctx.state.train_state.step)
        is_first = dist.get_rank() == 0
        there = is_first and checkpoint in run_directory.list_checkpoints(folder).complete
        if topology.gather_from_all(there)[0]:
            return  # a run that was resumed at its last step
        manager = callback_manager or callbacks.CallbackManager()
        if not self._listens or callback_manager is None:
            manager.register("on_checkpoint_save", self._finish)
            self._listens = True
        topology.raise_on_all(lambda: _begin(checkpoint), here=is_first)
        self._begun.append(checkpoint)
        with explain_full_disk(checkpoint, run_directory.GOES_ON):
            super().save(ctx, manager)

    def _finish(self, context: callbacks.CallbackContext) -> None:
        """Called on all ranks when a checkpoint has its last byte; in the order in which they were begun."""
        checkpoint = self._begun.popleft()
        if dist.get_rank() != 0:
            return
        _carry_small_files(context.state.cfg.checkpoint, checkpoint)
        run_directory.mark(checkpoint).unlink(missing_ok=True)
        complete = run_directory.list_checkpoints(checkpoint.parent).complete
        keep = len(complete) if self._kept is None or self._kept < 0 else max(1, self._kept)
        for old in complete[: len(complete) - keep]:
            self._recorder.forget(old)
            remove(old)
        self._recorder.record(checkpoint)

    def finalize_async_saves(self, state: Any, blocking: bool = False, terminate: bool = False) -> None:
        super().finalize_async_saves(state, blocking, terminate)
        self._recorder.collect(wait=terminate)


def _begin(checkpoint: Path) -> None:
    """Mark a checkpoint, and remove what was left there: files of other ranks would stay in the new one."""
    with explain_full_disk(checkpoint, run_directory.GOES_ON):
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        run_directory.mark(checkpoint).touch()
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint)


def _carry_small_files(settings: config.CheckpointConfig, checkpoint: Path) -> None:
    """Copy the model's small Hugging Face files from where the run began, or from a checkpoint that has them."""
    begun = [Path(path) for path in (settings.pretrained_checkpoint, settings.load) if path]
    with explain_full_disk(checkpoint, run_directory.GOES_ON):
        for source in [*begun, *reversed(run_directory.list_checkpoints(checkpoint.parent).complete)]:
            if forms.carry_small_files(source, checkpoint):
                return


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint; one that is killed meanwhile leaves its mark."""
    run_directory.mark(checkpoint).touch()
    shutil.rmtree(checkpoint, ignore_errors=True)
    run_directory.mark(checkpoint).unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what runs have left that were killed while they wrote or removed a checkpoint."""
    for checkpoint in run_directory.list_checkpoints(folder).unfinished:
        remove(checkpoint)
    for mark in folder.glob(f"*{run_directory.UNFINISHED}"):
        mark.unlink(missing_ok=True)
