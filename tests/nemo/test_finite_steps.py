"""A step whose loss or gradient is no number: which documents are named, and that it never reaches the weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import tiny_models as tiny, training_pairs as pairs
from support.jobs import nemo_jobs
from transformers import AutoModelForCausalLM

from nemo_longpo.checkpoints.run_directory import list_checkpoints, read_metrics
from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.importer import import_checkpoint

pytestmark = [pytest.mark.distributed, pytest.mark.parametrize("workbench", ["mistral"], indirect=True)]
TOKEN = 20


def _without(ids: np.ndarray) -> np.ndarray:
    return np.where(ids == TOKEN, TOKEN + 1, ids).astype(np.int32)


@pytest.fixture
def poisoned(workbench, tmp_path) -> dict:
    """A model that gives NaN for one token, which only the third of four documents holds."""
    records = [
        replace(
            record,
            trunk_ids=_without(record.trunk_ids),
            chosen_ids=_without(record.chosen_ids),
            rejected_ids=_without(record.rejected_ids),
        )
        for record in workbench.records[:4]
    ]
    records[2].trunk_ids[3] = TOKEN
    tokenizer = tiny.tiny_tokenizer(tiny.DEFAULT_STYLE["mistral"])
    model = AutoModelForCausalLM.from_pretrained(workbench.hf, dtype=torch.float32)
    model.get_input_embeddings().weight.data[TOKEN, 0] = torch.nan
    model.save_pretrained(tmp_path / "hf")
    tokenizer.save_pretrained(tmp_path / "hf")
    return {
        "data.paths": str(pairs.write_shards(tmp_path / "shards", records, tokenizer, len(tokenizer))),
        "resume.restore_config.path": str(import_checkpoint(tmp_path / "hf", tmp_path / "start")),
        "log.log_dir": str(tmp_path / "run"),
        "log.ckpt.every_n_train_steps": 1,
        "log.ckpt.save_top_k": -1,
        "optim.config.lr": 0.1,
    }


def parallel(cp: int = 1, tp: int = 1, pp: int = 1, dp: int = 1) -> dict:
    names = {"context": cp, "tensor_model": tp, "pipeline_model": pp}
    sizes = {f"trainer.strategy.{name}_parallel_size": size for name, size in names.items()}
    return sizes | {"trainer.devices": cp * tp * pp * dp}


@pytest.mark.parametrize("sizes", [{"cp": 2, "dp": 2}, {"pp": 2}, {"tp": 2, "dp": 2}], ids=str)
def test_all_ranks_name_the_document(workers, workbench, poisoned, tmp_path, sizes):
    given = poisoned | parallel(**sizes) | {"data.global_batch_size": 4, "trainer.max_steps": 2}
    messages = workers.run(nemo_jobs.refusal, given["trainer.devices"], overrides=given, checkpoints=True)
    assert len(set(messages)) == 1
    assert messages[0].startswith("Step 1: the loss of 'doc-2' is not a finite number. It was not applied")
    assert read_metrics(tmp_path / "run") == []
    assert list_checkpoints(tmp_path / "run" / "longpo" / "checkpoints").newest is None


def test_newest_sound_checkpoint_stays_and_the_run_goes_on_without_the_step(workers, workbench, poisoned, tmp_path):
    """One pair per step, in an order that has the third document third."""
    given = poisoned | parallel(cp=2) | {"data.global_batch_size": 1, "data.seed": 1, "trainer.max_steps": 4}
    messages = workers.run(nemo_jobs.refusal, 2, overrides=given, checkpoints=True)
    bad = 3
    assert all(message.startswith(f"Step {bad}: the loss of 'doc-2'") for message in messages)
    folder = tmp_path / "run" / "longpo" / "checkpoints"
    assert list_checkpoints(folder).newest.name.startswith(f"global_step={bad - 1}")
    assert [metrics["step"] for metrics in read_metrics(tmp_path / "run")] == list(range(1, bad))
    given["trainer.strategy.non_finite_steps"] = "skip"
    workers.run(nemo_jobs.finetune, 2, overrides=given, checkpoints=True)
    metrics = read_metrics(tmp_path / "run")
    assert [step["step"] for step in metrics if step.get("skipped")] == [bad]
    assert [step["step"] for step in metrics if not np.isfinite([step["loss"], step["grad_norm"]]).all()] == [bad]
    assert len(metrics) == 4
    log = "".join(path.read_text() for path in (tmp_path / "run" / "longpo").rglob("nemo_log*.txt"))
    assert (
        f"Step {bad}: the loss of 'doc-2' is not a finite number. The step is left out, number 1 in a row of 3" in log
    )
    before, after, last = (weights(folder, step, tmp_path) for step in (bad - 1, bad, 4))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert not all(torch.equal(last[name], before[name]) for name in before if "layers" in name)
    assert all(torch.isfinite(tensor).all() for name, tensor in last.items() if "embed_tokens" not in name)


def weights(folder: Path, step: int, scratch: Path) -> dict[str, torch.Tensor]:
    (checkpoint,) = (found for found in list_checkpoints(folder).complete if f"global_step={step}" in found.name)
    return load_file(export_checkpoint(checkpoint, scratch / f"exported-{step}") / "model.safetensors")


def test_gradient_of_one_rank_stops_all(workers, workbench, tmp_path):
    """The losses are sound; what is not finite lies in the gradients of the second rank alone."""
    given = {
        "data.paths": str(workbench.shards),
        "data.global_batch_size": len(workbench.records),
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(tmp_path / "run"),
        "trainer.max_steps": 3,
    } | parallel(cp=2)
    messages = workers.run(nemo_jobs.refusal_of_poisoned_gradient, 2, overrides=given, rank=1, step=2)
    assert len(set(messages)) == 1
    assert messages[0].startswith(
        "Step 2: the gradient is not a finite number, though every loss is; its documents are "
    )
    assert "'doc-0'" in messages[0]
    assert len(read_metrics(tmp_path / "run")) == 1


def test_unknown_policy_is_refused(workers, workbench, poisoned):
    for wrong in ({"trainer.strategy.non_finite_steps": "ignore"}, {"trainer.strategy.max_skipped_steps": 0}):
        (message,) = workers.run(nemo_jobs.refusal, 1, overrides=poisoned | wrong, checkpoints=True)
        assert "one of error, skip, the second 1 or more" in message
