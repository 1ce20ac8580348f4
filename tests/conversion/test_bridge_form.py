"""Checkpoints of Megatron-Bridge: exported, inspected, compared, imported, and taken across to NeMo's form and back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from support import bridge_checkpoints
from support.conversion_cases import CASES, config_changes, files
from support.damage import Fault, assert_refused, truncate
from support.exploits import Payload

from nemo_longpo.checkpoints import forms, run_inputs
from nemo_longpo.checkpoints.integrity import RECORD, read_record
from nemo_longpo.cli import main
from nemo_longpo.conversion import model_on_disk
from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.conversion.torch_dist import DistCheckpoint

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


@pytest.fixture
def run(hf_models, tmp_path) -> Path:
    """The folder of a run that has saved twice."""
    folder = tmp_path / "run" / "checkpoints"
    for iteration in (2, 4):
        bridge_checkpoints.save_run(hf_models["mistral"], folder, iteration)
    return folder


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The model's, under Megatron's own names."""
    form = forms.form_of(checkpoint)
    assert form is not None
    stored = DistCheckpoint(checkpoint / form.weights, form)
    shapes = {key: stored.shape(key) for key in stored.model_tensors()}
    return {key.removeprefix(form.prefix): stored.read(key, (0,) * len(of), of) for key, of in shapes.items()}


def assert_same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [key for key in a if a[key].dtype != b[key].dtype or not torch.equal(a[key], b[key])]


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_exported_as_the_model_that_it_was(case, hf_models, tmp_path):
    bridge_checkpoints.save_run(hf_models[case], tmp_path / "run")
    assert files(export_checkpoint(tmp_path / "run", tmp_path / "back")) == files(hf_models[case])


@pytest.mark.parametrize("case", CASES)
def test_an_import_is_what_bridge_writes(case, hf_models, tmp_path):
    output = import_checkpoint(hf_models[case], tmp_path / "imported", format="bridge")
    checkpoint = output / "iter_0000000"
    assert_same_tensors(tensors(checkpoint), bridge_checkpoints.megatron_tensors(hf_models[case]))
    assert (output / "latest_checkpointed_iteration.txt").read_text() == "0"
    common = torch.load(checkpoint / "common.pt", weights_only=True)
    assert (common["iteration"], common["checkpoint_version"]) == (0, 3.0)
    assert set(forms.BRIDGE.parts) < set(read_record(checkpoint) or ())
    assert files(export_checkpoint(output, tmp_path / "back")) == files(hf_models[case])


def test_every_checkpoint_of_a_run(run, hf_models, tmp_path):
    assert main(["convert", "export", "--every", "--checkpoint", str(run), "--output", str(tmp_path / "all")]) == 0
    for name in ("iter_0000002", "iter_0000004"):
        assert files(tmp_path / "all" / name) == files(hf_models["mistral"])


def test_options_of_an_import_reach_the_record(hf_models, tmp_path):
    command = ["convert", "import", "--format", "bridge", "--model", str(hf_models["mistral"])]
    options = ["--rope-theta", "1e6", "--rope-scaling", json.dumps(YARN), "--max-length", "16384"]
    assert main([*command, "--output", str(tmp_path / "b"), *options]) == 0
    provider = yaml.safe_load((tmp_path / "b" / "iter_0000000" / "run_config.yaml").read_text())["model"]
    expected = {
        "rotary_base": 1e6,
        "seq_length": 16384,
        "position_embedding_type": "yarn",
        "yarn_rotary_scaling_factor": 4.0,
        "yarn_original_max_position_embeddings": 4096,
        "hf_model_id": str(hf_models["mistral"]),
    }
    assert provider | expected == provider
    back = export_checkpoint(tmp_path / "b", tmp_path / "back")
    changed = config_changes(hf_models["mistral"], back)
    assert changed.keys() == {"rope_theta", "rope_scaling", "max_position_embeddings"}


def test_weights_go_across_and_back(nemo_checkpoints, hf_models, tmp_path):
    """NeMo → Bridge → NeMo, each time from the checkpoint itself."""
    nemo = shutil.copytree(nemo_checkpoints["qwen2"], tmp_path / "nemo")
    run_inputs.write_origin(nemo, "abc")
    there = import_checkpoint(nemo, tmp_path / "bridge", format="bridge")
    back = import_checkpoint(there, tmp_path / "back")
    for checkpoint in (there / "iter_0000000", back):
        assert_same_tensors(tensors(checkpoint), tensors(nemo))
        assert run_inputs.read_origin(checkpoint) == "abc"
        assert files(export_checkpoint(checkpoint, tmp_path / f"of {checkpoint.name}")) == files(hf_models["qwen2"])


