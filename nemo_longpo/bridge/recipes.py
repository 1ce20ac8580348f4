"""Recipes for Megatron-Bridge: functions that return a complete `ConfigContainer`.

They are those of `nemo_longpo.nemo.recipes`, by the same names and from the same table. Every value can be overridden
by `section.name=value` on the command line of `nemo_longpo.bridge.train`, or on the object.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.bridge.training import config as bridge_config, mixed_precision
from megatron.bridge.training.tokenizers.config import TokenizerConfig

from nemo_longpo.checkpoints import run_directory
from nemo_longpo.megatron import job_settings
from nemo_longpo.placement import Placement, Precision
from nemo_longpo.recipe_table import LONG_RUNS, LONGPO, TINY_LONGPO, RecipeSettings

from . import run_settings, training_loop
from .provider import LongPOProvider

LOG_DIR = "nemo_experiments"


def longpo_config(*, log_dir: str = LOG_DIR, **settings: Any) -> bridge_config.ConfigContainer:
    """Return a complete configuration with the paper's constants.

    `settings` are fields of `RecipeSettings`, of which only `seq_length` must be given. The model comes from
    `checkpoint.pretrained_checkpoint`, the data from `dataset.paths`. The run's files lie in `log_dir` as those of
    NeMo's runs do.
    """
    return make_config(RecipeSettings(**settings), log_dir)


def make_config(settings: RecipeSettings, log_dir: str = LOG_DIR) -> bridge_config.ConfigContainer:
    placement = settings.placement
    config = bridge_config.ConfigContainer(
        model=_model(placement),
        train=run_settings.LongPOTraining(
            train_iters=settings.max_steps, global_batch_size=settings.global_batch_size, micro_batch_size=1
        ),
        validation=bridge_config.ValidationConfig(eval_interval=None, eval_iters=0),
        optimizer=_optimizer(placement, settings.learning_rate),
        scheduler=bridge_config.SchedulerConfig(
            lr_decay_style="cosine",
            lr_warmup_fraction=settings.warmup_ratio,
            start_weight_decay=0.0,
            end_weight_decay=0.0,
            override_opt_param_scheduler=True,
        ),
        ddp=bridge_config.DistributedDataParallelConfig(
            grad_reduce_in_fp32=placement.grad_reduce_in_fp32,
            overlap_grad_reduce=True,
            overlap_param_gather=True,
            use_distributed_optimizer=True,
        ),
        dataset=training_loop.PairDataset(
            seq_length=settings.seq_length,
            num_workers=settings.data_workers,
            persistent_workers=settings.data_workers > 0,
        ),
        logger=bridge_config.LoggerConfig(log_interval=1),
        tokenizer=TokenizerConfig(tokenizer_type="HuggingFaceTokenizer"),
        checkpoint=run_settings.LongPOCheckpointing(
            save="",
            save_interval=settings.save_every_n_steps,
            most_recent_k=1,
            ckpt_format="torch_dist",
            async_save=True,
        ),
        # Ours names the documents, and may leave a step out; Bridge's would end the process first.
        rerun_state_machine=bridge_config.RerunStateMachineConfig(rerun_mode="disabled", check_for_nan_in_loss=False),
        dist=bridge_config.DistributedInitConfig(),
    )
    set_log_dir(config, log_dir)
    set_precision(config, settings.precision)
    if config.mixed_precision is not None:
        config.mixed_precision.grad_reduce_in_fp32 = placement.grad_reduce_in_fp32
    return config


def set_log_dir(config: bridge_config.ConfigContainer, log_dir: str, name: str = run_directory.RUN_NAME) -> None:
    """Put the files of a run into `log_dir`, where `longpo report` and the next start look for them.

    Unless `logger.tensorboard_dir` is set, those of TensorBoard and the metrics follow from `checkpoint.save`.
    """
    config.checkpoint.save = str(Path(log_dir) / name / run_directory.CHECKPOINTS)


def set_precision(config: bridge_config.ConfigContainer, precision: Precision) -> None:
    """Set the precision of weights, activations and optimizer together."""
    config.mixed_precision = mixed_precision.bf16_mixed() if precision == "bf16-mixed" else None
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    config.model.bf16 = config.optimizer.bf16 = precision == "bf16-mixed"
    config.model.params_dtype = config.model.pipeline_dtype = config.optimizer.params_dtype = dtype


def _model(placement: Placement) -> LongPOProvider:
    model = LongPOProvider(
        tensor_model_parallel_size=placement.tp,
        pipeline_model_parallel_size=placement.pp,
        context_parallel_size=placement.cp,
        sequence_parallel=placement.tp > 1 if placement.sequence_parallel is None else placement.sequence_parallel,
        offload_layer_inputs=placement.offload_layer_inputs,
        mlp_tile_tokens=placement.mlp_tile_tokens,
    )
    job_settings.put_on(model, placement)
    return model


def _optimizer(placement: Placement, learning_rate: float) -> bridge_config.OptimizerConfig:
    """Return Adam without weight decay; linear warm-up, then a cosine to zero over the run's steps."""
    # Megatron-Core takes an offloaded optimizer only as a precision-aware one.
    offloaded = {
        "optimizer_cpu_offload": True,
        "optimizer_offload_fraction": 1.0,
        "use_precision_aware_optimizer": True,
    }
    return bridge_config.OptimizerConfig(
        optimizer="adam",
        lr=learning_rate,
        min_lr=0.0,
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.95,
        clip_grad=1.0,
        use_distributed_optimizer=True,
        overlap_param_gather=True,
        **(offloaded if placement.offload_optimizer else {}),
    )


def _long(name: str) -> bridge_config.ConfigContainer:
    return make_config(LONG_RUNS[name].settings)


def longpo(precision: Precision = "bf16-mixed") -> bridge_config.ConfigContainer:
    """LongPO with the paper's constants for any model, length and GPUs."""
    return make_config(replace(LONGPO, precision=precision))


def tiny_longpo(precision: Precision = "32") -> bridge_config.ConfigContainer:
    """LongPO for small Mistral, Qwen2.5, Qwen3 and Llama 3 checkpoints; runs without a GPU."""
    return make_config(replace(TINY_LONGPO, precision=precision))


RECIPES: dict[str, Callable[[], bridge_config.ConfigContainer]] = {
    **{name: partial(_long, name) for name in LONG_RUNS},
    "longpo": longpo,
    "tiny_longpo": tiny_longpo,
}
SUMMARIES = {name: run.summary for name, run in LONG_RUNS.items()} | {
    name: str(RECIPES[name].__doc__) for name in ("longpo", "tiny_longpo")
}


def __getattr__(name: str) -> Callable[[], bridge_config.ConfigContainer]:
    """The recipes of the table, as functions of this module: `recipes.mistral_7b_longpo_128k()`."""
    if name in LONG_RUNS:
        return RECIPES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
