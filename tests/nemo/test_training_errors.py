"""Training refuses bad input in one sentence, before the first step and without a checkpoint."""

import dataclasses
import shutil

import numpy as np
import pytest
from support import tiny_models as tiny, training_pairs as pairs
from support.jobs import nemo_jobs

from nemo_longpo.checkpoints.integrity import RECORD
from nemo_longpo.checkpoints.run_directory import read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.parametrize("workbench", ["mistral"], indirect=True)]


def _refusal(workers, workbench, tmp_path, **overrides) -> str:
    settings = {
        "data.paths": str(workbench.shards),
        "data.global_batch_size": 4,
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(tmp_path / "run"),
        "trainer.max_steps": 1,
        **{name.replace("__", "."): value for name, value in overrides.items()},
    }
    (message,) = workers.run(nemo_jobs.refusal, 1, overrides=settings)
    assert not list((tmp_path / "run").rglob("checkpoints/*"))
    assert not read_metrics(tmp_path / "run")
    return message


def test_missing_shards(workers, workbench, tmp_path):
    message = _refusal(workers, workbench, tmp_path, data__paths=str(tmp_path / "nowhere"))
    assert "nowhere holds no manifest.json" in message


@pytest.mark.parametrize(("setting", "value"), [("logprob_memory_gb", 0.0), ("logprob_chunk_size", 0)])
def test_no_memory_for_logits(workers, workbench, tmp_path, setting, value):
    message = _refusal(workers, workbench, tmp_path, **{f"model__{setting}": value})
    assert f"model.{setting} is {value}" in message


def test_no_paths(workers, workbench, tmp_path):
    assert "data.paths is not set" in _refusal(workers, workbench, tmp_path, data__paths=None)


def test_truncated_shard(workers, workbench, tmp_path):
    shards = shutil.copytree(workbench.shards, tmp_path / "shards")
    (file,) = shards.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-100])
    message = _refusal(workers, workbench, tmp_path, data__paths=str(shards))
    assert file.name in message
    assert "truncated" in message


def test_tokenizer_of_another_model(workers, workbench, tmp_path):
    shards = pairs.write_shards(tmp_path / "shards", workbench.records, tiny.tiny_tokenizer("llama-3"), 1000)
    message = _refusal(workers, workbench, tmp_path, data__paths=str(shards))
    assert "was written with tokenizer" in message
    assert "but the model's tokenizer is" in message


def test_tokens_beyond_the_vocabulary(workers, workbench, tmp_path):
    """A shard may come from a model whose tokenizer agrees but whose embedding has more rows."""
    record = dataclasses.replace(workbench.records[0], trunk_ids=np.full(20, 5000, np.int32))
    tokenizer = tiny.tiny_tokenizer(tiny.DEFAULT_STYLE["mistral"])
    shards = pairs.write_shards(tmp_path / "shards", [record], tokenizer, 5001)
    message = _refusal(workers, workbench, tmp_path, data__paths=str(shards))
    assert "vocabulary of 5001" in message


def test_records_longer_than_the_run(workers, workbench, tmp_path):
    message = _refusal(workers, workbench, tmp_path, data__seq_length=32)
    assert "more than data.seq_length=32" in message


def test_loss_that_needs_another_reference(workers, workbench, tmp_path):
    message = _refusal(workers, workbench, tmp_path, model__objective__loss_type="dpo")
    assert "model.objective.loss_type=dpo" in message
    assert str(workbench.shards) in message


