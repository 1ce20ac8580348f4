"""The state of training beside the weights, from one trainer's form to the other's: the optimizer and the counters.

Megatron keeps the optimizer's tensors under `optimizer.state.KIND.NAME`, where NAME is that of the model's tensor, so
they change their prefix as the weights do, and every bit stays. That holds for an optimizer that each rank has whole,
and for the distributed one where it is saved for any parallel sizes (`fully_reshardable`); in its other formats tensors
belong to ranks. What is no tensor is written anew: the trainers count and schedule in words of their own.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from nemo_longpo.checkpoints.forms import BRIDGE, CheckpointForm
from nemo_longpo.errors import InputError

from .torch_dist import CONTENT, Chunk, DistCheckpoint, is_optimizer

DATA = "LongPODataModule"
"""Our data module's entry in a NeMo checkpoint."""

SHARDING, RESHARDABLE = "distrib_optim_sharding_type", "fully_reshardable"
_KEY = re.compile(r"(optimizer\.state\.\w+\.)(.+)")
_NEMO_NAMES = {"wd_mult": "pre_wd_mult", "lr_mult": "pre_lr_mult"}
"""What Megatron and NeMo call a field of a group of parameters."""
LIGHTNING = "2.4.0"
"""The release of Lightning in whose words `_fit_loop` is written, whichever is installed; later ones migrate it."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """How far training came (`step`, and `samples` consumed), and the optimizer's part that is no tensor.

    `optimizer` is Megatron's, its groups of parameters in Megatron's names; `content` says how its tensors are saved;
    `order` are the settings that the order of documents follows from; `min_lr` ends the learning rate's curve.
    """

    step: int
    samples: int
    optimizer: Mapping[str, Any]
    content: Mapping[str, Any]
    order: Mapping[str, Any]
    min_lr: float


def read_state(stored: DistCheckpoint, record: Mapping[str, Any]) -> TrainingState:
    """The state of a checkpoint whose record of the run is `record`.

    Raises InputError if it was not trained with this project, or if its optimizer belongs to ranks.
    """
    common = stored.common()
    content = common.get("content_metadata") or {}
    if content.get(SHARDING, RESHARDABLE) != RESHARDABLE:
        setting = "checkpoint.dist_ckpt" if stored.form is BRIDGE else "trainer.strategy.ckpt"
        raise _refusal(stored, f"it belongs to ranks; save with {setting}_optim_fully_reshardable=True first")
    if not any(is_optimizer(key) for key in stored.tensor_names()):
        raise _refusal(stored, "there is none")
    read = _read_bridge if stored.form is BRIDGE else _read_nemo
    return read(stored, common, content, record)


def _refusal(stored: DistCheckpoint, why: str) -> InputError:
    return InputError(
        f"the optimizer's state of {stored.whole} cannot go on in another trainer: {why}, or leave out --optimizer to "
        "begin a new run with the weights"
    )


def _read_nemo(
    stored: DistCheckpoint, common: Mapping[str, Any], content: Mapping[str, Any], record: Mapping[str, Any]
) -> TrainingState:
    optimizers, data = common.get("optimizer"), common.get(DATA)
    if not isinstance(data, dict) or not isinstance(optimizers, list) or len(optimizers) != 1:
        raise _refusal(stored, "it was not trained with nemo_longpo; take one that was")

    def renamed(group: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in group.items() if not name.startswith("pre_") and name != "initial_lr"}
        ours = {name: group[theirs] for name, theirs in _NEMO_NAMES.items() if theirs in group}
        return kept | ours | {"default_config": True, "min_lr": min_lr}

    schedule = (record.get("optim") or {}).get("lr_scheduler") or {}
    min_lr = float(schedule.get("min_lr") or 0.0)
    return TrainingState(
        step=common["global_step"],
        samples=data["consumed_samples"],
        optimizer=_with_groups(optimizers[0], renamed),
        content=content,
        order=data.get("order") or {},
        min_lr=min_lr,
    )


def _read_bridge(
    stored: DistCheckpoint, common: Mapping[str, Any], content: Mapping[str, Any], record: Mapping[str, Any]
) -> TrainingState:
    schedule, settings = common.get("opt_param_scheduler"), record.get("dataset")
    if not isinstance(schedule, dict) or not isinstance(settings, dict) or "length_window" not in settings:
        raise _refusal(stored, "it was not trained with nemo_longpo; take one that was")
    size = (record.get("train") or {}).get("global_batch_size")
    return TrainingState(
        step=common["iteration"],
        samples=schedule["num_steps"],
        optimizer=common["optimizer"],
        content=content,
        order={"global_batch_size": size, "length_window": settings["length_window"], "seed": settings["seed"]},
        min_lr=schedule["min_lr"],
    )


def _with_groups(optimizer: Any, change: Any) -> dict[str, Any]:
    """Megatron's optimizer state with other groups of parameters; the distributed one has them one level deeper."""
    if "param_groups" in optimizer:
        return {**optimizer, "param_groups": [change(group) for group in optimizer["param_groups"]]}
    return {**optimizer, "optimizer": _with_groups(optimizer["optimizer"], change)}


