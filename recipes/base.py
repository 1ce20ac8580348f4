"""The one recipe that all others are variants of."""

from dataclasses import dataclass
from typing import Literal

import fiddle as fdl
import nemo_run as run
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl
from nemo.collections import llm

from nemo_longpo.checkpoints.run_directory import RUN_NAME, TENSORBOARD
from nemo_longpo.megatron.checkpoint_callback import LongPOCheckpoint
from nemo_longpo.megatron.data import LongPODataModule
from nemo_longpo.megatron.metrics import MetricsCallback
from nemo_longpo.megatron.model import LongPOModel
from nemo_longpo.megatron.resume import LongPOResume
from nemo_longpo.megatron.schedule import WarmupCosine
from nemo_longpo.megatron.strategy import LongPOStrategy
from nemo_longpo.objective import Objective

Precision = Literal["32", "bf16-mixed"]


@dataclass(frozen=True)
class Placement:
    """A job on its GPUs: how they share the work, and what is computed twice so that it fits.

    What tensor and context parallelism leave of the GPUs is data-parallel. Fields other than the number of GPUs are
    `LongPOStrategy`'s; sequence parallelism goes with tensor parallelism.
    """

    num_nodes: int = 1
    devices: int = 1  # per node
    tensor_model_parallel_size: int = 1
    context_parallel_size: int = 1
    recompute_granularity: Literal["full", "selective"] | None = None
    recompute_modules: tuple[str, ...] = ()

    def strategy(self) -> run.Config[LongPOStrategy]:
        """Gradients and weights travel while the GPUs compute."""
        return run.Config(
            LongPOStrategy,
            tensor_model_parallel_size=self.tensor_model_parallel_size,
            context_parallel_size=self.context_parallel_size,
            sequence_parallel=self.tensor_model_parallel_size > 1,
            recompute_granularity=self.recompute_granularity,
            recompute_modules=list(self.recompute_modules) or None,
            ddp=run.Config(
                DistributedDataParallelConfig,
                check_for_nan_in_grad=True,
                overlap_grad_reduce=True,
                overlap_param_gather=True,
            ),
        )


def longpo_recipe(
    *,
    seq_length: int,
    placement: Placement = Placement(),
    precision: Precision = "bf16-mixed",
    global_batch_size: int = 8,
    learning_rate: float = 5e-7,
    warmup_ratio: float = 0.1,
    max_steps: int = 100,
    save_every_n_steps: int = 50,
) -> run.Partial:
    """A complete `llm.finetune` configuration with the paper's constants; every value can be overridden by its path.

    The architecture and the tokenizer come from `resume.restore_config.path`, the data from `data.paths`.
    """
    model = run.Config(LongPOModel, objective=run.Config(Objective))
    data = run.Config(LongPODataModule, seq_length=seq_length, global_batch_size=global_batch_size)
    for config in (model, data):
        fdl.materialize_defaults(config)  # so that `--dryrun` shows every setting of ours
    return run.Partial(
        llm.finetune,
        model=model,
        data=data,
        trainer=_trainer(precision, max_steps, placement),
        log=_log(save_every_n_steps),
        optim=_optimizer(precision, learning_rate, warmup_ratio),
        resume=run.Config(
            LongPOResume,
            restore_config=run.Config(nl.RestoreConfig, path="", load_artifacts=True),
            resume_if_exists=True,
            resume_ignore_no_checkpoint=True,
        ),
        tokenizer="model",
    )


def _trainer(precision: Precision, max_steps: int, placement: Placement) -> run.Config[nl.Trainer]:
    return run.Config(
        nl.Trainer,
        accelerator="auto",
        num_nodes=placement.num_nodes,
        devices=placement.devices,
        max_steps=max_steps,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        strategy=placement.strategy(),
        plugins=_precision(precision),
        callbacks=[run.Config(MetricsCallback)],
    )


def _precision(precision: Precision) -> run.Config[nl.MegatronMixedPrecision]:
    """Weights of the training precision from the start, never a whole model in fp32; gradients add up in fp32."""
    weights = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    return run.Config(nl.MegatronMixedPrecision, precision=precision, params_dtype=weights, grad_reduce_in_fp32=True)


def _optimizer(
    precision: Precision, learning_rate: float, warmup_ratio: float
) -> run.Config[nl.MegatronOptimizerModule]:
    """Adam without weight decay; linear warm-up, then a cosine to zero over the run's `max_steps`."""
    return run.Config(
        nl.MegatronOptimizerModule,
        config=run.Config(
            OptimizerConfig,
            optimizer="adam",
            lr=learning_rate,
            weight_decay=0.0,
            adam_beta1=0.9,
            adam_beta2=0.95,
            clip_grad=1.0,
            bf16=precision == "bf16-mixed",
            use_distributed_optimizer=True,
        ),
        lr_scheduler=run.Config(WarmupCosine, warmup_ratio=warmup_ratio, min_lr=0.0),
    )


def _log(save_every_n_steps: int) -> run.Config[nl.NeMoLogger]:
    """One run directory under `log_dir`; the newest checkpoint is kept, with all that resuming needs, and linked as
    `…-last`."""
    return run.Config(
        nl.NeMoLogger,
        log_dir="nemo_experiments",
        name=RUN_NAME,
        use_datetime_version=False,
        tensorboard=run.Config(TensorBoardLogger, save_dir=TENSORBOARD, name=RUN_NAME),
        ckpt=run.Config(
            LongPOCheckpoint,
            save_last="link",
            save_top_k=1,
            # NeMo looks the monitored name up in the whole path, so a plain "step" would be too common.
            monitor="global_step",
            mode="max",
            filename="{global_step:.0f}",
            every_n_train_steps=save_every_n_steps,
            save_optim_on_train_end=True,  # a finished run may be given more steps
            enable_version_counter=False,
        ),
    )
