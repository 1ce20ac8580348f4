"""Settings of a job that cannot work are refused with advice; the others reach the model's config."""

from types import SimpleNamespace

import pytest

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.rope_settings import RopeSettings, YarnScaling
from nemo_longpo.placement import PairLayout, Placement

LAYERS = 8


def config(**changes) -> SimpleNamespace:
    """The fields of a TransformerConfig that matter; NeMo's own Mistral config comes with `a2a` and a window."""
    fields = {
        "num_layers": LAYERS,
        "num_attention_heads": 32,
        "num_query_groups": 8,
        "kv_channels": 128,
        "ffn_hidden_size": 64,
        "window_size": None,
        "attention_dropout": 0.0,
        "calculate_per_token_loss": False,
        "cp_comm_type": "a2a",
        "hierarchical_context_parallel_sizes": None,
        "recompute_granularity": "full",
        "recompute_method": "block",
        "recompute_num_layers": 3,
        "recompute_modules": ["core_attn"],
        "cpu_offloading": False,
        "cpu_offloading_num_layers": 0,
        "softmax_scale": None,
        "apply_rope_fusion": True,
    }
    return SimpleNamespace(**fields | changes)


def check(placement: Placement, model: SimpleNamespace, pair_layout: PairLayout) -> None:
    from nemo_longpo.megatron import job_settings

    job_settings.check(placement, model, pair_layout)


def put_on(model: SimpleNamespace, placement: Placement) -> None:
    from nemo_longpo.megatron import job_settings

    job_settings.put_on(model, placement)


