"""Changes of RoPE settings land where the file keeps them, in both dialects of `config.json`."""

import pytest

from nemo_longpo.conversion.huggingface.config import with_max_length, with_rope, with_rope_scaling
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.model_directory.rope_settings import RopeSettings, YarnScaling

YARN = {"rope_type": "yarn", "factor": 4.0}
LINEAR = {"rope_type": "linear", "factor": 2.0}
FOUR = {"max_position_embeddings": 4096, "rope_theta": 1e4, "rope_scaling": YARN}
FIVE = {"max_position_embeddings": 4096, "rope_parameters": {"rope_theta": 1e4, **YARN}}
BOTH = FOUR | FIVE


def parse(config):
    return ModelConfig.parse(config, "config.json")


@pytest.mark.parametrize("config", [FOUR, FIVE, BOTH])
def test_both_dialects_are_read(config):
    assert parse(config).rope == RopeSettings(1e4, YarnScaling(factor=4.0, original_max_position_embeddings=4096))


@pytest.mark.parametrize(
    ("theta", "scaling", "four", "five"),
    [
        (None, None, {}, {"rope_theta": 1e4, **YARN}),
        (1e4, None, {}, {"rope_theta": 1e4, **YARN}),
        (1e6, "keep", {"rope_theta": 1e6}, {"rope_theta": 1e6, **YARN}),
        (1e6, "none", {"rope_theta": 1e6, "rope_scaling": None}, {"rope_theta": 1e6, "rope_type": "default"}),
        (None, LINEAR, {"rope_scaling": LINEAR}, {"rope_theta": 1e4, **LINEAR}),
        (1e6, LINEAR, {"rope_theta": 1e6, "rope_scaling": LINEAR}, {"rope_theta": 1e6, **LINEAR}),
    ],
)
def test_choices(theta, scaling, four, five):
    assert with_rope(parse(FOUR), theta, scaling).raw == FOUR | four
    assert with_rope(parse(FIVE), theta, scaling).raw == FIVE | {"rope_parameters": five}
    assert with_rope(parse(BOTH), theta, scaling).raw == BOTH | four | {"rope_parameters": five}


def test_new_base_needs_a_scaling_choice():
    with pytest.raises(InputError, match="made for another base than --rope-theta"):
        with_rope(parse(FOUR), 1e6, None)


def test_unsupported_scaling_can_be_dropped():
    config = FOUR | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    assert with_rope(parse(config), 1e6, "none").raw == FOUR | {"rope_theta": 1e6, "rope_scaling": None}


def test_nothing_to_drop_changes_nothing():
    plain = {"max_position_embeddings": 4096, "rope_theta": 1e4}
    assert with_rope(parse(plain), None, "none").raw == plain


@pytest.mark.parametrize("config", [FOUR, FIVE, BOTH])
def test_more_positions_leave_the_frequencies_alone(config):
    longer = with_max_length(parse(config), 16384)
    assert longer.max_position_embeddings == 16384
    assert longer.rope == parse(config).rope


def test_impossible_base_names_the_file():
    with pytest.raises(InputError, match=r"^config\.json: rope_theta is 1; it must be a number above 1"):
        _ = parse({"rope_theta": 1}).rope


@pytest.mark.parametrize(
    "config",
    [
        FOUR | {"rope_parameters": {"rope_theta": 1e4, **YARN, "factor": 2.0}, "rope_scaling": None},
        FOUR | {"rope_scaling": {**YARN, "rope_theta": 1e6}},
        {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
        {"rope_scaling": LINEAR | {"rope_theta": 1e6}},
    ],
)
def test_ambiguous_rope_settings_are_refused(config):
    with pytest.raises(InputError, match=r"^config\.json: rope_theta and rope_scaling say one thing"):
        _ = parse(config).rope


def test_every_spelling_gets_a_scaling():
    """Also a file that names both and has none yet."""
    plain = {"rope_theta": 1e4, "rope_scaling": None, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}
    scaled = with_rope_scaling(parse(plain), LINEAR)
    assert scaled.raw == plain | {"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 1e4, **LINEAR}}
    assert scaled.rope.scaling
