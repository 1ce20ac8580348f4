"""One global batch through the real NeMo + Megatron-Core stack equals plain Hugging Face: loss, metrics, gradients."""

import json
import shutil

import pytest
import torch
from reference import longpo_step
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.objective import METRICS

pytestmark = pytest.mark.distributed

TOLERANCE = 1e-4
BETA, WEIGHT = 0.1, 0.5

CASES = {
    "one process": (1, 1, 1, 1, {}),
    "cp 2": (2, 1, 1, 1, {}),
    "tp 2": (1, 2, 1, 1, {}),
    "pp 2": (1, 1, 2, 1, {}),
    "dp 2": (1, 1, 1, 2, {}),
    "cp 2, tp 2": (2, 2, 1, 1, {}),
    "cp 2, full recompute": (2, 1, 1, 1, {"trainer.strategy.recompute_granularity": "full"}),
    "cp 2, tp 2, sequence parallel": (2, 2, 1, 1, {"trainer.strategy.sequence_parallel": True}),
    "tp 2, pp 2, full recompute": (1, 2, 2, 1, {"trainer.strategy.recompute_granularity": "full"}),
    "log-probs in chunks of 7": (1, 1, 1, 1, {"model.logprob_chunk_size": 7}),
}


@pytest.fixture(scope="module")
def reference(workbench):
    """Metrics and per-parameter gradients of the whole batch, by Hugging Face."""
    model = AutoModelForCausalLM.from_pretrained(workbench.hf, dtype=torch.float32)
    records = [
        {
            "trunk": record.trunk_ids.tolist(),
            "chosen": record.chosen_ids.tolist(),
            "rejected": record.rejected_ids.tolist(),
            "chosen_spans": record.chosen_spans.tolist(),
            "rejected_spans": record.rejected_spans.tolist(),
            "ignore_spans": record.nll_ignore_spans.tolist(),
            "ref_chosen": [turn.tolist() for turn in record.ref_chosen_logps],
            "ref_rejected": [turn.tolist() for turn in record.ref_rejected_logps],
        }
        for record in workbench.records
    ]
    metrics = longpo_step(model, records, BETA, WEIGHT)
    return metrics, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("case", CASES)
def test_step_equals_hugging_face(workbench, reference, workers, tmp_path, case):
    cp, tp, pp, dp, more = CASES[case]
    overrides = {
        "data.paths": str(workbench.shards),
        "data.global_batch_size": len(workbench.records),
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(tmp_path / "run"),
        "model.objective.beta": BETA,
        "model.objective.preference_weight": WEIGHT,
        "trainer.devices": cp * tp * pp * dp,
        "trainer.max_steps": 1,
        "trainer.strategy.context_parallel_size": cp,
        "trainer.strategy.tensor_model_parallel_size": tp,
        "trainer.strategy.pipeline_model_parallel_size": pp,
        **more,
    }
    gradients = tmp_path / "gradients"
    workers.run(
        "megatron_jobs", "finetune", cp * tp * pp * dp, overrides=overrides, gradients=str(gradients / "weights")
    )

    expected_metrics, expected_gradients = reference
    (line,) = (tmp_path / "run" / "tb_logs" / "longpo" / "metrics.jsonl").read_text().splitlines()
    step = json.loads(line)
    assert step["step"] == 1
    for name in METRICS:
        assert step[name] == pytest.approx(expected_metrics[name], rel=TOLERANCE), name

    # Gradients were saved under their parameters' keys, so the exporter gives them Hugging Face's names and shapes.
    shutil.copytree(workbench.checkpoint / "context", gradients / "context")
    found = load_file(export_checkpoint(gradients, tmp_path / "hf") / "model.safetensors")
    assert set(found) == set(expected_gradients)
    norm = torch.stack([gradient.norm() for gradient in expected_gradients.values()]).norm()
    for name, expected in expected_gradients.items():
        error = (found[name] - expected).norm()
        assert error <= TOLERANCE * max(float(expected.norm()), 1e-3 * float(norm)), (
            f"{name}: {error} of {expected.norm()}"
        )
    assert step["grad_norm"] == pytest.approx(float(norm), rel=TOLERANCE)
