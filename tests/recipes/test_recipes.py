"""Every shipped recipe builds without a GPU, has the paper's constants, and fits its model to its GPUs."""

from dataclasses import replace

import pytest
import torch

from nemo_longpo.backends import cpu
from nemo_longpo.costs.devices import find_gpu
from nemo_longpo.costs.model_shape import load_shape
from nemo_longpo.errors import InputError
from nemo_longpo.placement import LONGEST_BRANCH
from nemo_longpo.planning.job import Job
from nemo_longpo.planning.memory import estimate_memory
from nemo_longpo.planning.search import Wishes, impossible

# Recipe -> model, length in thousands of 1,024 tokens, GPUs.
LONG = {
    "mistral_7b_longpo_128k": ("mistral-7b", 128, 8),
    "mistral_7b_longpo_256k": ("mistral-7b", 256, 16),
    "mistral_7b_longpo_512k": ("mistral-7b", 512, 16),
    "mistral_7b_longpo_512k_one_node": ("mistral-7b", 512, 8),
    "qwen25_7b_longpo_128k": ("qwen2.5-7b", 128, 8),
    "qwen25_7b_longpo_512k": ("qwen2.5-7b", 512, 16),
    "mistral_7b_longpo_512k_four_gpus": ("mistral-7b", 512, 4),
    "qwen25_7b_longpo_512k_four_gpus": ("qwen2.5-7b", 512, 4),
    "mistral_7b_longpo_1m_one_node": ("mistral-7b", 1024, 8),
    "qwen25_7b_longpo_1m_one_node": ("qwen2.5-7b", 1024, 8),
    "qwen3_8b_longpo_128k": ("qwen3-8b", 128, 8),
}
GPU = "a800-80gb"  # the paper's


def _recipe(name: str):
    from nemo_longpo.nemo.recipes import RECIPES

    return RECIPES[name]()


def _connected(name: str, **strategy):
    """The model config of a recipe after its strategy has put the job's settings on it."""
    import fiddle as fdl
    from nemo.collections import llm

    architectures = {
        "mistral-7b": fdl.Config(llm.MistralConfig7B, window_size=None),  # version 0.2 attends to everything
        "qwen2.5-7b": fdl.Config(llm.Qwen25Config7B),
    }
    recipe = _recipe(name)
    for setting, value in strategy.items():
        setattr(recipe.trainer.strategy, setting, value)
    model, trainer, optim = (fdl.build(part) for part in (recipe.model, recipe.trainer, recipe.optim))
    model.config = fdl.build(cpu.without_cuda_kernels(architectures[LONG[name][0]]))
    optim.connect(model)
    trainer.strategy.connect(model)
    return model.config


def test_the_table_is_complete():
    from nemo_longpo.nemo.recipes import RECIPES

    assert {*LONG, "longpo", "tiny_longpo"} == set(RECIPES)


@pytest.mark.parametrize("name", [*LONG, "tiny_longpo"])
def test_builds(name):
    import fiddle as fdl
    from nemo.collections import llm

    assert fdl.build(_recipe(name)).func is llm.finetune


@pytest.mark.parametrize("name", LONG)
def test_has_the_papers_constants(name):
    import fiddle as fdl
    from nemo.lightning import MegatronMixedPrecision

    recipe = _recipe(name)
    objective = fdl.build(recipe.model.objective)
    assert (objective.beta, objective.preference_weight) == (0.1, 0.01)
    optimizer = fdl.build(recipe.optim.config)
    assert (optimizer.optimizer, optimizer.lr, optimizer.weight_decay) == ("adam", 5e-7, 0.0)
    assert (recipe.data.global_batch_size, recipe.data.num_workers) == (8, 1)
    assert (recipe.optim.lr_scheduler.warmup_ratio, recipe.optim.lr_scheduler.min_lr) == (0.1, 0.0)
    assert recipe.model.pair_layout == "shared_prefix"
    precision = fdl.build(recipe.trainer.plugins)
    assert isinstance(precision, MegatronMixedPrecision)
    assert precision.dtype_config.bf16
    assert optimizer.bf16
    assert precision.dtype_config.params_dtype is torch.bfloat16
    assert precision.dtype_config.grad_reduce_in_fp32


