"""Fields and files: what counts as a difference, and which differences are allowed."""

import json
import shutil
from pathlib import Path

import pytest
from support.conversion_cases import edit_config, read_config, write_config

from nemo_longpo.conversion.comparison.small_files import (
    PROVENANCE,
    SET_BY_OPTIONS,
    FileDifference,
    compare_configs,
    compare_files,
)
from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.conversion.model_on_disk import open_model


@pytest.fixture
def changed(hf_models, tmp_path) -> Path:
    """A copy of the plain Mistral, to be changed."""
    return shutil.copytree(hf_models["mistral"], tmp_path / "changed")


def differences(a: Path, b: Path) -> dict[str, tuple]:
    found = compare_configs(open_model(a), open_model(b), SET_BY_OPTIONS | PROVENANCE)
    assert all(difference.allowed == (difference.name in SET_BY_OPTIONS | PROVENANCE) for difference in found)
    return {difference.name: (difference.a, difference.b) for difference in found}


@pytest.mark.slow
def test_settings_changed_by_import(hf_models, tmp_path):
    nemo = import_checkpoint(hf_models["mistral"], tmp_path / "nemo", rope_theta=1e7, max_length=131072)
    expected = {"rope_theta": (10000.0, 1e7), "max_position_embeddings": (4096, 131072)}
    assert differences(hf_models["mistral"], nemo) == expected
    assert differences(nemo, hf_models["mistral"]) == {name: (b, a) for name, (a, b) in expected.items()}


def test_another_spelling_is_no_difference(hf_models, changed):
    config = read_config(changed)
    theta, dtype = config.pop("rope_theta"), config.pop("dtype", None) or config.pop("torch_dtype")
    config.pop("attention_dropout")  # its default, 0
    config.pop("head_dim")  # hidden / heads
    write_config(
        changed,
        {**config, "torch_dtype": dtype, "rope_parameters": {"rope_type": "default", "rope_theta": theta}},
    )
    assert differences(hf_models["mistral"], changed) == {}


def test_null_is_not_the_default(hf_models, changed):
    """A Mistral file without a word on the window has one of 4,096 tokens."""
    config = read_config(changed)
    assert config.pop("sliding_window") is None
    write_config(changed, config)
    assert differences(hf_models["mistral"], changed) == {"sliding_window": (None, 4096)}


@pytest.mark.parametrize(
    ("name", "value"), [("rms_norm_eps", 1e-5), ("eos_token_id", 7), ("initializer_range", 0.02), ("remark", "ours")]
)
def test_fields_without_an_option(name, value, hf_models, changed):
    edit_config(changed, **{name: value})
    assert differences(hf_models["mistral"], changed) == {name: (read_config(hf_models["mistral"]).get(name), value)}


def test_scaling_and_provenance(hf_models, changed):
    edit_config(changed, rope_scaling={"type": "linear", "factor": 2}, transformers_version="0.1")
    found = differences(hf_models["mistral"], changed)
    assert found["rope_scaling"] == (None, {"rope_type": "linear", "factor": 2})
    assert found.keys() == {"rope_scaling", "transformers_version"}


def test_files(hf_models, changed):
    tokenizer, template = changed / "tokenizer.json", changed / "chat_template.jinja"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()), indent=7))
    template.write_text(template.read_text() + " ")
    (changed / "generation_config.json").unlink()
    (changed / "NOTICE").write_text("mine")
    sides = open_model(hf_models["mistral"]), open_model(changed)
    equal, found = compare_files(*sides, allowed={"NOTICE"})
    assert equal == 3  # tokenizer.json, tokenizer_config.json, special_tokens_map.json
    assert found == [
        FileDifference("NOTICE", "only in B", True),
        FileDifference("chat_template.jinja", "differs", False),
        FileDifference("generation_config.json", "only in A", False),
    ]


def test_files_of_a_checkpoint(hf_models, nemo_checkpoints):
    for case, nemo in nemo_checkpoints.items():
        equal, found = compare_files(open_model(hf_models[case]), open_model(nemo), allowed=())
        assert (equal, found) == (5, []), case
