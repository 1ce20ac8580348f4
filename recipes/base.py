"""The one recipe that all others are variants of."""

from functools import reduce

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
from nemo_longpo.placement import GLOBAL_BATCH_SIZE, Placement, Precision

ONE_GPU = Placement()


def longpo_recipe(
    *,
    seq_length: int,
    placement: Placement = ONE_GPU,
    precision: Precision = "bf16-mixed",
    global_batch_size: int = GLOBAL_BATCH_SIZE,
    learning_rate: float = 5e-7,
    warmup_ratio: float = 0.1,
    max_steps: int = 100,
    save_every_n_steps: int = 50,
    data_workers: int = 0,
) -> run.Partial:
    """Return a complete `llm.finetune` configuration with the paper's constants; its paths can all be overridden.

    The architecture and the tokenizer come from `resume.restore_config.path`, the data from `data.paths`.
    """
    model = run.Config(LongPOModel, objective=run.Config(Objective))
    data = run.Config(
        LongPODataModule, seq_length=seq_length, global_batch_size=global_batch_size, num_workers=data_workers
    )
    for config in (model, data):
        fdl.materialize_defaults(config)  # so that `--dryrun` shows every setting of ours
    recipe = run.Partial(
        llm.finetune,
        model=model,
        data=data,
        trainer=_trainer(precision, max_steps),
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
    for path, value in placement.settings().items():
        *owners, name = path.split(".")
        setattr(reduce(getattr, owners, recipe), name, value)
    return recipe


def _trainer(precision: Precision, max_steps: int) -> run.Config[nl.Trainer]:
    """Weights have the precision of training from the start, never a whole model in fp32.

    Gradients and weights travel between GPUs while these compute.
    """
    return run.Config(
        nl.Trainer,
        accelerator="auto",
        max_steps=max_steps,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        strategy=run.Config(
            LongPOStrategy,
            ddp=run.Config(
                DistributedDataParallelConfig,
                check_for_nan_in_grad=True,
                overlap_grad_reduce=True,
                overlap_param_gather=True,
            ),
        ),
        plugins=run.Config(
            nl.MegatronMixedPrecision,
            precision=precision,
            params_dtype=torch.bfloat16 if precision == "bf16-mixed" else torch.float32,
        ),
        callbacks=[run.Config(MetricsCallback)],
    )


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
    """One run directory under `log_dir`; the newest checkpoint is kept with all that resuming needs, as `…-last`."""
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
