"""What `longpo plan` says to set reaches the recipe, through the parser of `nemo llm finetune`."""

import shlex

import pytest

from nemo_longpo.costs.devices import find_gpu
from nemo_longpo.costs.model_shape import load_shape
from nemo_longpo.planning.job import BF16, Job, Precision, Setup
from nemo_longpo.planning.overrides import overrides
from nemo_longpo.planning.speed import Machine


@pytest.mark.parametrize(
    ("setup", "strategy"),
    [
        (
            Setup(cp=16, precision=Precision(gradient=2)),
            {"recompute_granularity": None, "recompute_modules": None, "sequence_parallel": False},
        ),
        (
            Setup(tp=4, cp=4, recompute="mlp", offload_optimizer=True),
            {"recompute_granularity": "selective", "recompute_modules": ["mlp"], "sequence_parallel": True},
        ),
        (
            Setup(tp=2, cp=4, pp=2, recompute="full", recompute_layers=5),
            {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 5},
        ),
    ],
)
def test_settings_reach_the_recipe(setup, strategy):
    from nemo.collections import llm
    from nemo_run.cli.cli_parser import parse_cli_args

    from nemo_longpo.recipes.factories import RECIPES

    job = Job(load_shape("mistral-7b"), 300_000, 5000, 6000, pairs=16, layout="concatenated")
    settings = shlex.split(" ".join(overrides(job, setup, Machine(find_gpu("a800-80gb"), gpus=16))))
    recipe = parse_cli_args(llm.finetune, settings, RECIPES["mistral_7b_longpo_512k"]())
    strategy |= {
        "tensor_model_parallel_size": setup.tp,
        "context_parallel_size": setup.cp,
        "pipeline_model_parallel_size": setup.pp,
    }
    for name, value in strategy.items():
        found = getattr(recipe.trainer.strategy, name)
        assert (found, type(found)) == (value, type(value)), name
    assert (recipe.trainer.num_nodes, int(recipe.trainer.devices)) == (2, 8)
    assert recipe.trainer.plugins.grad_reduce_in_fp32 is (setup.precision == BF16)
    assert recipe.optim.config.optimizer_cpu_offload is setup.offload_optimizer
    assert (recipe.data.global_batch_size, recipe.data.seq_length) == (16, 306_000)
    assert recipe.model.pair_layout == "concatenated"