@pytest.mark.parametrize("data_workers", [0, 1])
def test_record_that_cannot_be_trained(workers, workbench, tmp_path, monkeypatch, data_workers):
    """The sentence names file and document, also where a data worker reads the record."""
    monkeypatch.setattr("nemo_longpo.shards.writer.validate_record", lambda *args, **named: None)
    record = workbench.records[0]
    bad = dataclasses.replace(record, ref_chosen_logps=tuple(np.nan * turn for turn in record.ref_chosen_logps))
    tokenizer = tiny.tiny_tokenizer(tiny.DEFAULT_STYLE["mistral"])
    shards = pairs.write_shards(tmp_path / "shards", [bad], tokenizer, len(tokenizer))
    message = _refusal(workers, workbench, tmp_path, data__paths=str(shards), data__num_workers=data_workers)
    assert message.startswith(f"{shards}/shard-00000.arrow, record 0, document 'doc-0': field 'ref_chosen_logps' holds")


def test_missing_checkpoint(workers, workbench, tmp_path):
    message = _refusal(workers, workbench, tmp_path, resume__restore_config__path=str(tmp_path / "nowhere"))
    assert "nowhere is not a NeMo checkpoint" in message


def test_checkpoint_of_another_architecture(workers, workbench, tmp_path):
    checkpoint = shutil.copytree(workbench.checkpoint, tmp_path / "checkpoint", ignore=lambda *_: {RECORD})
    context = checkpoint / "context" / "io.json"
    llama = context.read_text().replace("model.mistral", "model.llama").replace("MistralConfig7B", "Llama4Config")
    context.write_text(llama)
    message = _refusal(workers, workbench, tmp_path, resume__restore_config__path=str(checkpoint))
    assert "checkpoint holds a Llama4Config" in message


def test_sliding_window_of_a_stock_checkpoint(workers, workbench, tmp_path):
    checkpoint = shutil.copytree(workbench.checkpoint, tmp_path / "checkpoint", ignore=lambda *_: {RECORD})
    context = checkpoint / "context" / "io.json"
    none = """window_size')", {"type": "leaf", "value": null"""
    assert none in context.read_text()
    context.write_text(context.read_text().replace(none, none.replace("null", "[4096, 0]")))
    message = _refusal(workers, workbench, tmp_path, resume__restore_config__path=str(checkpoint))
    assert "sliding window of 4096 tokens" in message
    assert "--full-attention" in message


def test_no_checkpoint(workers, workbench, tmp_path):
    message = _refusal(workers, workbench, tmp_path, resume__restore_config__path="")
    assert "resume.restore_config.path is not set" in message


@pytest.mark.parametrize(
    ("setting", "size", "sentence"),
    [
        ("tensor_model_parallel_size", 4, "2 key/value heads"),
        ("pipeline_model_parallel_size", 4, "2 layers"),
    ],
)
def test_sizes_that_do_not_divide(workers, workbench, tmp_path, setting, size, sentence):
    overrides = {"trainer__devices": size, f"trainer__strategy__{setting}": size}
    message = _refusal(workers, workbench, tmp_path, **overrides)
    assert sentence in message
    assert setting in message


def test_interleaved_pipeline_stages(workers, workbench, tmp_path):
    sizes = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    overrides = {"trainer__devices": 2, **{f"trainer__strategy__{name}": size for name, size in sizes.items()}}
    message = _refusal(workers, workbench, tmp_path, **overrides)
    assert "virtual_pipeline_model_parallel_size is set" in message


def test_sizes_beyond_the_devices(workers, workbench, tmp_path):
    overrides = {"trainer__devices": 2, "trainer__strategy__context_parallel_size": 3}
    assert "divisible by the product" in _refusal(workers, workbench, tmp_path, **overrides)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("data.global_batch_size", 0),
        ("trainer.max_steps", -1),
        ("trainer.strategy.context_parallel_size", 0),
        ("optim.lr_scheduler.warmup_ratio", 1.5),
    ],
)
def test_numbers_that_no_run_can_have(workers, workbench, tmp_path, setting, value):
    """NeMo said nothing to the first and third, and trained for ever at a rate near 0 with the others."""
    message = _refusal(workers, workbench, tmp_path, **{setting.replace(".", "__"): value})
    assert f"{setting} is {value}; give " in message
