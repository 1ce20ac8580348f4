"""The one recipe that all others are variants of."""

from typing import Literal

import fiddle as fdl
import nemo_run as run
from lightning.pytorch.loggers import TensorBoardLogger
from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl
from nemo.collections import llm
from nemo.lightning.pytorch.optim import CosineAnnealingScheduler

from nemo_longpo.megatron.data import LongPODataModule
from nemo_longpo.megatron.metrics import MetricsCallback
from nemo_longpo.megatron.model import LongPOModel
from nemo_longpo.megatron.resume import LongPOResume
from nemo_longpo.megatron.strategy import LongPOStrategy
from nemo_longpo.objective import Objective

Precision = Literal["32", "bf16-mixed"]


def longpo_recipe(
    *,
    seq_length: int,
    precision: Precision = "bf16-mixed",
    global_batch_size: int = 8,
    learning_rate: float = 5e-7,
    max_steps: int = 100,
    warmup_steps: int = 10,
    save_every_n_steps: int = 50,
    num_nodes: int = 1,
    devices: int = 1,
) -> run.Partial:
    """A complete `llm.finetune` configuration with the paper's optimizer; every value can be overridden by its path.

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
        trainer=_trainer(precision, max_steps, num_nodes, devices),
        log=_log(save_every_n_steps),
        optim=_optimizer(precision, learning_rate, warmup_steps),
        resume=run.Config(
            LongPOResume,
            restore_config=run.Config(nl.RestoreConfig, path="", load_artifacts=True),
            resume_if_exists=True,
            resume_ignore_no_checkpoint=True,
        ),
        tokenizer="model",
    )


def _trainer(precision: Precision, max_steps: int, num_nodes: int, devices: int) -> run.Config[nl.Trainer]:
    return run.Config(
        nl.Trainer,
        accelerator="auto",
        num_nodes=num_nodes,
        devices=devices,
        max_steps=max_steps,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        strategy=run.Config(LongPOStrategy),
        plugins=run.Config(nl.MegatronMixedPrecision, precision=precision),
        callbacks=[run.Config(MetricsCallback)],
    )


def _optimizer(precision: Precision, learning_rate: float, warmup_steps: int) -> run.Config[nl.MegatronOptimizerModule]:
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
        lr_scheduler=run.Config(CosineAnnealingScheduler, warmup_steps=warmup_steps, constant_steps=0, min_lr=0.0),
    )


def _log(save_every_n_steps: int) -> run.Config[nl.NeMoLogger]:
    """One run directory under `log_dir`; the newest checkpoint is kept, and linked as `…-last`."""
    return run.Config(
        nl.NeMoLogger,
        log_dir="nemo_experiments",
        name="longpo",
        use_datetime_version=False,
        tensorboard=run.Config(TensorBoardLogger, save_dir="tb_logs", name="longpo"),
        ckpt=run.Config(
            nl.ModelCheckpoint,
            save_last="link",
            save_top_k=1,
            # NeMo looks the monitored name up in the whole path, so a plain "step" would be too common.
            monitor="global_step",
            mode="max",
            filename="{global_step:.0f}",
            every_n_train_steps=save_every_n_steps,
        ),
    )