def test_a_trained_run_goes_on_in_nemo(hf_models, tmp_path):
    """Its weights are no longer those that scored the shards, its rotary settings are those of training."""
    folder = tmp_path / "run"
    raised = {"rotary_base": 1e6, "rope_scaling": YARN, "seq_length": 16384}
    bridge_checkpoints.save_run(hf_models["llama"], folder, **raised)
    nemo = import_checkpoint(folder, tmp_path / "nemo")
    assert_same_tensors(tensors(nemo), bridge_checkpoints.megatron_tensors(hf_models["llama"]))
    assert run_inputs.read_origin(nemo) is None
    config = model_on_disk.open_model(nemo).config
    assert (config.theta, config.max_position_embeddings, config.rope_type) == (1e6, 16384, "yarn")


TRAINED: dict[str, tuple[dict, dict]] = {
    "a raised base": ({"rotary_base": 1e7}, {"rope_theta": 1e7}),
    "more positions": ({"seq_length": 8192}, {"max_position_embeddings": 8192}),
    "a shorter run": ({"seq_length": 512}, {}),
    "our scaling": ({"rope_scaling": YARN}, {"rope_scaling": YARN}),
    "our decision for none": ({"rope_scaling": None}, {"rope_scaling": None}),
    "Bridge's switch": ({"rope_scaling": True, "rope_scaling_factor": 8.0}, {}),
}


@pytest.mark.parametrize("name", TRAINED)
def test_rotary_settings_of_training_are_exported(name, hf_models, tmp_path):
    settings, expected = TRAINED[name]
    bridge_checkpoints.save_run(hf_models["llama"], tmp_path / "run", **settings)
    back = export_checkpoint(tmp_path / "run", tmp_path / "back")
    changed = config_changes(hf_models["llama"], back)
    assert {field: after for field, (_, after) in changed.items()} == expected


def test_small_files_are_the_checkpoints_own_first(run, hf_models, tmp_path):
    checkpoint = run / "iter_0000004"
    hf = shutil.copytree(hf_models["mistral"], checkpoint / "hf", ignore=shutil.ignore_patterns("*.safetensors"))
    (hf / "LICENSE").write_text("ours")
    back = export_checkpoint(checkpoint, tmp_path / "back")
    assert files(back) == files(hf_models["mistral"]) | {"LICENSE": b"ours"}


def test_a_model_that_is_not_here_is_asked_for(run, hf_models, tmp_path, capsys):
    provider = yaml.safe_load((run / "iter_0000004" / "run_config.yaml").read_text())["model"]
    bridge_checkpoints.describe(run / "iter_0000004", provider | {"hf_model_id": "mistralai/Mistral-7B-v0.2"})
    command = ["export", "--checkpoint", str(run), "--output", str(tmp_path / "back")]
    message = (
        "keeps no hf/config.json, and mistralai/Mistral-7B-v0.2, from which it was made, is no directory here; pass"
    )
    assert_refused(command, message, tmp_path, capsys)
    assert main(["convert", *command, "--base", str(hf_models["mistral"])]) == 0
    assert files(tmp_path / "back") == files(hf_models["mistral"])


