"""Logits of NeMo checkpoints, by the Megatron model that training builds, beside those of transformers."""

import json
import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import bridge_checkpoints
from support.adapter_checkpoints import make_adapters, make_base
from support.conversion_cases import CASES
from support.exploits import EXPLOITS, Payload
from support.jobs import comparison_jobs

from nemo_longpo.cli import main
from nemo_longpo.conversion.comparison import verify as verify_module
from nemo_longpo.conversion.comparison.comparison_report import format_report
from nemo_longpo.conversion.comparison.verify import LogitCheck, verify
from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.conversion.model_on_disk import Access
from nemo_longpo.errors import InputError

pytestmark = pytest.mark.distributed

PROMPTS = ("The river crosses the quiet village.", "One letter")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.fixture
def in_worker(workers, monkeypatch):
    """Logits come from a process that has imported NeMo already."""

    def compute(jobs):
        (refusal,) = workers.run(comparison_jobs.run_all, 1, jobs=jobs)
        if refusal:
            raise InputError(refusal)

    monkeypatch.setattr(verify_module, "compute", compute)


@pytest.mark.parametrize("case", CASES)
def test_a_model_and_its_import(case, hf_models, nemo_checkpoints, in_worker):
    report = verify(hf_models[case], nemo_checkpoints[case], strict=True, logit_check=LogitCheck(prompts=PROMPTS))
    assert report.equal, format_report(report)
    assert not report.logits.common_rope
    assert [part.name for part in report.logits.sequences] == ["random tokens", "prompt 1", "prompt 2"]
    assert all(part.largest < 1e-5 and part.same_choice == 1 for part in report.logits.sequences)
    layers = json.loads((hf_models[case] / "config.json").read_text())["num_hidden_layers"]
    assert len(report.logits.states) == layers + 1
    assert max(report.logits.states) < 1e-5


def test_settings_of_an_import(hf_models, tmp_path, in_worker):
    """Both are computed with the settings of A; with their own settings they are two models."""
    hf = hf_models["qwen2"]
    nemo = import_checkpoint(hf, tmp_path / "nemo", rope_theta=1e6, rope_scaling=YARN, max_length=16384)
    for sides in ((hf, nemo), (nemo, hf)):
        report = verify(*sides)
        assert report.equal, format_report(report)
        assert report.logits.common_rope
        assert report.allowed == ["max_position_embeddings", "rope_scaling", "rope_theta"]
        assert report.logits.sequences[0].largest < 1e-5
        assert not verify(*sides, logit_check=LogitCheck(own_rope=True)).equal
    exported = export_checkpoint(nemo, tmp_path / "exported")
    report = verify(exported, nemo, strict=True)
    assert report.equal, format_report(report)
    assert not report.logits.common_rope


def test_difference_only_in_logits(hf_models, nemo_checkpoints, tmp_path, in_worker):
    """NeMo builds the model from `io.json`: tensors and every description that export reads are as they should be."""
    wrong = shutil.copytree(nemo_checkpoints["mistral"], tmp_path / "wrong")
    record = wrong / "context" / "io.json"
    text = record.read_text()
    assert text.count("10000.0") == 1
    record.write_text(text.replace("10000.0", "20000.0"))
    report = verify(hf_models["mistral"], wrong)
    assert report.failed == ["logits"]
    assert report.logits.first_apart == 1
    assert "apart from layer 0" in format_report(report)


