"""Settings of a layer's activations: what Megatron cannot do is refused with advice, the rest reaches the config."""

from types import SimpleNamespace

import pytest

from nemo_longpo.backends import cpu
from nemo_longpo.errors import InputError

LAYERS = 8


def activation_settings(*fields, **settings):
    from nemo_longpo.megatron.activations import ActivationSettings

    return ActivationSettings(*fields, **settings)


@pytest.fixture(autouse=True)
def beside_an_accelerator(monkeypatch):
    monkeypatch.setattr(cpu, "is_active", lambda: False)


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
        ({"cpu_offloading_num_layers": 8}, 1, "choose 0 to 7"),
        ({"cpu_offloading_num_layers": 4, "recompute_granularity": "full"}, 1, "set one of the two"),
        ({"cpu_offloading_num_layers": 4}, 2, "pipeline_model_parallel_size=2"),
    ],
)
def test_impossible_combinations(settings, stages, advice):
    with pytest.raises(InputError, match=advice):
        activation_settings(**settings).check(LAYERS, stages)


def test_offloading_needs_an_accelerator(monkeypatch):
    monkeypatch.setattr(cpu, "is_active", lambda: True)
    with pytest.raises(InputError, match="in host memory already"):
        activation_settings(cpu_offloading_num_layers=4).check(LAYERS, 1)


def test_what_megatron_recomputes_with_transformer_engine_alone(monkeypatch):
    settings = activation_settings(recompute_granularity="selective", recompute_modules=["layernorm"])
    settings.check(LAYERS, 1)
    monkeypatch.setattr(cpu, "is_active", lambda: True)
    with pytest.raises(InputError, match="on the CPU leave it out"):
        settings.check(LAYERS, 1)


def test_settings_replace_those_of_the_checkpoint():
    config = SimpleNamespace(
        num_layers=LAYERS,
        recompute_granularity="full",
        recompute_method="block",
        recompute_num_layers=3,
        recompute_modules=["core_attn"],
        cpu_offloading=False,
        cpu_offloading_num_layers=0,
    )
    activation_settings(cpu_offloading_num_layers=4).apply_to(config, 1)
    assert (config.recompute_granularity, config.recompute_method, config.recompute_num_layers) == (None, None, None)
    assert (config.cpu_offloading, config.cpu_offloading_num_layers) == (True, 4)
    activation_settings("selective", recompute_modules=["mlp"]).apply_to(config, 1)
    assert (config.recompute_granularity, config.recompute_modules) == ("selective", ["mlp"])
    assert not config.cpu_offloading


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"use_precision_aware_optimizer": False}, "use_precision_aware_optimizer=True"),
        ({"optimizer_offload_fraction": 0.0}, "set up to 1.0"),
    ],
)
def test_optimizer_in_host_memory(settings, advice):
    from nemo_longpo.megatron.strategy import check_optimizer

    whole = {
        "optimizer_cpu_offload": True,
        "use_precision_aware_optimizer": True,
        "optimizer_offload_fraction": 1.0,
    }
    check_optimizer(SimpleNamespace(**whole))
    with pytest.raises(InputError, match=advice):
        check_optimizer(SimpleNamespace(**whole | settings))
    check_optimizer(SimpleNamespace(**whole | settings | {"optimizer_cpu_offload": False}))
