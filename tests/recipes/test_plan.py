"""The settings of `longpo plan` reach the recipe through the parser of `nemo llm finetune`."""

import shlex

import pytest

from nemo_longpo.costs.model_shape import load_shape
from nemo_longpo.placement import Placement
from nemo_longpo.planning.job import Job
from nemo_longpo.planning.report import overrides


@pytest.mark.parametrize(
    ("placement", "strategy"),
    [
        (
            Placement(cp=16, grad_reduce_in_fp32=False),
            {"recompute_granularity": None, "recompute_modules": None, "sequence_parallel": False},
        ),
        (
            Placement(tp=4, cp=4, offload_optimizer=True).recomputing("mlp"),
            {"recompute_granularity": "selective", "recompute_modules": ["mlp"], "sequence_parallel": True},
        ),
        (
            Placement(tp=2, cp=4, pp=2, offload_layer_inputs=True, mlp_tile_tokens=16384).recomputing("full", 5),
            {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 5},
        ),
    ],
)
def test_settings_reach_the_recipe(placement, strategy):
    from nemo.collections import llm
    from nemo_run.cli.cli_parser import parse_cli_args

    from nemo_longpo.nemo.recipes import RECIPES

    job = Job(
        shape=load_shape("mistral-7b"), trunk=300_000, chosen=5000, rejected=6000, pairs=16, layout="concatenated"
    )
    settings = shlex.split(" ".join(overrides(job, placement)))
    recipe = parse_cli_args(llm.finetune, settings, RECIPES["mistral_7b_longpo_512k"]())
    strategy |= {
        "tensor_model_parallel_size": placement.tp,
        "context_parallel_size": placement.cp,
        "pipeline_model_parallel_size": placement.pp,
    }
    for name, value in strategy.items():
        found = getattr(recipe.trainer.strategy, name)
        assert (found, type(found)) == (value, type(value)), name
    assert (recipe.trainer.num_nodes, int(recipe.trainer.devices)) == (2, 8)
    assert recipe.trainer.plugins.grad_reduce_in_fp32 is placement.grad_reduce_in_fp32
    assert recipe.optim.config.optimizer_cpu_offload is placement.offload_optimizer
    assert (recipe.data.global_batch_size, recipe.data.seq_length) == (16, 306_000)
    assert recipe.model.pair_layout == "concatenated"
    assert recipe.model.offload_layer_inputs is placement.offload_layer_inputs
    assert recipe.model.mlp_tile_tokens == placement.mlp_tile_tokens
