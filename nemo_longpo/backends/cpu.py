"""Lets NeMo and Megatron-Core train on a machine without an accelerator, over gloo.

Megatron-Core 0.15 and NeMo 2.6/2.7 assume CUDA in a few dozen places. Here, and nowhere else, those calls are answered
with their CPU meaning. `activate` does nothing where an accelerator is present. Each redirection names the upstream
line that needs it; `tests/backends/test_cpu.py` fails when a redirected call starts to work without us.
"""

import queue
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode


def is_needed() -> bool:
    """Whether this process has to train on the CPU."""
    return not torch.cuda.is_available()


class _Stream:
    """A stream of a device that runs everything in order: nobody ever has to wait for it."""


class _NoLayer:
    """A class of which no layer is an instance."""


def _also_seeding_the_rng_tracker(set_random_seed: Callable[[int], None]) -> Callable[[int], None]:
    def seed_everything(seed: int) -> None:
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

        set_random_seed(seed)
        model_parallel_cuda_manual_seed(seed)

    return seed_everything


class Redirection(NamedTuple):
    """`owner.name` becomes `stand_in` because `upstream` calls it on every machine."""

    owner: Any
    name: str
    stand_in: Any
    upstream: str


def redirections() -> list[Redirection]:
    """Every attribute that is replaced, with the upstream line it answers (Megatron-Core 0.15.3, NeMo 2.7.3).

    Each gets a function of its own: torch.compile keys what it knows of `torch.cuda` by the function object.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.tensor_parallel import random as megatron_random
    from nemo.collections.llm.peft import lora, utils as peft_utils
    from nemo.lightning import megatron_init
    from nemo.lightning.io import pl as nemo_checkpoint

    cuda, state = torch.cuda, torch.get_rng_state
    p2p, rng = "megatron/core/pipeline_parallel/p2p_communication.py", "megatron/core/tensor_parallel/random.py"
    seed = _also_seeding_the_rng_tracker(megatron_init._set_random_seed)
    return [
        Redirection(cuda, "Stream", _Stream, "nemo/lightning/megatron_parallel.py init_model_parallel"),
        Redirection(cuda, "synchronize", lambda device=None: None, f"{p2p}:242"),
        Redirection(cuda, "current_device", lambda: torch.device("cpu"), f"{p2p}:190"),
        Redirection(cuda, "get_rng_state", lambda *a, **k: state(), f"{rng}:196"),
        # Without CUDA torch defers the seed forever, so all of Megatron's generators would share one state.
        Redirection(cuda, "manual_seed", lambda seed: torch.manual_seed(seed), f"{rng}:198"),
        Redirection(megatron_random, "_get_cuda_rng_state", lambda *a, **k: state(), f"{rng}:66"),
        Redirection(megatron_random, "_set_cuda_rng_state", lambda to, *a, **k: torch.set_rng_state(to), f"{rng}:111"),
        # Seeds Megatron's tracker only if device_count() > 0; sequence parallelism draws from it.
        Redirection(megatron_init, "_set_random_seed", seed, "nemo/lightning/megatron_init.py:238"),
        # Asserts torch.cuda.is_initialized().
        Redirection(nemo_checkpoint, "_fix_tensors_device", lambda saved: saved, "nemo/lightning/io/pl.py:495"),
        # Spawns a manager process for a queue that a synchronous save reads in this process.
        Redirection(filesystem_async, "_results_queue", queue.SimpleQueue(), "filesystem_async.py:54"),
        # Compares every layer's class with te.Linear, which raises without Transformer Engine.
        Redirection(lora, "te", SimpleNamespace(Linear=_NoLayer), "nemo/collections/llm/peft/lora.py:703"),
        # Takes Megatron-Core's stand-ins for Transformer Engine's layers.
        Redirection(peft_utils, "HAVE_TE", False, "nemo/collections/llm/peft/utils.py:54"),
        # Also megatron/core/models/common/embeddings/rope_utils.py:64.
        Redirection(torch.Tensor, "cuda", lambda self, *a, **k: self, "dist_checkpointing/exchange_utils.py:502"),
    ]


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


def activate() -> bool:
    """Redirect CUDA calls to the CPU, once per process, if there is no accelerator.

    Returns:
        Whether the redirections are in force.
    """
    global _mode
    if not is_needed():
        return False
    if _mode is None:
        for redirection in redirections():
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
