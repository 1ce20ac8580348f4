"""Checkpoints between `longpo convert` and the real Megatron-Bridge: it loads ours as its own, we export its own."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.bridge_runs import Inputs, checkpoints_of
from support.checkpoint_tensors import checkpoint_tensors
from support.conversion_cases import files, read_config
from support.jobs import bridge_conversion_jobs as jobs, bridge_jobs
from support.tiny_models import save_tiny

from nemo_longpo.checkpoints import forms
from nemo_longpo.conversion import importer, model_on_disk, training_state
from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.conversion.tensor_values import NotFinite
from nemo_longpo.conversion.torch_dist import write_checkpoint

pytestmark = pytest.mark.distributed
FAMILIES = ("mistral", "qwen2", "qwen3", "llama")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return {family: save_tiny(tmp_path_factory.mktemp("hf") / family, family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_bridge_loads_an_import_as_its_own(family, models, workers, tmp_path):
    ours = import_checkpoint(models[family], tmp_path / "ours", format="bridge") / "iter_0000000"
    workers.run(jobs.import_with_bridge, 1, model=str(models[family]), output=str(tmp_path / "auto"))
    theirs = tmp_path / "auto" / "iter_0000000"
    (loaded,) = workers.run(jobs.load_with_bridge, 1, checkpoint=str(ours), record=str(ours))
    (expected,) = workers.run(jobs.load_with_bridge, 1, checkpoint=str(theirs), record=str(ours))
    assert loaded.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(loaded[name], expected[name])]
    assert workers.run(jobs.compare_records, 1, checkpoint=str(ours), model=str(models[family])) == [{}]
    assert files(export_checkpoint(theirs, tmp_path / "back")) == files(models[family])


def test_scaled_positions_reach_bridge(models, workers, tmp_path):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    ours = import_checkpoint(
        models["qwen2"], tmp_path / "ours", format="bridge", rope_scaling=scaling, max_length=16384
    )
    raised = export_checkpoint(ours, tmp_path / "raised")
    assert workers.run(jobs.compare_records, 1, checkpoint=str(ours / "iter_0000000"), model=str(raised)) == [{}]


@pytest.mark.parametrize("family", ["mistral", "llama"])
def test_a_run_from_an_import_is_a_run_from_the_model(family, workers, tmp_path):
    """The same losses; its checkpoint is exported with the settings of training, and computes what it stores."""
    inputs = Inputs.write(tmp_path, family)
    imported = import_checkpoint(inputs.model, tmp_path / "imported", format="bridge")
    settings = ("optimizer.lr=0.01", "checkpoint.save_interval=2", "train.train_iters=2", "model.seq_length=8192")
    expected = inputs.train(tmp_path / "from-model", *settings)
    lines = inputs.train(tmp_path / "from-import", *settings, f"checkpoint.pretrained_checkpoint={imported}")
    assert [(line["loss"], line["grad_norm"]) for line in lines] == [
        (line["loss"], line["grad_norm"]) for line in expected
    ]
    *_, checkpoint = checkpoints_of(tmp_path / "from-import")
    output = tmp_path / "exported"
    assert workers.run(jobs.export_and_compare, 1, checkpoint=str(checkpoint), output=str(output)) == [None]
    assert read_config(output)["max_position_embeddings"] == 8192


def test_a_run_under_parallel_sizes_is_exported_whole(workers, tmp_path):
    """Two tensor and two pipeline ranks pad the odd vocabulary; at a rate that moves no weight the model comes back."""
    inputs = Inputs.write(tmp_path, "mistral")
    overrides = {
        "checkpoint.pretrained_checkpoint": str(inputs.model),
        "dataset.paths": [str(inputs.shards)],
        "checkpoint.save_interval": 1,
        "train.train_iters": 1,
        "optimizer.lr": 1e-30,
        "model.tensor_model_parallel_size": 2,
        "model.pipeline_model_parallel_size": 2,
    }
    workers.run(bridge_jobs.pretrain, 4, overrides=overrides, log_dir=str(tmp_path / "run"))
    (checkpoint,) = checkpoints_of(tmp_path / "run")
    rows = model_on_disk.stored_weights(checkpoint).shape("embedding.word_embeddings.weight")[0]
    assert rows == read_config(inputs.model)["vocab_size"] + 1
    assert files(export_checkpoint(checkpoint, tmp_path / "back")) == files(inputs.model)


def test_a_run_goes_on_from_its_state_in_nemos_form(workers, tmp_path):
    """Two steps, the state in NeMo's form and from there in Bridge's, two more: the losses and bits of four.

    tests/nemo/test_resume_across.py holds NeMo's half. NeMo is not here, so what its form has beside the weights is
    written without it.
    """
    inputs = Inputs.write(tmp_path, "mistral")
    settings = ("optimizer.lr=0.01", "checkpoint.save_interval=2", "checkpoint.most_recent_k=-1", "train.train_iters=4")
    expected = inputs.train(tmp_path / "straight", *settings)
    first, last = checkpoints_of(tmp_path / "straight")
    nemo = save_as_nemo(first, tmp_path / "nemo")
    back = import_checkpoint(nemo, tmp_path / "back", format="bridge", optimizer=True)
    lines = inputs.train(tmp_path / "again", *settings, f"checkpoint.load={back}")
    timed = ("tokens_per_second", "tflops_per_device", "step_seconds")
    assert [{name: line[name] for name in line if name not in timed} for line in lines] == [
        {name: line[name] for name in line if name not in timed} for line in expected[2:]
    ]
    (resumed,) = checkpoints_of(tmp_path / "again")
    straight, found = checkpoint_tensors(last), checkpoint_tensors(resumed)
    assert straight.keys() == found.keys()
    assert any("exp_avg_sq" in name for name in straight)
    assert not [name for name in straight if not torch.equal(straight[name], found[name])]


def save_as_nemo(checkpoint: Path, output: Path) -> Path:
    source = model_on_disk.open_checkpoint(checkpoint)
    stored = model_on_disk.stored_weights(checkpoint)
    state = training_state.read_state(stored, model_on_disk.read_model(checkpoint))
    chunks = importer.plan_chunks(stored, source.family, source.model_shape, NotFinite(), forms.NEMO)
    chunks += training_state.optimizer_chunks(stored, forms.NEMO)
    write_checkpoint(output / "weights", chunks, {}, common=training_state.nemo_common(state))
    (output / "context").mkdir()
    shutil.copytree(checkpoint / "hf", output / "context" / "hf")
    model = {"config": {"rotary_base": source.config.theta}, "tokenizer": {"pretrained_model_name": "hf"}}
    (output / "context" / "model.yaml").write_text(json.dumps(model))
    (output / "context" / "io.json").write_text("{}")
    return output
