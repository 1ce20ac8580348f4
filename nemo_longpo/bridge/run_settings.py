"""The settings of a run: ours beside Megatron-Bridge's, whether they fit each other, and what follows from them.

What is checked, in which order and in which words is the same as with NeMo; `nemo_longpo.setting_names` has the names.
"""

from dataclasses import dataclass
from typing import get_args

import torch.distributed as dist
from megatron.bridge.training import config as bridge_config

from nemo_longpo.errors import InputError
from nemo_longpo.megatron import backend, finite_steps, job_settings, pair_data
from nemo_longpo.placement import Placement

from . import run_checkpoints


@dataclass(kw_only=True)
class LongPOTraining(bridge_config.TrainingConfig):
    """Bridge's settings, and ours.

    Attributes:
        non_finite_steps: what happens when a loss or a gradient is not finite: `error` ends the run, `skip` leaves the
            step out.
        max_skipped_steps: how many steps in a row `skip` may leave out before it ends the run.
    """

    non_finite_steps: finite_steps.NonFinite = "error"
    max_skipped_steps: int = 3


@dataclass(kw_only=True)
class LongPOCheckpointing(bridge_config.CheckpointConfig):
    """Bridge's settings, and ours. `load` may stay unset: a run goes on from the newest complete checkpoint in `save`.

    Attributes:
        trust_checkpoint: unpickle anything that checkpoints name, even if it may run code.
        check_hashes: compare the files of a recorded checkpoint with their hashes before loading, not only their sizes.
        accept_changes: let a run resume with other shards, or another `pretrained_checkpoint`, than it started with.
    """

    custom_manager_class: str | None = f"{run_checkpoints.__name__}.RunCheckpoints"
    trust_checkpoint: bool = False
    check_hashes: bool = True
    accept_changes: bool = False


def placement_of(config: bridge_config.ConfigContainer) -> Placement:
    """How the configuration divides the job, in the words that both trainers share."""
    model = config.model
    return Placement(
        tp=model.tensor_model_parallel_size,
        pp=model.pipeline_model_parallel_size,
        cp=model.context_parallel_size,
        sequence_parallel=model.sequence_parallel,
        recompute_granularity=model.recompute_granularity,
        recompute_method=model.recompute_method or "uniform",
        recompute_num_layers=1 if model.recompute_num_layers is None else model.recompute_num_layers,
        recompute_modules=model.recompute_modules if model.recompute_granularity == "selective" else None,
        cpu_offloading_num_layers=model.cpu_offloading_num_layers if model.cpu_offloading else 0,
        cp_comm_type=model.cp_comm_type or "p2p",
        hierarchical_context_parallel_sizes=model.hierarchical_context_parallel_sizes,
        offload_layer_inputs=model.offload_layer_inputs,
        mlp_tile_tokens=model.mlp_tile_tokens,
    )


_REFUSED = (
    ("model", "virtual_pipeline_model_parallel_size", None, "interleaved stages were never compared with a reference"),
    ("model", "calculate_per_token_loss", False, "the loss is a mean over pairs, not over tokens"),
    ("model", "fp16", False, "training was compared with a reference in fp32 and bf16"),
    ("model", "fp8", None, "training was compared with a reference in fp32 and bf16"),
    ("dist", "use_megatron_fsdp", False, "sharded weights were never compared with a reference"),
    ("dist", "use_torch_fsdp2", False, "sharded weights were never compared with a reference"),
    ("dist", "use_decentralized_pg", False, "our layers take Megatron's own process groups"),
    ("train", "rampup_batch_size", None, "the order of the documents follows from one batch size"),
    ("train", "train_samples", None, "the length of a run is train.train_iters"),
    ("dataset", "dataloader_type", "single", "the pairs come in the order of the run"),
    ("tokenizer", "tokenizer_type", "HuggingFaceTokenizer", "shards are held to the model's own tokenizer"),
    ("checkpoint", "ckpt_format", "torch_dist", "checkpoints of other formats were never resumed"),
)
"""Section, setting, the value that it must have, and why."""


