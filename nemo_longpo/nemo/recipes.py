"""The base recipe, its variants by name for `nemo llm finetune --factory NAME`, and `peft=lora`.

The `nemo` command imports this file to find the names.

Those for 7B and 8B models are the rows of `LONG_RUNS`.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any, Optional

import fiddle as fdl
import nemo_run as run
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl
from nemo.collections import llm
from nemo.lightning.pytorch.callbacks import PEFT
from nemo_run.core.frontend.console.api import CONSOLE

from nemo_longpo.checkpoints.run_directory import RUN_NAME, TENSORBOARD
from nemo_longpo.objective import Objective
from nemo_longpo.placement import Precision
from nemo_longpo.recipe_table import LONG_RUNS, LONGPO, TINY_LONGPO, LongRun, RecipeSettings

from . import callbacks, checkpoint_callback, data_module, model, resume, schedule, strategy


def longpo_recipe(**settings: Any) -> run.Partial:
    """Return a complete `llm.finetune` configuration with the paper's constants; its paths can all be overridden.

    `settings` are fields of `RecipeSettings`, of which only `seq_length` must be given. The architecture and the
    tokenizer come from `resume.restore_config.path`, the data from `data.paths`.
    """
    return make_recipe(RecipeSettings(**settings))


def make_recipe(settings: RecipeSettings) -> run.Partial:
    model_config = run.Config(model.LongPOModel, objective=run.Config(Objective))
    data_config = run.Config(
        data_module.LongPODataModule,
        seq_length=settings.seq_length,
        global_batch_size=settings.global_batch_size,
        num_workers=settings.data_workers,
    )
    for config in (model_config, data_config):
        fdl.materialize_defaults(config)  # so that `--dryrun` shows all our settings
    recipe = run.Partial(
        llm.finetune,
        model=model_config,
        data=data_config,
        trainer=_trainer(settings),
        log=_log(settings),
        optim=_optimizer(settings),
        resume=run.Config(
            resume.LongPOResume,
            restore_config=run.Config(nl.RestoreConfig, path="", load_artifacts=True),
            resume_if_exists=True,
            resume_ignore_no_checkpoint=True,
        ),
        tokenizer="model",
    )
    for path, value in settings.placement.settings().items():
        *owners, name = path.split(".")
        setattr(reduce(getattr, owners, recipe), name, value)
    return recipe


def _trainer(settings: RecipeSettings) -> run.Config[nl.Trainer]:
    """Return the trainer. Weights are in the training precision from the start; no whole model in fp32 exists.

    Gradients and weights are sent between GPUs during computation.
    """
    return run.Config(
        nl.Trainer,
        accelerator="auto",
        max_steps=settings.max_steps,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        strategy=run.Config(
            strategy.LongPOStrategy,
            ddp=run.Config(
                DistributedDataParallelConfig,
                overlap_grad_reduce=True,
                overlap_param_gather=True,
            ),
        ),
        plugins=run.Config(
            nl.MegatronMixedPrecision,
            precision=settings.precision,
            params_dtype=torch.bfloat16 if settings.precision == "bf16-mixed" else torch.float32,
        ),
        callbacks=[run.Config(callbacks.MetricsCallback)],
    )


def _optimizer(settings: RecipeSettings) -> run.Config[nl.MegatronOptimizerModule]:
    """Return Adam without weight decay; linear warm-up, then a cosine to zero over the run's `max_steps`."""
    return run.Config(
        nl.MegatronOptimizerModule,
        config=run.Config(
            OptimizerConfig,
            optimizer="adam",
            lr=settings.learning_rate,
            weight_decay=0.0,
            adam_beta1=0.9,
            adam_beta2=0.95,
            clip_grad=1.0,
            bf16=settings.precision == "bf16-mixed",
            use_distributed_optimizer=True,
        ),
        lr_scheduler=run.Config(schedule.WarmupCosine, warmup_ratio=settings.warmup_ratio, min_lr=0.0),
    )


def _log(settings: RecipeSettings) -> run.Config[nl.NeMoLogger]:
    """Return a log with one run directory under `log_dir`; `…-last` is the newest checkpoint, complete for resuming."""
    return run.Config(
        nl.NeMoLogger,
        log_dir="nemo_experiments",
        name=RUN_NAME,
        use_datetime_version=False,
        tensorboard=run.Config(TensorBoardLogger, save_dir=TENSORBOARD, name=RUN_NAME),
        ckpt=run.Config(
            checkpoint_callback.LongPOCheckpoint,
            save_last="link",
            save_top_k=1,
            # NeMo looks the monitored name up in the whole path, so a plain "step" would be too common.
            monitor="global_step",
            mode="max",
            filename="{global_step:.0f}",
            every_n_train_steps=settings.save_every_n_steps,
            save_optim_on_train_end=True,  # a finished run may be given more steps
            enable_version_counter=False,
        ),
    )


if os.environ.get("LOCAL_RANK", "0") != "0":
    # Lightning runs the same command line again for every rank of a machine; the first printed the configuration.
    CONSOLE.quiet = True

LINEAR_LAYERS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")

RECIPES: dict[str, Callable[..., run.Partial]] = {}


def recipe(function: Callable[..., run.Partial]) -> Callable[..., run.Partial]:
    """Offer a recipe under its function's name."""
    RECIPES[function.__name__] = run.cli.factory(target=llm.finetune, name=function.__name__)(function)
    return RECIPES[function.__name__]


def _recipe_of(name: str, long_run: LongRun) -> Callable[[], run.Partial]:
    def build() -> run.Partial:
        return make_recipe(long_run.settings)

    build.__name__, build.__doc__ = name, long_run.summary
    return build


for _name, _long_run in LONG_RUNS.items():
    recipe(_recipe_of(_name, _long_run))


@recipe
def longpo(precision: Precision = "bf16-mixed") -> run.Partial:
    """LongPO with the paper's constants for any model, length and GPUs; `longpo plan --recipe` sets the rest."""
    return make_recipe(replace(LONGPO, precision=precision))


@recipe
def tiny_longpo(precision: Precision = "32") -> run.Partial:
    """LongPO for small Mistral, Qwen2.5, Qwen3 and Llama 3 checkpoints; runs without a GPU.

    `precision` is that of weights, activations and optimizer together: `--factory "tiny_longpo(precision=bf16-mixed)"`.
    """
    return make_recipe(replace(TINY_LONGPO, precision=precision))


@run.cli.factory(target=PEFT, name="lora")
def lora(
    dim: int = 32,
    alpha: int = 32,
    target_modules: Optional[list[str]] = None,  # noqa: UP045 (NeMo-Run's parser knows no `|`)
) -> run.Config[llm.peft.LoRA]:
    """Adapters of rank `dim`, scaled by alpha / dim, on all linear layers of the decoder or on those named."""
    return run.Config(llm.peft.LoRA, dim=dim, alpha=alpha, target_modules=list(target_modules or LINEAR_LAYERS))
