"""NeMo's Megatron strategy for machines with and without an accelerator."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Optional, Union, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities import exceptions
from megatron.core.distributed import DistributedDataParallelConfig
from nemo.lightning import MegatronStrategy, resume
from nemo.utils import logging
from torch.distributed.checkpoint.api import CheckpointException

from nemo_longpo import run_log
from nemo_longpo.checkpoints import run_directory
from nemo_longpo.errors import InputError
from nemo_longpo.megatron import backend, finite_steps, full_disk, job_settings, run_inputs
from nemo_longpo.placement import CpCommType, Placement

from . import core_versions
from .model import LongPOModel

_WITHOUT_ACCELERATOR: dict[str, Any] = {
    "process_group_backend": "gloo",
    # The asynchronous writer spawns helper processes.
    "ckpt_async_save": False,
    "ckpt_torch_dist_multiproc": 1,
    # NeMo's printer gathers timers on rank 0 alone; NCCL lets this pass for zero timers, gloo waits for ever. So
    # progress is Lightning's bar.
    "replace_progress_bar": False,
}
"""Arguments of NeMo's strategy on the CPU."""


class _StepEvents:
    """Tells `FiniteSteps` what it asks for, at the events of NeMo's `MegatronParallel`."""

    def __init__(self, steps: finite_steps.FiniteSteps):
        self.steps = steps

    def on_megatron_microbatches_start(self, step: Any) -> None:
        self.steps.begin_step()

    def on_megatron_microbatch_start(self, step: Any, batch: Any, forward_callback: Any) -> None:
        self.steps.add_document(batch.doc_id)

    def on_megatron_microbatches_end(self, step: Any, microbatch_outputs: Sequence[dict[str, torch.Tensor]]) -> None:
        self.steps.end_step([metrics["loss"] for metrics in microbatch_outputs])