def test_changed_layer_is_reported(hf_models, nemo_checkpoints, tmp_path, in_worker):
    damaged = shutil.copytree(hf_models["mistral-odd"], tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    query = "model.layers.1.self_attn.q_proj.weight"
    weights[query] = weights[query].roll(24, 0).contiguous()
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    report = verify(damaged, nemo_checkpoints["mistral-odd"])
    assert report.failed == ["tensors", "logits"]
    assert "the same values in another order" in format_report(report)
    assert report.logits.states[:2] == pytest.approx([0, 0], abs=1e-6)
    assert report.logits.first_apart == 2
    assert "apart from layer 1" in format_report(report)


def test_rounded_and_back(nemo_checkpoints, tmp_path, in_worker):
    narrow = export_checkpoint(nemo_checkpoints["qwen2"], tmp_path / "narrow", dtype="bfloat16")
    again = import_checkpoint(narrow, tmp_path / "again")
    for other in (narrow, again):
        report = verify(nemo_checkpoints["qwen2"], other)
        assert report.equal, format_report(report)
        assert report.logits.rounded_to == "bfloat16"
        assert report.allowed == ["dtype"]


def test_adapters_are_merged(nemo_checkpoints, tmp_path, in_worker):
    base = shutil.copytree(nemo_checkpoints["mistral-odd"], tmp_path / "base")
    adapters = make_adapters(base, tmp_path / "adapters")
    exported = export_checkpoint(adapters, tmp_path / "exported")
    report = verify(base, exported)
    assert report.failed == ["tensors", "logits"]
    base.rename(tmp_path / "moved")
    report = verify(adapters, exported, access=Access(base_checkpoint=tmp_path / "moved"), strict=True)
    assert report.equal, format_report(report)


@pytest.mark.parametrize("exploit", ["a process in a field", "a pickle in common.pt", "a pickle among the tensors"])
def test_checkpoint_code_does_not_run(exploit, hf_models, nemo_checkpoints, tmp_path, in_worker):
    """tests/nemo/test_trust.py shows that it would run."""
    plant, sentence = EXPLOITS[exploit]
    plant(shutil.copytree(nemo_checkpoints["mistral"], tmp_path / "nemo"), tmp_path / "trap")
    with pytest.raises(InputError, match=re.escape(sentence)):
        verify(hf_models["mistral"], tmp_path / "nemo")
    assert not (tmp_path / "trap").exists()


def test_checkpoint_that_cannot_be_trained(hf_models, nemo_checkpoints, tmp_path, in_worker):
    """Complete for an export; Megatron asks for more."""
    bare = make_base(nemo_checkpoints["mistral"], tmp_path / "bare")
    with pytest.raises(InputError, match=r"Megatron does not load .*/bare/weights, .*_extra_state"):
        verify(hf_models["mistral"], bare)


def test_command_computes_in_own_processes(hf_models, nemo_checkpoints, programs, tmp_path, monkeypatch, capsys):
    """This process stays unchanged, and no files remain."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    command = ["convert", "verify", str(nemo_checkpoints["llama"]), str(hf_models["llama"]), "--prompt", PROMPTS[0]]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "equal"
    assert "prompt 1: 8 tokens" in printed.out
    assert not torch.distributed.is_initialized()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", ["mistral-odd", "qwen2", "qwen3", "llama"])
def test_a_run_of_bridge(case, hf_models, tmp_path, in_worker):
    """As Megatron-Core 0.19 writes it, whatever version computes it here; nothing that it names is built."""
    checkpoint = bridge_checkpoints.save_run(hf_models[case], tmp_path, _target_="no.such.Provider")
    report = verify(hf_models[case], checkpoint, strict=True, logit_check=LogitCheck(prompts=PROMPTS))
    assert report.equal, format_report(report)
    assert all(part.largest < 1e-5 and part.same_choice == 1 for part in report.logits.sequences)


def test_a_pickle_in_a_run_of_bridge(hf_models, tmp_path, in_worker):
    checkpoint = bridge_checkpoints.save_run(hf_models["mistral"], tmp_path)
    torch.save({"step": Payload(tmp_path / "trap")}, checkpoint / "train_state.pt")
    with pytest.raises(InputError, match=r"train_state.pt asks for posix.mkdir"):
        verify(hf_models["mistral"], checkpoint)
    assert not (tmp_path / "trap").exists()