def test_inspect(run, capsys):
    assert main(["convert", "inspect", "--json", str(run)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["family"], report["nemo"], report["advice"]) == ("bridge", "mistral", None, [])
    assert report["weights"]["tensors"] == 9
    assert report["bridge"] == {
        "model": None,
        "config": "GPTModelProvider",
        "adapters": None,
        "embedding_rows": 493,
        "objective": None,
        "pair_layout": None,
        "trained": {"steps": 4, "epoch": None, "consumed_samples": 32},
        "parallel": {"tensor": 2, "pipeline": 1, "context": 4},
        "optimizer": {"tensors": 18, "bytes": 2 * report["weights"]["bytes"]},
    }
    assert main(["convert", "inspect", "--headers-only", str(run)]) == 0
    assert "Megatron-Bridge checkpoint" in capsys.readouterr().out


def test_verify(run, hf_models, nemo_checkpoints, capsys):
    for other in (hf_models["mistral"], nemo_checkpoints["mistral"]):
        assert main(["convert", "verify", str(run), str(other), "--no-logits", "--strict"]) == 0
        assert "Megatron-Bridge checkpoint, MistralForCausalLM" in capsys.readouterr().out
    provider = yaml.safe_load((run / "iter_0000002" / "run_config.yaml").read_text())["model"]
    shutil.rmtree(run / "iter_0000002")
    odd = bridge_checkpoints.save_run(hf_models["mistral-odd"], run, 2)
    bridge_checkpoints.describe(odd, provider)
    assert main(["convert", "verify", str(run), str(odd), "--no-logits"]) == 2
    assert "the checkpoint is of another model" in capsys.readouterr().err


def edit_record(**changes: object) -> Callable[[Path], None]:
    def edit(checkpoint: Path) -> None:
        path = checkpoint / "run_config.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))

    return edit


def no_common_state(checkpoint: Path) -> None:
    metadata = checkpoint / ".metadata"
    metadata.write_bytes(metadata.read_bytes().replace(b"common_state/shard_0_1", b"common_state/shard_1_1"))


FAULTS: dict[str, Fault] = {
    "truncated tensors": (lambda path: truncate(path / "__0_0.distcp", 0.5), "__0_0.distcp is truncated"),
    "lost tensors": (lambda path: (path / "__0_0.distcp").unlink(), "__0_0.distcp is missing from the checkpoint"),
    "lost metadata": (lambda path: (path / ".metadata").unlink(), ".metadata is missing"),
    "cut metadata": (lambda path: truncate(path / ".metadata", 0.9), ".metadata is damaged"),
    "no common state": (no_common_state, "common.pt is missing"),
    "no YAML": (lambda path: (path / "run_config.yaml").write_text("model: {"), "run_config.yaml is not readable YAML"),
    "no model": (edit_record(model=None), "run_config.yaml describes no language model"),
    "adapters": (edit_record(peft={"_target_": "megatron.bridge.peft.lora.LoRA"}), "holds adapters of Megatron-Bridge"),
    "code in YAML": (
        lambda path: (path / "run_config.yaml").write_text("model: !!python/object/apply:os.mkdir [trap]"),
        "run_config.yaml is not readable YAML",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_damage_is_named(name, run, tmp_path, capsys):
    damage, message = FAULTS[name]
    checkpoint = run / "iter_0000004"
    damage(checkpoint)
    assert_refused(
        ["export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "back")], message, tmp_path, capsys
    )


def test_an_unfinished_checkpoint_is_no_model(run, tmp_path, capsys):
    (run / "iter_0000004" / "run_config.yaml").unlink()
    command = ["export", "--checkpoint", str(run / "iter_0000004"), "--output", str(tmp_path / "back")]
    assert_refused(command, "iter_0000004 is not finished", tmp_path, capsys)
    assert main(["convert", "inspect", "--headers-only", str(run)]) == 0
    assert "iter_0000002" in capsys.readouterr().out


def test_changed_files_of_an_import_are_found(hf_models, tmp_path, capsys):
    output = import_checkpoint(hf_models["mistral"], tmp_path / "b", format="bridge")
    path = output / "iter_0000000" / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    for command in (["export", "--checkpoint"], ["import", "--model"]):
        command = [*command, str(output), "--output", str(tmp_path / "back")]
        assert_refused(command, "__0_0.distcp is damaged: its sha256 is", tmp_path, capsys)


def test_names_in_a_record_are_only_text(run, hf_models, tmp_path):
    """Bridge would import and call these."""
    trap = tmp_path / "trap"
    edit_record(tokenizer={"_target_": "os.mkdir", "_args_": [str(trap)]}, dataset={"_target_": "no.such.module"})(
        run / "iter_0000004"
    )
    torch.save({"step": Payload(trap)}, run / "iter_0000002" / "train_state.pt")
    assert files(export_checkpoint(run, tmp_path / "back")) == files(hf_models["mistral"])
    assert main(["convert", "inspect", "--headers-only", str(run / "iter_0000002")]) == 0
    assert not trap.exists()


def test_padded_vocabulary_is_cut(hf_models, tmp_path, monkeypatch):
    """Tensor parallelism adds rows to the embedding, which belong to no token."""
    whole = bridge_checkpoints.megatron_tensors(hf_models["mistral"])
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        whole[name] = torch.cat([whole[name], torch.zeros(3, whole[name].shape[1])])
    monkeypatch.setattr(bridge_checkpoints, "megatron_tensors", lambda model: whole)
    bridge_checkpoints.save_run(hf_models["mistral"], tmp_path / "run")
    assert files(export_checkpoint(tmp_path / "run", tmp_path / "back")) == files(hf_models["mistral"])


def test_an_import_replaces_only_a_model(hf_models, tmp_path, capsys):
    output = tmp_path / "imported"
    command = ["import", "--format", "bridge", "--model", str(hf_models["mistral"]), "--output", str(output)]
    assert main(["convert", *command]) == 0
    capsys.readouterr()
    assert_refused(command, "exists already; pass --overwrite", tmp_path, capsys)
    (output / "iter_0000000" / RECORD).unlink()
    assert main(["convert", *command, "--overwrite"]) == 0
    assert (output / "iter_0000000" / RECORD).exists()
    inside = [*command[:-1], str(output / "iter_0000000" / "again")]
    inside[4] = str(output)
    assert_refused(inside, "lie in one another", tmp_path, capsys)
