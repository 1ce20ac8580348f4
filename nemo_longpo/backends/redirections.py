"""What is replaced where there is no accelerator, by owner: Megatron-Core's calls, NeMo's and Megatron-Bridge's.

All three assume CUDA in a few dozen places. Each entry names the upstream line that needs it: of Megatron-Core 0.15.3,
or of the version that brought it; of NeMo 2.7.3; of Megatron-Bridge 0.6.2 with Megatron-Core 0.19.2.
`tests/backends/test_cpu.py` fails when a redirected call starts to work without us, and when training no longer makes
it. It runs in the environments of both trainers.
"""

import queue
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch


class Redirection(NamedTuple):
    """`owner.name` becomes `stand_in` because `upstream` calls it on every machine."""

    owner: Any
    name: str
    stand_in: Any
    upstream: str


class _Stream:
    """A stream of a device that runs everything in order: nobody ever has to wait for it."""

    def wait_stream(self, stream: "_Stream") -> None:
        """What was asked of `stream` is done."""


class _WrittenFiles(queue.SimpleQueue[Any]):
    """The queue in which a checkpoint's writer says what it wrote."""

    # Of the process that would hold it: ended after a failure (megatron/bridge/training/pretrain.py:231).
    _manager = SimpleNamespace(shutdown=lambda: None)


class _NoLayer:
    """A class of which no layer is an instance."""


def _also_seeding_the_rng_tracker(set_random_seed: Callable[..., None]) -> Callable[..., None]:
    """Upstream seeds Megatron's tracker, from which sequence parallelism draws, only if `device_count() > 0`."""

    def seed_everything(*args: Any, **kwargs: Any) -> None:
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

        set_random_seed(*args, **kwargs)
        model_parallel_cuda_manual_seed(torch.initial_seed())

    return seed_everything


def of_megatron() -> list[Redirection]:
    """Megatron-Core 0.15 to 0.19, whoever calls it.

    Each gets a function of its own: torch.compile keys what it knows of `torch.cuda` by the function object.
    """
    import megatron.core
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.tensor_parallel import random as megatron_random

    cuda, state = torch.cuda, torch.get_rng_state
    p2p, rng = "megatron/core/pipeline_parallel/p2p_communication.py", "megatron/core/tensor_parallel/random.py"
    table = [
        Redirection(cuda, "synchronize", lambda device=None: None, f"{p2p}:242"),
        Redirection(cuda, "current_device", lambda: torch.device("cpu"), f"{p2p}:190"),
        Redirection(cuda, "get_rng_state", lambda *a, **k: state(), f"{rng}:196"),
        # Without CUDA torch defers the seed forever, so all of Megatron's generators would share one state.
        Redirection(cuda, "manual_seed", lambda seed: torch.manual_seed(seed), f"{rng}:198"),
        Redirection(megatron_random, "_get_cuda_rng_state", lambda *a, **k: state(), f"{rng}:66"),
        Redirection(megatron_random, "_set_cuda_rng_state", lambda to, *a, **k: torch.set_rng_state(to), f"{rng}:111"),
        # Spawns a manager process for a queue that a synchronous save reads in this process.
        Redirection(filesystem_async, "_results_queue", _WrittenFiles(), "filesystem_async.py:54"),
        # Also megatron/core/models/common/embeddings/rope_utils.py:64.
        Redirection(torch.Tensor, "cuda", lambda self, *a, **k: self, "dist_checkpointing/exchange_utils.py:502"),
    ]
    if tuple(map(int, megatron.core.__version__.split(".")[:2])) >= (0, 19):
        buffer = "megatron/core/distributed/param_and_grad_buffer.py:632 (0.19.2)"
        table.append(Redirection(cuda, "current_stream", lambda device=None: _Stream(), buffer))
    return table


def of_nemo() -> list[Redirection]:
    """NeMo 2.6 and 2.7."""
    from nemo.collections.llm.peft import lora, utils as peft_utils
    from nemo.lightning import megatron_init
    from nemo.lightning.io import pl as nemo_checkpoint

    seed = _also_seeding_the_rng_tracker(megatron_init._set_random_seed)
    return [
        Redirection(torch.cuda, "Stream", _Stream, "nemo/lightning/megatron_parallel.py init_model_parallel"),
        Redirection(megatron_init, "_set_random_seed", seed, "nemo/lightning/megatron_init.py:238"),
        # Asserts torch.cuda.is_initialized().
        Redirection(nemo_checkpoint, "_fix_tensors_device", lambda saved: saved, "nemo/lightning/io/pl.py:495"),
        # Compares every layer's class with te.Linear, which raises without Transformer Engine.
        Redirection(lora, "te", SimpleNamespace(Linear=_NoLayer), "nemo/collections/llm/peft/lora.py:703"),
        # Takes Megatron-Core's stand-ins for Transformer Engine's layers.
        Redirection(peft_utils, "HAVE_TE", False, "nemo/collections/llm/peft/utils.py:54"),
    ]


def of_bridge() -> list[Redirection]:
    """Megatron-Bridge 0.6, with `megatron.training` of the same package as Megatron-Core."""
    from megatron.bridge.training import initialize, setup

    seed = _also_seeding_the_rng_tracker(initialize._set_random_seed)
    begin = setup.initialize_megatron
    return [
        Redirection(torch.cuda, "Stream", _Stream, "megatron/training/models/dist_utils.py:303"),
        # Asserts torch.cuda.is_available() unless it is told otherwise, which `pretrain` does not.
        Redirection(
            setup,
            "initialize_megatron",
            lambda *a, **k: begin(*a, **k, allow_no_cuda=True),
            "megatron/bridge/training/initialize.py:91",
        ),
        Redirection(initialize, "_set_random_seed", seed, "megatron/bridge/training/initialize.py:869"),
        # Runs make in the package's folder, for data sets of tokens, and ends the process if that fails.
        Redirection(initialize, "compile_helpers", lambda: None, "megatron/bridge/training/initialize.py:147"),
    ]