def optimizer_chunks(stored: DistCheckpoint, form: CheckpointForm) -> Iterator[Chunk]:
    """Every tensor of the optimizer, part by part as it is stored, under its name in another form."""
    for key in filter(is_optimizer, stored.tensor_names()):
        match = _KEY.fullmatch(key)
        if match is None or not match[2].startswith(stored.form.prefix):
            raise _refusal(stored, f"{key} belongs to no tensor of the model; take another checkpoint")
        for offsets, sizes in stored.parts_of(key):
            yield Chunk(
                key=f"{match[1]}{form.prefix}{match[2].removeprefix(stored.form.prefix)}",
                global_shape=stored.shape(key),
                offsets=offsets,
                sizes=sizes,
                dtype=stored.dtype(key),
                load=partial(stored.read, key, offsets, sizes),
            )


BRIDGE_COMMON = {"checkpoint_version": 3.0, "iteration": 0}
"""What Bridge keeps in `common.pt` of a checkpoint without optimizer and random state."""


def bridge_common(state: TrainingState) -> dict[str, Any]:
    """What Bridge keeps of a run beside tensors. Of its schedule only the step counts, the rest is the settings'.

    They are taken with `scheduler.override_opt_param_scheduler=True`, which our recipes have.
    """
    return {
        **BRIDGE_COMMON,
        "iteration": state.step,
        "optimizer": dict(state.optimizer),
        "opt_param_scheduler": {
            "max_lr": _groups(state)[0]["max_lr"],
            "min_lr": state.min_lr,
            "num_steps": state.samples,
            "lr_warmup_steps": 0,
            "lr_decay_style": "cosine",
            "lr_decay_steps": state.samples,
            "start_wd": 0.0,
            "end_wd": 0.0,
            "wd_incr_style": "constant",
            "wd_incr_steps": state.samples,
        },
        "content_metadata": {**CONTENT["content_metadata"], **state.content},
    }


def nemo_common(state: TrainingState) -> dict[str, Any]:
    """What Lightning and our data module keep of a run beside tensors. Of its schedule only the step counts."""
    decay = max(group["weight_decay"] for group in _groups(state))

    def renamed(group: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in group.items() if name not in (*_NEMO_NAMES, "default_config")}
        theirs = {theirs: group[name] for name, theirs in _NEMO_NAMES.items()}
        rate = group["max_lr"]
        return kept | theirs | {"min_lr": None, "pre_mult_lr": rate, "initial_lr": rate, "pre_mult_wd": decay}

    return {
        "epoch": 0,
        "global_step": state.step,
        "pytorch-lightning_version": LIGHTNING,
        "state_dict": {},
        "loops": {"fit_loop": _fit_loop(state.step)},
        "callbacks": {},
        "optimizer_states": {},
        "lr_schedulers": [{"last_epoch": state.step, "_step_count": state.step + 1}],
        DATA: {"consumed_samples": state.samples, "order": dict(state.order)},
        "optimizer": [_with_groups(state.optimizer, renamed)],
        "content_metadata": {**CONTENT["content_metadata"], **state.content},
    }


def _groups(state: TrainingState) -> list[Mapping[str, Any]]:
    optimizer: Any = state.optimizer
    found: list[Mapping[str, Any]] = optimizer.get("param_groups") or optimizer["optimizer"]["param_groups"]
    return found


def _fit_loop(step: int) -> dict[str, Any]:
    """Lightning's progress of a run that has ended a step; one batch of its loop is a step."""
    batches = {"ready": step, "completed": step - 1, "started": step, "processed": step}
    epochs = {"ready": 1, "completed": 0, "started": 1, "processed": 0}
    steps = {"ready": step, "completed": step}
    none = {"ready": 0, "completed": 0, "started": 0, "processed": 0}
    begun = {"ready": 0, "completed": 0, "started": 0}

    def both(progress: Mapping[str, int]) -> dict[str, Any]:
        return {"total": dict(progress), "current": dict(progress)}

    return {
        "state_dict": {},
        "epoch_progress": both(epochs),
        "epoch_loop.state_dict": {"_batches_that_stepped": step - 1},
        "epoch_loop.batch_progress": both(batches) | {"is_last_batch": False},
        "epoch_loop.scheduler_progress": both(steps),
        "epoch_loop.automatic_optimization.state_dict": {},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {"step": both(steps), "zero_grad": both(begun)}
        },
        "epoch_loop.manual_optimization.state_dict": {},
        "epoch_loop.manual_optimization.optim_step_progress": both({"ready": 0, "completed": 0}),
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": both(none) | {"is_last_batch": False},
    }
