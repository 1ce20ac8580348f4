"""Fixtures of the training tests: per family a small model, its checkpoint and its shards."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support import tiny_models as tiny, training_pairs as pairs
from support.parity import BETA, WEIGHT
from support.reference import longpo_step
from transformers import AutoModelForCausalLM

from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.shards.schema import PairRecord


@dataclass(frozen=True)
class Workbench:
    """A Hugging Face model, the same as a NeMo checkpoint, and shards of one global batch of pairs for it."""

    hf: Path
    checkpoint: Path
    shards: Path
    records: list[PairRecord]


@pytest.fixture(scope="session", params=["mistral", "qwen2", "qwen3", "llama"])
def workbench(request, tmp_path_factory) -> Workbench:
    """Pairs of 1 to 3 turns, of unequal lengths and at the edges; an odd number of vocabulary rows."""
    root = tmp_path_factory.mktemp(request.param)
    hf = tiny.save_tiny(root / "hf", request.param)
    tokenizer = tiny.tiny_tokenizer(tiny.DEFAULT_STYLE[request.param])
    vocab_size = tiny.tiny_model(request.param, tokenizer).config.vocab_size
    assert vocab_size % 2 == 1, "the vocabulary must not divide by the tensor-parallel size"
    records = [*pairs.uneven_records(vocab_size), *pairs.edge_records(vocab_size)]
    shards = pairs.write_shards(root / "shards", records, tokenizer, vocab_size)
    return Workbench(hf, import_checkpoint(hf, root / "nemo"), shards, records)


@pytest.fixture(scope="module")
def reference(workbench):
    """Metrics and per-parameter gradients of the whole batch, by Hugging Face."""
    model = AutoModelForCausalLM.from_pretrained(workbench.hf, dtype=torch.float32)
    records = [pairs.plain_record(record) for record in workbench.records]
    metrics = longpo_step(model, records, BETA, WEIGHT)
    return metrics, {name: parameter.grad for name, parameter in model.named_parameters()}
