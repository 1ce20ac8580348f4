"""What a worker of `WorkerPool` runs to test the CPU backend: a fresh process, not yet redirected."""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, PropertyMock, patch

import numpy as np
import torch
from support import tiny_models as tiny, training_pairs as pairs
from support.jobs.gloo_jobs import gloo_group

from nemo_longpo.backends import cpu
from nemo_longpo.backends.redirections import Redirection

_called: set[str] = set()


class HelperSpawned(RuntimeError):
    """Another process would have been started."""


class ConfigurationRead(RuntimeError):
    """Megatron-Bridge began to read its configuration."""


def name_of(redirection: Redirection) -> str:
    owner = redirection.owner
    return f"{owner.__qualname__ if isinstance(owner, type) else owner.__name__}.{redirection.name}"


def _set_state_is_the_state() -> bool:
    from megatron.core.tensor_parallel import random as megatron_random

    state = torch.Generator().manual_seed(torch.initial_seed() + 1).get_state()
    megatron_random._set_cuda_rng_state(state)
    return torch.equal(torch.get_rng_state(), state)


def _reaches_the_tracker(set_random_seed: Callable[[int], None]) -> bool:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    get_cuda_rng_tracker().reset()
    with gloo_group():
        parallel_state.initialize_model_parallel()
        try:
            set_random_seed(1)
        finally:
            parallel_state.destroy_model_parallel()
    return bool(get_cuda_rng_tracker().get_states())


def _nemo_seeds_the_tracker() -> bool:
    from nemo.lightning import megatron_init

    return _reaches_the_tracker(lambda seed: megatron_init._set_random_seed(seed))


def _bridge_seeds_the_tracker() -> bool:
    from megatron.bridge.training import initialize
    from megatron.core.process_groups_config import ProcessGroupCollection

    return _reaches_the_tracker(
        lambda seed: initialize._set_random_seed(seed, pg_collection=ProcessGroupCollection.use_mpu_process_groups())
    )


def _bridge_begins() -> bool:
    """Whether it reads its configuration, after it has looked for CUDA."""
    from megatron.bridge.training import setup

    config = Mock(spec=[], **{})
    type(config).model = PropertyMock(side_effect=ConfigurationRead)
    try:
        setup.initialize_megatron(config)
    except ConfigurationRead:
        return True
    return False


def _bridge_compiles_nothing() -> bool:
    from megatron.bridge.training import initialize

    with patch("subprocess.run", side_effect=HelperSpawned):
        initialize.compile_helpers()
    return True


def _results_queue_without_a_helper() -> bool:
    from megatron.core.dist_checkpointing.strategies import filesystem_async as writer

    get_queue = getattr(writer, "get_write_results_queue", None) or writer._get_write_results_queue  # 0.17 renamed it
    with patch.object(writer.mp, "get_context", side_effect=HelperSpawned):
        get_queue()._manager.shutdown()
    return True


def _get_state() -> bool:
    from megatron.core.tensor_parallel import random as megatron_random

    return torch.equal(megatron_random._get_cuda_rng_state(), torch.get_rng_state())


def _fix_device() -> bool:
    from nemo.lightning.io import pl

    return pl._fix_tensors_device({"step": 1}) == {"step": 1}


def _lora_can_ask_for_te() -> bool:
    from nemo.collections.llm.peft import lora
    from nemo.utils.import_utils import UnavailableError

    try:
        return isinstance(lora.te.Linear, type)
    except UnavailableError:
        return False


def _lora_knows_megatrons_own_layers() -> bool:
    from megatron.core.tensor_parallel import ColumnParallelLinear
    from nemo.collections.llm.peft.utils import get_adapter_attributes_from_linear

    layer = ColumnParallelLinear.__new__(ColumnParallelLinear)
    torch.nn.Module.__init__(layer)
    layer.config = SimpleNamespace(sequence_parallel=False)
    layer.input_size, layer.output_size = 4, 8
    try:
        return get_adapter_attributes_from_linear(layer)[1:3] == (4, 8)
    except TypeError:
        return False


