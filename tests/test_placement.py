"""How a job is divided over GPUs, and the settings for it."""

import pytest

from nemo_longpo.placement import Placement


@pytest.mark.parametrize(
    ("placement", "nodes", "devices"),
    [
        (Placement(), 1, 1),
        (Placement(tp=2, cp=2), 1, 4),
        (Placement(tp=4, cp=2, pp=2, dp=2), 4, 8),
        (Placement(cp=8, gpus_per_node=4), 2, 4),
    ],
)
def test_nodes(placement, nodes, devices):
    assert (placement.num_nodes, placement.devices) == (nodes, devices)
    assert placement.gpus == nodes * devices


@pytest.mark.parametrize(
    ("what", "layers", "recomputed"), [("none", None, 0), ("mlp", None, 0), ("full", None, 6), ("full", 2, 2)]
)
def test_recompute(what, layers, recomputed):
    placement = Placement().recomputing("full", 5).recomputing(what, layers)
    assert placement.recompute == what
    assert placement.recomputed_layers(6) == recomputed


def test_selective_recompute_defaults_to_core_attention():
    assert Placement(recompute_granularity="selective").recompute == "core_attn"


@pytest.mark.parametrize(
    ("placement", "expected"),
    [(Placement(), False), (Placement(tp=2), True), (Placement(tp=2, sequence_parallel=False), False)],
)
def test_sequence_parallelism_goes_with_tensor_parallelism(placement, expected):
    assert placement.settings()["trainer.strategy.sequence_parallel"] is expected


def test_settings_list_changes_from_the_strategy():
    """Communication types and activations in host memory are only listed if they were chosen."""
    chosen = {
        "cp_comm_type": "a2a+p2p",
        "hierarchical_context_parallel_sizes": [2, 4],
        "cpu_offloading_num_layers": 3,
    }
    assert Placement().settings()["model.mlp_tile_tokens"] is None, "a recipe may have tiles"
    tiles = Placement(offload_layer_inputs=True, mlp_tile_tokens=4096).settings()
    assert (tiles["model.offload_layer_inputs"], tiles["model.mlp_tile_tokens"]) == (True, 4096)
    default, other = Placement(cp=8).settings(), Placement(cp=8, **chosen).settings()
    assert set(other) - set(default) == {f"trainer.strategy.{name}" for name in chosen}
    assert all(other[f"trainer.strategy.{name}"] == value for name, value in chosen.items())