def check(config: bridge_config.ConfigContainer) -> None:
    """Raises InputError if the settings of the job do not fit the model or each other."""
    for section, name, wanted, why in _REFUSED:
        found = getattr(getattr(config, section), name)
        if found != wanted:
            raise InputError(f"{section}.{name} is {found!r}: {why}; set it to {wanted}.")
    if config.peft is not None:
        raise InputError("peft is set, and adapters are not trained through Megatron-Bridge; leave it out.")
    train, data = config.train, config.dataset
    for name, value in (
        ("train.train_iters", train.train_iters),
        ("train.global_batch_size", train.global_batch_size),
        ("model.tensor_model_parallel_size", config.model.tensor_model_parallel_size),
        ("model.pipeline_model_parallel_size", config.model.pipeline_model_parallel_size),
        ("model.context_parallel_size", config.model.context_parallel_size),
        ("model.seq_length", config.model.seq_length),
        ("dataset.seq_length", data.seq_length),
        ("optimizer.lr", config.optimizer.lr),
    ):
        if value is None or value <= 0:
            raise InputError(f"{name} is {value}; give a number above 0.")
    if train.non_finite_steps not in get_args(finite_steps.NonFinite) or train.max_skipped_steps < 1:
        raise InputError(
            f"train.non_finite_steps={train.non_finite_steps} with max_skipped_steps={train.max_skipped_steps}: the "
            f"first is one of {', '.join(get_args(finite_steps.NonFinite))}, the second 1 or more."
        )
    config.model.check()
    pair_data.check_settings(
        seq_length=data.seq_length,
        global_batch_size=train.global_batch_size,
        micro_batch_size=train.micro_batch_size,
        length_window=data.length_window,
        seed=data.seed,
        check_reference=data.check_reference,
        check_reference_samples=data.check_reference_samples,
    )
    placement = placement_of(config)
    _check_ranks(config, placement)
    job_settings.check(placement, config.model, config.model.pair_layout)
    job_settings.check_optimizer(config.optimizer)
    backend.current_backend().refuse(placement, config.model, config.optimizer)


def _check_ranks(config: bridge_config.ConfigContainer, placement: Placement) -> None:
    world = dist.get_world_size()
    if world % placement.gpus:
        raise InputError(
            f"tensor, pipeline and context parallelism (model.…_parallel_size) take {placement.tp} × {placement.pp} × "
            f"{placement.cp} ranks, which do not divide the {world} that were started; start a multiple of "
            f"{placement.gpus}."
        )
    if config.train.global_batch_size % (world // placement.gpus):
        raise InputError(
            f"train.global_batch_size={config.train.global_batch_size} is not a multiple of the "
            f"{world // placement.gpus} data-parallel ranks; choose one."
        )
    positions = config.model.seq_length
    if placement.cp > 1 and positions % (2 * placement.cp):
        raise InputError(
            f"The model has {positions} positions, and Bridge wants a multiple of 2 · context_parallel_size = "
            f"{2 * placement.cp}; set model.seq_length to one."
        )


def complete(config: bridge_config.ConfigContainer) -> None:
    """Set what follows from other settings, and what a machine without a GPU needs."""
    job_settings.put_on(config.model, placement_of(config))
    config.ddp.check_for_nan_in_grad = False  # it would raise on one rank, and name nothing
    _complete_schedule(config)
    here = backend.current_backend()
    for name, value in here.optimizer_settings.items():
        setattr(config.optimizer, name, value)
    if here.is_accelerated:
        return
    config.dist.distributed_backend = "gloo"
    config.dist.use_gloo_process_groups = True
    config.dist.disable_jit_fuser = True
    config.checkpoint.async_save = False
    config.ddp.use_distributed_optimizer = False
    config.ddp.overlap_grad_reduce = config.ddp.overlap_param_gather = False
    config.optimizer.overlap_param_gather = False


def _complete_schedule(config: bridge_config.ConfigContainer) -> None:
    """Count the warm-up in whole steps, and let step s of w, from 0, run at (s + 1) / (w + 1) of the full rate.

    Bridge's own begins with a step at rate 0. The curve is that of the settings, and only its step comes from a
    checkpoint, so a finished run may be given more steps.
    """
    schedule = config.scheduler
    schedule.override_opt_param_scheduler = True
    if schedule.lr_warmup_fraction is not None:
        steps = schedule.max_steps or schedule.lr_decay_iters or config.train.train_iters
        schedule.lr_warmup_iters = int(schedule.lr_warmup_fraction * steps)
        schedule.lr_warmup_fraction = None
    if schedule.lr_warmup_init == 0 and schedule.lr_warmup_iters:
        schedule.lr_warmup_init = config.optimizer.lr / (schedule.lr_warmup_iters + 1)