# What each redirection is for. True where the call does what upstream needs of it.
NEEDS_OF_MEGATRON: dict[str, Callable[[], bool]] = {
    "torch.cuda.synchronize": lambda: torch.cuda.synchronize() is None,
    "torch.cuda.current_device": lambda: torch.empty(1, device=torch.cuda.current_device()).device.type == "cpu",
    "torch.cuda.get_rng_state": lambda: torch.equal(torch.cuda.get_rng_state(), torch.get_rng_state()),
    "torch.cuda.manual_seed": lambda: torch.cuda.manual_seed(5) is not None and torch.initial_seed() == 5,
    "megatron.core.tensor_parallel.random._get_cuda_rng_state": _get_state,
    "megatron.core.tensor_parallel.random._set_cuda_rng_state": _set_state_is_the_state,
    "megatron.core.dist_checkpointing.strategies.filesystem_async._results_queue": _results_queue_without_a_helper,
    "Tensor.cuda": lambda: torch.ones(1).cuda().device.type == "cpu",
}
NEEDS: dict[cpu.Trainer, dict[str, Callable[[], bool]]] = {
    "nemo": {
        **NEEDS_OF_MEGATRON,
        "torch.cuda.Stream": lambda: torch.cuda.Stream() is not None,
        "nemo.lightning.megatron_init._set_random_seed": _nemo_seeds_the_tracker,
        "nemo.lightning.io.pl._fix_tensors_device": _fix_device,
        "nemo.collections.llm.peft.lora.te": _lora_can_ask_for_te,
        "nemo.collections.llm.peft.utils.HAVE_TE": _lora_knows_megatrons_own_layers,
    },
    "bridge": {
        **NEEDS_OF_MEGATRON,
        "torch.cuda.current_stream": lambda: torch.cuda.current_stream() is not None,
        "torch.cuda.Stream": lambda: torch.cuda.Stream().wait_stream(torch.cuda.current_stream()) is None,
        "megatron.bridge.training.setup.initialize_megatron": _bridge_begins,
        "megatron.bridge.training.initialize._set_random_seed": _bridge_seeds_the_tracker,
        "megatron.bridge.training.initialize.compile_helpers": _bridge_compiles_nothing,
    },
}
# The same for what the mode answers.
MODE_NEEDS: dict[str, Callable[[], bool]] = {
    "device=": lambda: torch.zeros(1, device="cuda").device.type == "cpu",
    "device= with an index": lambda: torch.zeros(1, device=torch.device("cuda", 0)).device.type == "cpu",
    "to": lambda: torch.ones(1).to("cuda").device.type == "cpu",
    "to with an index and a type": lambda: torch.ones(1).to(torch.device("cuda", 0), torch.float64).dtype.itemsize == 8,
    "to(device=)": lambda: torch.ones(1).to(device="cuda").device.type == "cpu",
    "pin_memory": lambda: not torch.tensor([1.0], pin_memory=True).is_pinned(),
    "type": lambda: torch.ones(1).type() == "torch.cuda.FloatTensor",
    "type of bfloat16": lambda: torch.ones(1).bfloat16().type() == "torch.cuda.BFloat16Tensor",
}


def _holds(need: Callable[[], bool]) -> bool:
    try:
        return need()
    except (AssertionError, RuntimeError, AttributeError):  # how torch and upstream say that there is no CUDA
        return False


def met_needs(trainer: cpu.Trainer) -> set[str]:
    return {name for name, need in (NEEDS[trainer] | MODE_NEEDS).items() if _holds(need)}


def _noting_calls(redirection: Redirection) -> Redirection:
    if not callable(redirection.stand_in):
        return redirection

    @functools.wraps(redirection.stand_in, updated=())
    def noted(*args, **kwargs):
        _called.add(name_of(redirection))
        return redirection.stand_in(*args, **kwargs)

    return redirection._replace(stand_in=noted)