@pytest.mark.parametrize(
    ("settings", "stages", "advice"),
    [
        ({"recompute_granularity": "half"}, 1, "choose from None, full, selective"),
        ({"recompute_granularity": "full", "recompute_method": "all"}, 1, "choose from uniform, block"),
        (
            {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
            1,
            "choose from core_attn, layernorm, mlp",
        ),
        ({"recompute_granularity": "full", "recompute_modules": ["mlp"]}, 1, "recompute_granularity=selective"),
        ({"recompute_granularity": "full", "recompute_num_layers": 5}, 2, "a pipeline stage has 4 layers"),
        ({"offload_layer_inputs": True}, 1, "recompute_granularity is None; set it to full"),
        ({"offload_layer_inputs": True, "recompute_granularity": "selective"}, 1, "is selective; set it to full"),
        ({"mlp_tile_tokens": 0}, 1, "model.mlp_tile_tokens is 0; give at least 1"),
        ({"mlp_tile_tokens": 3, "tp": 4}, 1, "give at least 4, one for each tensor-parallel rank"),
        ({"cpu_offloading_num_layers": 8}, 1, "choose 0 to 7"),
        ({"cpu_offloading_num_layers": 4, "recompute_granularity": "full"}, 1, "set one of the two"),
        ({"cpu_offloading_num_layers": 4}, 2, "pipeline_model_parallel_size=2"),
    ],
)
def test_impossible_combinations(settings, stages, advice):
    with pytest.raises(InputError, match=advice):
        check(Placement(pp=stages, **settings), config(), "shared_prefix")


@pytest.mark.parametrize(
    ("settings", "optimizer", "advice"),
    [
        ({"cpu_offloading_num_layers": 4}, None, "activations are in host memory already"),
        ({"recompute_granularity": "selective", "recompute_modules": ["layernorm"]}, None, "on the CPU leave it out"),
        ({}, SimpleNamespace(optimizer_cpu_offload=True), "the optimizer is in host memory already"),
    ],
)
def test_cpu_limits_are_refused(settings, optimizer, advice):
    from nemo_longpo.megatron.backend import Backend, CpuBackend

    asked = Placement(**settings)
    check(asked, config(), "shared_prefix")
    Backend().refuse(asked, config(), optimizer)
    with pytest.raises(InputError, match=advice):
        CpuBackend().refuse(asked, config(), optimizer)
    CpuBackend().refuse(Placement(), config(), SimpleNamespace(optimizer_cpu_offload=False))


def test_settings_replace_those_of_the_checkpoint():
    found = config()
    put_on(found, Placement(cpu_offloading_num_layers=4, pp=2))
    assert (found.recompute_granularity, found.recompute_method, found.recompute_num_layers) == (None, None, None)
    assert (found.cpu_offloading, found.cpu_offloading_num_layers) == (True, 4)
    assert (found.cp_comm_type, found.hierarchical_context_parallel_sizes) == ("p2p", None)
    more = {"cp_comm_type": "a2a+p2p", "hierarchical_context_parallel_sizes": (4, 2)}
    put_on(found, Placement(cp=8, recompute_granularity="selective", recompute_modules=["mlp"], **more))
    assert (found.recompute_granularity, found.recompute_modules) == ("selective", ["mlp"])
    assert (found.cp_comm_type, found.hierarchical_context_parallel_sizes) == ("a2a+p2p", [4, 2])
    assert not found.cpu_offloading


def test_settings_derived_from_the_model():
    from nemo_longpo.megatron.job_settings import complete

    plain, stages, yarn = (config(pipeline_model_parallel_size=size) for size in (1, 2, 1))
    complete(plain, RopeSettings(1e6))
    assert (plain.variable_seq_lengths, plain.softmax_scale) == (False, None)
    complete(stages, RopeSettings(1e6))
    assert stages.variable_seq_lengths
    rope = RopeSettings(1e6, YarnScaling(factor=4.0, original_max_position_embeddings=4096))
    complete(yarn, rope)
    assert yarn.softmax_scale == rope.softmax_scale(128) != 128**-0.5


def test_transformer_engine_limits_are_refused():
    with pytest.raises(InputError, match="16 attention heads and 4 key/value heads"):
        check(Placement(cp=8, tp=2, cp_comm_type="a2a"), config(), "shared_prefix")


def test_sliding_window():
    from nemo_longpo.megatron.backend import CpuBackend

    sliding, heads, ring = config(window_size=[4096, 0]), Placement(cp=2, cp_comm_type="a2a"), Placement(cp=2)
    with pytest.raises(InputError, match="--full-attention"):
        check(heads, sliding, "shared_prefix")
    check(heads, sliding, "concatenated")
    with pytest.raises(InputError, match="cp_comm_type=p2p cannot do"):
        check(ring, sliding, "concatenated")
    with pytest.raises(InputError, match="nor the CPU backend"):
        CpuBackend().refuse(heads, sliding, None)
    check(ring, config(window_size=(-1, 0)), "shared_prefix")


def test_dropout():
    with pytest.raises(InputError, match=r"attention_dropout=0\.1"):
        check(Placement(), config(attention_dropout=0.1), "concatenated")


def test_loss_per_token():
    """Megatron would then leave gradients as sums over data-parallel and context-parallel ranks."""
    with pytest.raises(InputError, match="calculate_per_token_loss=True"):
        check(Placement(), config(calculate_per_token_loss=True), "concatenated")


@pytest.mark.parametrize(
    ("sizes", "advice"),
    [
        ({"tp": 16}, "8 key/value heads"),
        ({"pp": 3}, "8 layers"),
        ({"sequence_parallel": True}, "sequence_parallel=False"),
    ],
)
def test_sizes_that_do_not_divide_the_model(sizes, advice):
    with pytest.raises(InputError, match=advice):
        check(Placement(**sizes), config(), "shared_prefix")


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"use_precision_aware_optimizer": False}, "use_precision_aware_optimizer=True"),
        ({"optimizer_offload_fraction": 0.0}, "set up to 1.0"),
    ],
)
def test_optimizer_in_host_memory(settings, advice):
    from nemo_longpo.megatron.job_settings import check_optimizer

    whole = {
        "optimizer_cpu_offload": True,
        "use_precision_aware_optimizer": True,
        "optimizer_offload_fraction": 1.0,
    }
    check_optimizer(SimpleNamespace(**whole))
    with pytest.raises(InputError, match=advice):
        check_optimizer(SimpleNamespace(**whole | settings))
    check_optimizer(SimpleNamespace(**whole | settings | {"optimizer_cpu_offload": False}))
