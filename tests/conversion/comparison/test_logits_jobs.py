"""The process that computes logits: its jobs, its results, and the report of its failure."""

import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.conversion_cases import edit_config
from transformers import AutoModelForCausalLM

from nemo_longpo.conversion.comparison.logits_jobs import Job, compute
from nemo_longpo.conversion.model_on_disk import Access
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.rope_settings import LinearScaling, RopeSettings

IDS = [[5, 6, 7, 8], [9]]


@pytest.mark.slow
def test_answers_of_a_fresh_process(hf_models, programs, tmp_path, monkeypatch):
    """One model after the other, the second under other settings, the third missing; relative paths hold."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    Path("model").symlink_to(hf_models["mistral"])
    for name in ("plain", "scaled"):
        Path(name).mkdir()
    rope = RopeSettings(1e6, LinearScaling(2.0))
    plain = Job(model=Path("model"), output=Path("plain"), sequences=IDS)
    jobs = [plain, replace(plain, output=Path("scaled"), rope=rope), replace(plain, model=Path("absent"))]
    with pytest.raises(InputError, match="absent is neither a Hugging Face directory"):
        compute(jobs)

    reference = {"plain": hf_models["mistral"], "scaled": shutil.copytree(hf_models["mistral"], tmp_path / "other")}
    edit_config(reference["scaled"], rope_theta=1e6, rope_scaling={"rope_type": "linear", "factor": 2.0})
    for name, path in reference.items():
        model = AutoModelForCausalLM.from_pretrained(path)
        for number, ids in enumerate(IDS):
            with torch.no_grad():
                expected = model(torch.tensor([ids]), output_hidden_states=True)
            found = load_file(f"{name}/{number}.safetensors")
            assert torch.allclose(found["logits"], expected.logits[0], atol=1e-6)
            assert torch.allclose(found["states"], torch.cat(expected.hidden_states), atol=1e-6)


def test_a_job_holds_in_another_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for rope in (None, RopeSettings(1e6), RopeSettings(1e4, LinearScaling(4.0))):
        access = Access(base_checkpoint=Path("base"), allow_pickle=True, trust_checkpoint=True)
        job = Job(model=Path("m"), output=Path("o"), sequences=IDS, access=access, rope=rope, round_to="bfloat16")
        there = replace(access, base_checkpoint=tmp_path / "base")
        there = replace(job, model=tmp_path / "m", output=tmp_path / "o", access=there)
        assert pickle.loads(pickle.dumps(job.absolute())) == there


@pytest.mark.parametrize(
    ("ending", "error", "message"),
    [
        ("kill -9 $$", InputError, "model was killed by signal 9, which is what happens when memory runs out"),
        ("echo no such layer >&2; exit 1", RuntimeError, "(?s)model failed:.*no such layer"),
    ],
)
def test_other_exit_codes(ending, error, message, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{ending}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(error, match=message):
        compute([Job(model=tmp_path / "model", output=tmp_path, sequences=IDS)])
