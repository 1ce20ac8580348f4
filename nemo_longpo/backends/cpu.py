"""Lets Megatron-Core train on a machine without an accelerator, over gloo, and NeMo or Megatron-Bridge around it.

Here and in `redirections`, and nowhere else, their CUDA calls are answered with their CPU meaning. `activate` does
nothing where an accelerator is present.
"""

from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

from nemo_longpo import trainers

from . import bridge_import, redirections

Trainer = trainers.TrainerName | Literal["megatron"]
"""What trains in a process: NeMo, Megatron-Bridge, or a loop around Megatron-Core alone."""


def is_needed() -> bool:
    """Whether this process has to train on the CPU."""
    return not torch.cuda.is_available()


def installed_trainer() -> Trainer:
    """Return the trainer that this environment holds; NeMo's if it holds both."""
    if trainers.is_installed("nemo"):
        return "nemo"
    return "bridge" if trainers.is_installed("megatron.bridge") else "megatron"


def redirections_of(trainer: Trainer) -> list[redirections.Redirection]:
    """Return what a process of this trainer replaces: Megatron-Core's calls, and those of NeMo or Megatron-Bridge."""
    owners = {"nemo": redirections.of_nemo, "bridge": redirections.of_bridge, "megatron": list}
    return [*redirections.of_megatron(), *owners[trainer]()]


def _names_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.startswith("cuda")


class _CudaMeansCpu(TorchFunctionMode):
    """Answers `device="cuda"` with the CPU, drops `pin_memory`, and lets tensors claim their CUDA type name.

    Upstream: megatron/core/optimizer/clip_grads.py:90 (`device='cuda'`); nemo/lightning/pytorch/strategies/
    megatron_strategy.py:797 (`torch.tensor(..., pin_memory=True).to("cuda")`); megatron/core/optimizer/optimizer.py:686
    and clip_grads.py:167 (`param.type() == 'torch.cuda.FloatTensor'`).
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if _names_cuda(kwargs.get("device")):
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.")
        if func is torch.Tensor.to:
            args = tuple(torch.device("cpu") if _names_cuda(arg) else arg for arg in args)
        return func(*args, **kwargs)


_mode: _CudaMeansCpu | None = None


def is_active() -> bool:
    """Whether `activate` has redirected this process."""
    return _mode is not None


def activate(trainer: Trainer | None = None) -> bool:
    """Redirect CUDA calls to the CPU, once per process, if there is no accelerator.

    Args:
        trainer: what trains in this process; by default, what is installed. Megatron-Bridge is imported here with the
            stand-ins that it needs, beside an accelerator too.

    Returns:
        Whether the redirections are in force.
    """
    global _mode
    trainer = trainer or installed_trainer()
    if trainer == "bridge":
        bridge_import.import_bridge()
    if not is_needed():
        return False
    if _mode is None:
        for redirection in redirections_of(trainer):
            setattr(redirection.owner, redirection.name, redirection.stand_in)
        _mode = _CudaMeansCpu()
        _mode.__enter__()
    return True


# Fused kernels that exist for CUDA only (megatron/core/fusions, apex, Transformer Engine).
_CUDA_ONLY_SETTINGS = {
    "use_cpu_initialization": True,
    "gradient_accumulation_fusion": False,
    "bias_activation_fusion": False,
    "masked_softmax_fusion": False,
    "bias_dropout_fusion": False,
    "apply_rope_fusion": False,
    "cross_entropy_loss_fusion": False,
    "persist_layer_norm": False,
    "tp_comm_overlap": False,
}


def without_cuda_kernels(config: Any) -> Any:
    """Switch off, in place, the settings of a Megatron transformer config that need CUDA kernels; returns `config`."""
    for name, value in _CUDA_ONLY_SETTINGS.items():
        setattr(config, name, value)
    return config
