"""NeMo's Megatron strategy, at home on machines with and without an accelerator."""

import signal
from pathlib import Path
from typing import Any, Literal, Optional, Union

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer import TransformerConfig
from nemo import lightning as nl
from nemo.lightning.resume import AdapterPath
from torch.distributed.checkpoint.api import CheckpointException

from nemo_longpo.backends import cpu
from nemo_longpo.checkpoints.run_directory import checkpoint_of
from nemo_longpo.errors import InputError
from nemo_longpo.parallel.communication import CpCommType

from .activations import ActivationSettings
from .communication import set_communication
from .file_hashes import check_checkpoint
from .full_disk import GOES_ON, leave_to_main_thread, no_room


class LongPOStrategy(nl.MegatronStrategy):
    """Every rank builds its strategy before it touches a device, so this is where the CPU backend switches itself on.

    Takes what `nemo.lightning.MegatronStrategy` takes, and settings that belong to the job although they stand on the
    model's config, whose other fields come from the checkpoint. Without an accelerator, process groups run over gloo,
    - checkpoints are written at once by the rank itself: the asynchronous writer spawns helpers;
    - the optimizer is not distributed: Megatron's cannot be resumed with torch's Adam, which stands in for the fused
      ones (megatron/core/optimizer/distrib_optimizer.py:637 asserts a step count that a fresh Adam does not have);
    - progress is Lightning's bar: NeMo's printer gathers timers on rank 0 alone, which NCCL lets pass for zero timers
      and gloo waits for forever.

    Args:
        recompute_granularity: `full` recomputes whole layers in the backward, `selective` parts of every layer.
        recompute_method, recompute_num_layers: which layers, for `full`; as in Megatron's TransformerConfig.
        recompute_modules: which parts, for `selective`: `core_attn` (Megatron's default), `layernorm`, `mlp`.
        cpu_offloading_num_layers: so many layers keep their activations in host memory; instead of recompute, needs
            Transformer Engine.
        cp_comm_type: how context-parallel ranks exchange the trunk's keys and values on GPUs, see
            `nemo_longpo.parallel.communication`; on the CPU they are gathered, whatever it says.
        hierarchical_context_parallel_sizes: for `a2a+p2p`, how many ranks exchange heads, how many form a ring.
    """

    def __init__(
        self,
        recompute_granularity: Optional[Literal["full", "selective"]] = None,  # noqa: UP045 (NeMo-Run's parser)
        recompute_method: Literal["uniform", "block"] = "uniform",
        recompute_num_layers: int = 1,
        recompute_modules: Optional[list[str]] = None,  # noqa: UP045
        cpu_offloading_num_layers: int = 0,
        # Named, because NeMo-Run reads a setting without a type as it likes, and NeMo records a dataclass that comes
        # without a name in a way that it cannot write into checkpoints.
        sequence_parallel: bool = False,
        ddp: Union[Literal["megatron", "pytorch"], DistributedDataParallelConfig] = "megatron",  # noqa: UP007
        cp_comm_type: CpCommType = "p2p",
        hierarchical_context_parallel_sizes: Optional[list[int]] = None,  # noqa: UP045
        **kwargs: Any,
    ):
        leave_to_main_thread()
        if cpu.activate():
            kwargs |= {
                "process_group_backend": "gloo",
                "ckpt_async_save": False,
                "ckpt_torch_dist_multiproc": 1,
                "replace_progress_bar": False,
            }
        super().__init__(sequence_parallel=sequence_parallel, ddp=ddp, **kwargs)
        self.activations = ActivationSettings(
            recompute_granularity, recompute_method, recompute_num_layers, recompute_modules, cpu_offloading_num_layers
        )
        self.check_hashes = True
        self.cp_comm_type = cp_comm_type
        self.hierarchical_context_parallel_sizes = hierarchical_context_parallel_sizes

    def connect(self, model: pl.LightningModule) -> None:
        config: TransformerConfig = model.config
        if self.virtual_pipeline_model_parallel_size is not None:
            raise InputError(
                "trainer.strategy.virtual_pipeline_model_parallel_size is set, but interleaved pipeline stages have "
                "never been held against a reference with pairs of different length; set it to null."
            )
        check_parallel_sizes(
            config, self.tensor_model_parallel_size, self.pipeline_model_parallel_size, self.sequence_parallel
        )
        self.activations.apply_to(config, self.pipeline_model_parallel_size)
        set_communication(
            config,
            self.cp_comm_type,
            self.hierarchical_context_parallel_sizes,
            self.context_parallel_size,
            self.tensor_model_parallel_size,
            model.pair_layout,  # type: ignore[arg-type]
        )
        if model.optim is not None:
            check_optimizer(model.optim.config)  # type: ignore[union-attr]
        if cpu.is_active():
            model.optim.config.use_distributed_optimizer = False  # type: ignore[union-attr]
        super().connect(model)

    def load_checkpoint(self, checkpoint_path: str | Path, selective_restore: bool = False) -> dict[str, Any]:
        """Of the run itself, or (`selective_restore`) the one that a run starts from; whole, or InputError."""
        base = checkpoint_path.base_model_path if isinstance(checkpoint_path, AdapterPath) else None
        for path in filter(None, (checkpoint_path, base)):
            check_checkpoint(checkpoint_of(path), hashes=self.check_hashes)
        return super().load_checkpoint(checkpoint_path, selective_restore)

    def on_exception(self, exception: BaseException) -> None:
        """Name a full disk, and end the processes that would wait for this one."""
        super().on_exception(exception)
        refusal = exception if isinstance(exception, InputError) else self._full_disk(exception)
        if refusal is None:
            return
        if isinstance(self.launcher, _SubprocessScriptLauncher):
            self.launcher.kill(signal.SIGKILL)
            self.launcher.procs.clear()  # else their watcher ends this process before it has spoken
        if refusal is not exception:
            # Lightning does not come to its clean-up then; what NeMo changed is a class, which outlives the run.
            if (parallel := getattr(self, "megatron_parallel", None)) is not None:  # as NeMo's own clean-up asks
                parallel.teardown_ddp()
            raise refusal from exception

    def _full_disk(self, exception: BaseException) -> InputError | None:
        reason = no_room(exception)
        if isinstance(exception, CheckpointException):
            # All ranks get one, and only the first is told why.
            reason = self.broadcast(reason)
        if reason is None:
            return None
        place = self.trainer.checkpoint_callback.dirpath or self.trainer.default_root_dir
        if isinstance(exception, OSError):  # a file that is written piece by piece is not named: events, logs
            place = exception.filename or f"a file of the run with {place}"
        return InputError(f"{place} cannot be written: {reason}; make room and run the same command again, {GOES_ON}")


