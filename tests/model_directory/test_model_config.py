"""One object holds the fields of a `config.json`, their defaults, and their other names."""

import pytest

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.model_directory.rope_settings import LinearScaling

NEMO = {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 16,
    "vocab_size": 421,
    "seq_length": 4096,
    "rotary_base": 1e6,
    "seq_len_interpolation_factor": 2.0,
    "window_size": [1024, 0],
}


def test_raw_object_keeps_fields_and_order():
    raw = {"vocab_size": 7, "of_another_program": {"ü": 1}, "model_type": "mistral", "rope_scaling": None}
    config = ModelConfig.parse(raw, "config.json")
    assert config.sliding_window == 4096  # the default of its class
    assert list(config.raw.items()) == list(raw.items())
    changed = config.changed({"vocab_size": 8, "rope_theta": 1e6})
    assert list(changed.raw) == [*raw, "rope_theta"]
    assert (config.vocab_size, changed.vocab_size, changed.theta) == (7, 8, 1e6)


@pytest.mark.parametrize("field", ["vocab_size", "hidden_act", "rope_theta", "tie_word_embeddings"])
def test_invalid_null_is_refused(field):
    with pytest.raises(InputError, match=f"^config.json: field '{field}' should be .*, not None; "):
        ModelConfig.parse({field: None}, "config.json")


def test_nemo_configuration_is_read():
    config = ModelConfig.from_nemo(NEMO, "model.yaml")
    assert (config.num_hidden_layers, config.kv_heads, config.max_position_embeddings) == (2, 2, 4096)
    assert (config.theta, config.scaling, config.sliding_window) == (1e6, LinearScaling(2.0), 1024)


@pytest.mark.parametrize("window", [None, [-1, 0], (-1, 0)])
def test_unlimited_nemo_window_is_none(window):
    assert ModelConfig.from_nemo(NEMO | {"window_size": window}, "model.yaml").sliding_window is None


def test_nemo_errors_use_nemo_names():
    with pytest.raises(InputError, match=r"^model\.yaml: field 'ffn_hidden_size' should be .*, not '96'"):
        ModelConfig.from_nemo(NEMO | {"ffn_hidden_size": "96"}, "model.yaml")
    with pytest.raises(InputError, match=r"^model\.yaml has no whole number for num_layers, seq_length; "):
        ModelConfig.from_nemo(NEMO | {"num_layers": None, "seq_length": None}, "model.yaml").require(
            "num_hidden_layers", "vocab_size", "max_position_embeddings"
        )
