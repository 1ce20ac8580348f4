"""The process that computes logits: what it is asked for, what it answers, and how its end is told."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.conversion_cases import edit_config
from transformers import AutoModelForCausalLM

from nemo_longpo.attention.rope import LinearScaling, RopeSettings
from nemo_longpo.conversion.comparison.logits_jobs import Job, compute
from nemo_longpo.conversion.model_on_disk import Access
from nemo_longpo.errors import InputError

IDS = [[5, 6, 7, 8], [9]]


def test_answers_of_a_fresh_process(hf_models, tmp_path, monkeypatch):
    """One model after the other, the second under other settings, the third missing; relative paths hold."""
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(hf_models["mistral"])
    for name in ("plain", "scaled"):
        Path(name).mkdir()
    rope = RopeSettings(1e6, LinearScaling(2.0))
    jobs = [Job(Path("model"), Path("plain"), IDS), Job(Path("model"), Path("scaled"), IDS, rope=rope)]
    with pytest.raises(InputError, match="absent is neither a Hugging Face directory"):
        compute([*jobs, Job(Path("absent"), tmp_path, IDS)])

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


def test_a_job_survives_its_journey(tmp_path):
    access = Access(base_checkpoint=tmp_path / "base", allow_pickle=True, trust_checkpoint=True)
    for rope in (None, RopeSettings(1e6), RopeSettings(1e4, LinearScaling(4.0))):
        job = Job(tmp_path / "model", tmp_path / "output", IDS, access, rope, "bfloat16")
        assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


@pytest.mark.parametrize(
    ("ending", "error", "message"),
    [
        ("kill -9 $$", InputError, "model was killed by signal 9, which is what happens when memory runs out"),
        ("echo no such layer >&2; exit 1", RuntimeError, "(?s)model failed:.*no such layer"),
    ],
)
def test_other_endings(ending, error, message, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{ending}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(error, match=message):
        compute([Job(tmp_path / "model", tmp_path, IDS)])