def check_parallel_sizes(
    config: TransformerConfig, tensor_parallel_size: int, pipeline_parallel_size: int, sequence_parallel: bool
) -> None:
    """Refuse sizes over which this architecture cannot be split. Raises InputError."""
    for name, count, size, setting in (
        ("attention heads", config.num_attention_heads, tensor_parallel_size, "tensor_model_parallel_size"),
        ("key/value heads", config.num_query_groups, tensor_parallel_size, "tensor_model_parallel_size"),
        ("feed-forward columns", config.ffn_hidden_size, tensor_parallel_size, "tensor_model_parallel_size"),
        ("layers", config.num_layers, pipeline_parallel_size, "pipeline_model_parallel_size"),
    ):
        if count % size:
            raise InputError(
                f"The model has {count} {name}, which trainer.strategy.{setting}={size} does not divide; "
                f"choose a divisor of {count}."
            )
    if sequence_parallel and tensor_parallel_size == 1:
        raise InputError(
            "trainer.strategy.sequence_parallel splits what tensor parallelism leaves whole, and "
            "trainer.strategy.tensor_model_parallel_size is 1; set trainer.strategy.sequence_parallel=False."
        )


def check_optimizer(config: OptimizerConfig) -> None:
    """Refuse an optimizer in host memory that would not work, or not be there. Raises InputError."""
    if not config.optimizer_cpu_offload:
        return
    offload = "optim.config.optimizer_cpu_offload=True"
    if cpu.is_active():
        raise InputError(f"{offload} needs an accelerator: here the optimizer is in host memory already.")
    if not config.use_precision_aware_optimizer:
        raise InputError(f"{offload} works through optim.config.use_precision_aware_optimizer=True; set that too.")
    if config.optimizer_offload_fraction == 0:
        raise InputError(f"{offload} moves nothing with optim.config.optimizer_offload_fraction=0; set up to 1.0.")
