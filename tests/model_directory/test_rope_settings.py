"""RoPE scaling in `config.json`: both dialects are read, nothing is ignored, and writing round-trips."""

import math
import re

import pytest

from nemo_longpo.attention import rope
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.model_directory.rope_settings import (
    LinearScaling,
    Llama3Scaling,
    RopeSettings,
    YarnScaling,
    parse_scaling,
    scaling_settings,
    usable_positions,
)

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
YARN_OF_32K = YarnScaling(factor=4.0, original_max_position_embeddings=32768)
LLAMA = {
    "rope_type": "llama3",
    "factor": 8,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
}


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, None),
        ({"rope_scaling": None}, None),
        ({"rope_scaling": {"rope_type": "default"}}, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, None),
        ({"rope_parameters": {"rope_theta": 1e6}}, None),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, LinearScaling(2)),
        ({"rope_scaling": YARN}, YARN_OF_32K),
        ({"rope_scaling": None, "rope_parameters": {**YARN, "rope_theta": 1e6}}, YARN_OF_32K),
        ({"rope_scaling": {**YARN, "beta_fast": None, "finetuned": True}}, YARN_OF_32K),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 8192},
            YarnScaling(factor=4.0, original_max_position_embeddings=8192),
        ),
        ({"rope_scaling": LLAMA}, Llama3Scaling(8, 8192, 1, 4)),
    ],
)
def test_both_dialects(config, scaling):
    assert ModelConfig.parse(config, "config.json").scaling == scaling
    assert parse_scaling(scaling_settings(scaling), "again") == scaling


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_type": "dynamic"},
            "rope scaling of type dynamic is not supported; choose linear, yarn, llama3 or none",
        ),
        ({"rope_type": ["yarn"]}, "rope scaling of type ['yarn'] is not supported"),
        ({"rope_type": "longrope"}, "rope scaling of type longrope is not supported"),
        ({"rope_type": "default"}, "rope scaling of type default has no setting factor, original_max_position_embed"),
        ({"beta_fas": 16}, "rope scaling of type yarn has no setting beta_fas; remove it"),
        ({"factor": None}, "rope scaling of type yarn needs factor; add it"),
        ({"original_max_position_embeddings": None}, "yarn needs original_max_position_embeddings"),
        ({"factor": 0.5}, "factor is 0.5; it must be a number of at least 1"),
        ({"factor": "4"}, "factor is '4'; it must be a number"),
        ({"factor": True}, "factor is True; it must be a number"),
        ({"factor": math.nan}, "factor is nan; it must be a number"),
        ({"original_max_position_embeddings": 4096.5}, "is 4096.5; it must be a whole number of positions"),
        ({"beta_fast": 0.5}, "beta_fast is 0.5; it must be a number of at least 1"),
        ({"beta_slow": 0}, "beta_slow is 0; it must be a number above 0"),
        ({"attention_factor": 0}, "attention_factor is 0; it must be a number above 0"),
        ({"mscale": -1}, "mscale is -1; it must be a number above 0"),
        ({"truncate": 1}, "truncate is 1, not true or false"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(InputError, match=r"^here/config\.json: ") as refusal:
        _ = ModelConfig.parse({"rope_scaling": YARN | changes}, "here/config.json").scaling
    assert message in str(refusal.value)


def test_refuses_an_empty_ramp_of_llama3():
    with pytest.raises(InputError, match="high_freq_factor is 4; it must be a number above 4"):
        parse_scaling(LLAMA | {"low_freq_factor": 4}, "config.json")


@pytest.mark.parametrize(
    ("length", "scaling", "positions"),
    [
        (None, None, None),
        (4096, None, 4096),
        (32768, YARN_OF_32K, 131072),
        (131072, YARN_OF_32K, 131072),
        (4096, LinearScaling(4.0), 16384),
        (131072, Llama3Scaling(8, 8192, 1, 4), 131072),
    ],
)
def test_positions_of_a_model(length, scaling, positions):
    assert usable_positions(length, scaling) == positions


@pytest.mark.parametrize(
    ("theta", "scaling"), [(1e5, None), (1e7, None), (1e4, LinearScaling(8.0)), (1e6, YARN_OF_32K)]
)
def test_positions_are_refused_behind_a_whole_turn_of_the_slowest_rotation(theta, scaling):
    settings = RopeSettings(theta, scaling)
    turn = 2 * math.pi / float(rope.inverse_frequencies(settings, 64).min())
    settings.require_reach(int(turn * 0.9999), 64, "here", length="--tokens")
    with pytest.raises(InputError) as refused:
        settings.require_reach(int(turn * 1.0001), 64, "here", length="--tokens", base="--rope-theta", spare=100)
    said = re.search(r"^here: .* give --rope-theta of (\S+) or more or --tokens of at most (\S+)$", str(refused.value))
    assert said
    assert int(said[2].replace(",", "")) == pytest.approx(turn - 100, rel=1e-4)
    RopeSettings(float(said[1]), scaling).require_reach(int(turn * 1.0001), 64, "here", length="--tokens")