@pytest.mark.parametrize("name", LONG)
def test_fits_its_gpus(name):
    """`longpo plan` finds the place possible, and small enough for 80 GB with a tenth to spare."""

    model, thousands, gpus = LONG[name]
    recipe = _recipe(name)
    strategy, trainer = recipe.trainer.strategy, recipe.trainer
    assert trainer.num_nodes * trainer.devices == gpus
    assert recipe.data.seq_length == thousands * 1024 + LONGEST_BRANCH
    tp, cp = strategy.tensor_model_parallel_size, strategy.context_parallel_size
    dp, rest = divmod(gpus, tp * cp)
    assert rest == 0
    assert recipe.data.global_batch_size % dp == 0
    assert strategy.sequence_parallel == (tp > 1)

    job = Job(shape=load_shape(model), trunk=thousands * 1024, chosen=LONGEST_BRANCH, rejected=LONGEST_BRANCH)
    import fiddle as fdl

    placement = replace(
        fdl.build(trainer).strategy.placement,
        dp=dp,
        gpus_per_node=trainer.devices,
        offload_layer_inputs=recipe.model.offload_layer_inputs,
        mlp_tile_tokens=recipe.model.mlp_tile_tokens,
    )
    assert impossible(job, placement) is None
    memory = estimate_memory(job, placement)
    assert memory.total <= 0.9 * find_gpu(GPU).memory
    assert memory.host * trainer.devices <= Wishes.host_memory
    if placement.offload_layer_inputs:
        assert placement.mlp_tile_tokens == 16384
        plain = replace(placement, offload_layer_inputs=False, mlp_tile_tokens=None)
        assert estimate_memory(job, plain).total > find_gpu(GPU).memory


@pytest.mark.parametrize("name", ["mistral_7b_longpo_128k", "qwen25_7b_longpo_512k"])
def test_memory_settings_reach_the_model(name):
    config = _connected(name)
    selective = name.endswith("128k")
    assert config.recompute_granularity == ("selective" if selective else "full")
    assert (config.recompute_method, config.recompute_num_layers) == ((None, None) if selective else ("uniform", 1))
    if selective:
        assert config.recompute_modules == ["mlp"]
    assert config.sequence_parallel
    assert (config.tensor_model_parallel_size, config.context_parallel_size) == (4, 2 if selective else 4)
    assert not config.cpu_offloading


def test_recompute_comes_from_the_job():
    off = _connected("mistral_7b_longpo_128k", recompute_granularity=None, recompute_modules=None)
    assert off.recompute_granularity is None
    some = {"recompute_granularity": "full", "recompute_modules": None}
    block = _connected("mistral_7b_longpo_128k", **some, recompute_method="block", recompute_num_layers=20)
    assert (block.recompute_granularity, block.recompute_method, block.recompute_num_layers) == ("full", "block", 20)


def test_sequence_parallelism_goes_with_tensor_parallelism():
    with pytest.raises(InputError, match=r"set trainer\.strategy\.sequence_parallel=False"):
        _connected("mistral_7b_longpo_128k", tensor_model_parallel_size=1, context_parallel_size=8)


def test_lora_is_nemos_own():
    import fiddle as fdl
    from nemo.collections import llm

    from nemo_longpo.nemo.recipes import lora

    everywhere, queries = fdl.build(lora()), fdl.build(lora(dim=8, alpha=16, target_modules=["linear_qkv"]))
    assert isinstance(everywhere, llm.peft.LoRA)
    assert everywhere.target_modules == llm.peft.LoRA().target_modules
    assert (queries.dim, queries.alpha, queries.target_modules) == (8, 16, ["linear_qkv"])


def _schedule(max_steps: int, lr: float = 1.0):
    """An optimizer and its scheduler, before the first step."""
    from nemo_longpo.nemo.schedule import WarmupCosine

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = WarmupCosine(warmup_ratio=0.1)
    schedule.max_steps = max_steps  # as NeMo's strategy does
    return optimizer, schedule.scheduler(None, optimizer)["lr_scheduler"]["scheduler"]


def _rates(optimizer, scheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_warmup_is_a_share_of_the_run():
    """Ten steps of warm-up in a hundred, whatever `trainer.max_steps` was when the recipe was written."""
    rates = _rates(*_schedule(100), steps=101)
    assert rates[:10] == pytest.approx([step / 11 for step in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)


@pytest.mark.parametrize("max_steps", [100, 200])
def test_resumed_run_follows_its_own_schedule(max_steps):
    """Bit for bit the old curve where nothing changed; the new one where the run is given more steps."""
    old_optimizer, old = _schedule(100)
    _rates(old_optimizer, old, steps=99)
    optimizer, scheduler = _schedule(max_steps)
    optimizer.load_state_dict(old_optimizer.state_dict())
    scheduler.load_state_dict(old.state_dict())
    assert _rates(optimizer, scheduler, steps=2) == _rates(*_schedule(max_steps), steps=101)[99:]