class LongPOStrategy(MegatronStrategy):
    """NeMo's strategy; it also activates the CPU backend, because ranks build it before they touch a device.

    Takes the arguments of `nemo.lightning.MegatronStrategy`, and job settings that Megatron keeps in the model's
    config. The other fields of that config come from the checkpoint.

    Args:
        recompute_granularity: `full` recomputes whole layers in the backward, `selective` parts of every layer.
        recompute_method, recompute_num_layers: which layers, for `full`; as in Megatron's TransformerConfig.
        recompute_modules: which parts, for `selective`: `core_attn` (Megatron's default), `layernorm`, `mlp`.
        cpu_offloading_num_layers: number of layers that keep their activations in host memory; excludes recompute,
            needs Transformer Engine.
        cp_comm_type: how context-parallel ranks exchange the trunk's keys and values on GPUs, see
            `nemo_longpo.parallel.cp_comm`; on the CPU they are always gathered.
        hierarchical_context_parallel_sizes: for `a2a+p2p`, how many ranks exchange heads, how many form a ring.
        non_finite_steps: what happens when a loss or a gradient is not finite: `error` ends the run, `skip` leaves the
            step out; see `FiniteSteps`.
        max_skipped_steps: how many steps in a row `skip` may leave out before it ends the run.
    """

    def __init__(
        self,
        recompute_granularity: Optional[Literal["full", "selective"]] = None,  # noqa: UP045 (NeMo-Run's parser)
        recompute_method: Literal["uniform", "block"] = "uniform",
        recompute_num_layers: int = 1,
        recompute_modules: Optional[list[str]] = None,  # noqa: UP045
        cpu_offloading_num_layers: int = 0,
        # Named, because NeMo-Run guesses the type of a setting without one, and NeMo cannot write a dataclass from
        # **kwargs into checkpoints.
        sequence_parallel: bool = False,
        ddp: Union[Literal["megatron", "pytorch"], DistributedDataParallelConfig] = "megatron",  # noqa: UP007
        cp_comm_type: CpCommType = "p2p",
        hierarchical_context_parallel_sizes: Optional[list[int]] = None,  # noqa: UP045
        non_finite_steps: finite_steps.NonFinite = "error",
        max_skipped_steps: int = 3,
        **kwargs: Any,
    ):
        if non_finite_steps not in get_args(finite_steps.NonFinite) or max_skipped_steps < 1:
            raise InputError(
                f"trainer.strategy.non_finite_steps={non_finite_steps} with max_skipped_steps={max_skipped_steps}: the "
                f"first is one of {', '.join(get_args(finite_steps.NonFinite))}, the second 1 or more."
            )
        for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"):
            if (size := kwargs.get(name, 1)) < 1:
                raise InputError(f"trainer.strategy.{name} is {size}; give a number above 0.")
        core_versions.refuse_untried()
        full_disk.leave_to_main_thread()
        run_log.send_to(logging)
        self.backend = backend.start_backend("nemo")
        if not self.backend.is_accelerated:
            kwargs |= _WITHOUT_ACCELERATOR
        super().__init__(sequence_parallel=sequence_parallel, ddp=ddp, **kwargs)
        self.placement = Placement(
            tp=self.tensor_model_parallel_size,
            pp=self.pipeline_model_parallel_size,
            cp=self.context_parallel_size,
            sequence_parallel=self.sequence_parallel,
            recompute_granularity=recompute_granularity,
            recompute_method=recompute_method,
            recompute_num_layers=recompute_num_layers,
            recompute_modules=recompute_modules,
            cpu_offloading_num_layers=cpu_offloading_num_layers,
            cp_comm_type=cp_comm_type,
            hierarchical_context_parallel_sizes=hierarchical_context_parallel_sizes,
        )
        self.check_hashes = True
        self.finite_steps = finite_steps.FiniteSteps(non_finite_steps, max_skipped_steps)
        if isinstance(self.ddp_config, DistributedDataParallelConfig):
            self.ddp_config.check_for_nan_in_grad = False  # it would raise on one rank, and name nothing

    def connect(self, model: pl.LightningModule) -> None:
        assert isinstance(model, LongPOModel), model
        if self.virtual_pipeline_model_parallel_size is not None:
            raise InputError(
                "trainer.strategy.virtual_pipeline_model_parallel_size is set, but interleaved pipeline stages were "
                "never compared with a reference on pairs of different length; set it to null."
            )
        optimizer = None if model.optim is None else model.optim.config
        placement = replace(
            self.placement, offload_layer_inputs=model.offload_layer_inputs, mlp_tile_tokens=model.mlp_tile_tokens
        )
        job_settings.check(placement, model.config, model.pair_layout)
        self.backend.refuse(placement, model.config, optimizer)
        job_settings.put_on(model.config, placement)
        if optimizer is not None:
            job_settings.check_optimizer(optimizer)
            for name, value in self.backend.optimizer_settings.items():
                setattr(optimizer, name, value)
        super().connect(model)
        self.backend.prepare(model.config)
        if model.fused_kernels:
            self.backend.fuse(model.config)
        job_settings.complete(model.config, model.rope)

    def setup_megatron_parallel(self, trainer: pl.Trainer) -> None:
        super().setup_megatron_parallel(trainer)
        self.megatron_parallel.callbacks.add(_StepEvents(self.finite_steps))

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        with core_versions.optimizer_as_nemo_calls_it():
            super().setup_optimizers(trainer)

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Run forward and backward, then apply the step if it is finite. Raises InputError on all ranks if it ends the
        run."""
        loss = closure()
        trained = [weight for weight in self.megatron_parallel.parameters() if weight.requires_grad]
        # Under a dynamic loss scale, infinite gradients are how Megatron finds the scale; it leaves out such steps.
        gradients = [] if self.model.config.fp16 else [weight.main_grad for weight in trained]
        applied = self.finite_steps.may_be_applied(self.trainer.global_step + 1, gradients)
        self.lightning_module.log("skipped", float(not applied), batch_size=1)
        if applied:
            return super().optimizer_step(optimizer, lambda: loss, model, **kwargs)
        self.lightning_module.log("grad_norm", torch.nan, batch_size=1)
        return loss

    def load_checkpoint(self, checkpoint_path: str | Path, selective_restore: bool = False) -> dict[str, Any]:
        """Load the run's own checkpoint or, with `selective_restore`, its start. Raises InputError if it is damaged."""
        base = checkpoint_path.base_model_path if isinstance(checkpoint_path, resume.AdapterPath) else None
        for path in filter(None, (checkpoint_path, base)):
            run_inputs.check_checkpoint(run_directory.checkpoint_of(path), hashes=self.check_hashes)
        return super().load_checkpoint(checkpoint_path, selective_restore)

    def on_exception(self, exception: BaseException) -> None:
        """Name a full disk, and end the processes that would wait for this one.

        A run that SIGTERM has stopped ends as programs do that a signal ends. Lightning's exit status would be 0, and
        whoever waits for the run (a job that depends on it, a round) would go on with what is half trained.
        """
        super().on_exception(exception)
        if isinstance(exception, exceptions.SIGTERMException):
            exception.code = 128 + signal.SIGTERM
        refusal = exception if isinstance(exception, InputError) else self._full_disk(exception)
        if refusal is None:
            return
        if isinstance(self.launcher, _SubprocessScriptLauncher):
            self.launcher.kill(signal.SIGKILL)
            self.launcher.procs.clear()  # else their watcher ends this process before it prints its error
        if refusal is not exception:
            # Lightning's clean-up does not run then; NeMo changed a class, and that outlives the run.
            if (parallel := getattr(self, "megatron_parallel", None)) is not None:  # as NeMo's own clean-up asks
                parallel.teardown_ddp()
            raise refusal from exception

    def _full_disk(self, exception: BaseException) -> InputError | None:
        reason = full_disk.no_room(exception)
        if isinstance(exception, CheckpointException):
            # All ranks get one, but only the first one's names the reason.
            reason = self.broadcast(reason)
        if reason is None:
            return None
        place = self.trainer.checkpoint_callback.dirpath or self.trainer.default_root_dir
        if isinstance(exception, OSError):  # a file written in pieces (events, logs) is not named
            place = exception.filename or f"a file of the run with {place}"
        return InputError(
            f"{place} cannot be written: {reason}; make room and run the same command again, {run_directory.GOES_ON}"
        )