def activate_twice(trainer: cpu.Trainer) -> list[str]:
    """Switch the backend on, noting who is called; returns the redirections' names."""
    made = [_noting_calls(redirection) for redirection in cpu.redirections_of(trainer)]
    with patch.object(cpu, "redirections_of", return_value=made) as redirections:
        assert not cpu.is_active()
        assert cpu.activate(trainer)
        mode = cpu._mode
        assert cpu.activate(trainer), "a second call says that the redirections are in force"
        assert cpu._mode is mode
        redirections.assert_called_once()
    assert cpu.is_active()
    # Imports under the redirections.
    importlib.import_module({"nemo": "nemo.collections.llm", "bridge": "nemo_longpo.bridge.train"}[trainer])
    return [name_of(redirection) for redirection in made]


def ordinary_calls_stay() -> None:
    """The mode does not change calls without CUDA."""
    assert torch.ones(2).type(torch.float64).dtype is torch.float64
    assert torch.ones(2).to(torch.int32).dtype is torch.int32
    assert torch.zeros(2, device="meta").device.type == "meta"
    assert torch.ones(2).to("meta").device.type == "meta"


def recomputed_dropout() -> tuple[np.ndarray, np.ndarray]:
    """What a recomputed dropout kept in the forward, and in the backward."""
    from megatron.core.tensor_parallel import checkpoint

    ones = torch.ones(1000, requires_grad=True)
    out = checkpoint(lambda x: torch.nn.functional.dropout(x, 0.5), False, ones)
    torch.rand(7)
    out.sum().backward()
    assert ones.grad is not None
    return out.detach().numpy(), ones.grad.numpy()


def prepare_training(trainer: cpu.Trainer, directory: str) -> None:
    """Write a model as what a training with this trainer starts from, and shards of one record."""
    root = Path(directory)
    tokenizer = tiny.tiny_tokenizer(tiny.DEFAULT_STYLE["mistral"])
    vocab_size = tiny.tiny_model("mistral", tokenizer).config.vocab_size
    record = pairs.random_record(np.random.default_rng(0), vocab_size, trunk=8, turns=1)
    pairs.write_shards(root / "shards", [record], tokenizer, vocab_size)
    tiny.save_tiny(root / "hf")
    if trainer == "nemo":
        from nemo_longpo.conversion.importer import import_checkpoint

        import_checkpoint(root / "hf", root / "nemo")


def names_called_by_training(trainer: cpu.Trainer, directory: str) -> set[str]:
    """Train for a step on two context ranks with recompute, and save: the redirections that this rank called."""
    _called.clear()
    {"nemo": _train_with_nemo, "bridge": _train_with_bridge}[trainer](directory)
    return _called


def _train_with_nemo(directory: str) -> None:
    from support.jobs.nemo_jobs import finetune

    overrides = {
        "data.paths": f"{directory}/shards",
        "data.global_batch_size": 1,
        "resume.restore_config.path": f"{directory}/nemo",
        "log.log_dir": f"{directory}/run",
        "trainer.devices": 2,
        "trainer.max_steps": 1,
        "trainer.strategy.context_parallel_size": 2,
        "trainer.strategy.recompute_granularity": "full",
    }
    finetune(overrides=overrides, checkpoints=True)


def _train_with_bridge(directory: str) -> None:
    from support.jobs.bridge_jobs import pretrain

    overrides = {
        "dataset.paths": [f"{directory}/shards"],
        "checkpoint.pretrained_checkpoint": f"{directory}/hf",
        "train.global_batch_size": 1,
        "train.train_iters": 1,
        "model.context_parallel_size": 2,
        "model.recompute_granularity": "full",
    }
    pretrain(overrides, log_dir=f"{directory}/run")
