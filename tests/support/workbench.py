"""What training is tried with: a model, a checkpoint of it, shards for it, and what Hugging Face makes of them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from support import tiny_models as tiny, training_pairs as pairs
from support.parity import BETA, WEIGHT
from support.reference import longpo_step
from transformers import AutoModelForCausalLM

from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.shards.schema import PairRecord


@dataclass(frozen=True)
class Workbench:
    """A Hugging Face model, what training starts from, and shards of one global batch of pairs for it.

    `checkpoint` is the same model as NeMo or Megatron-Bridge saves it, or the Hugging Face directory itself.
    """

    hf: Path
    checkpoint: Path
    shards: Path
    records: list[PairRecord]


def make_workbench(root: Path, family: str, form: str | None = "nemo") -> Workbench:
    """Pairs of 1 to 3 turns, of unequal lengths and at the edges; an odd number of vocabulary rows.

    `form` is that of the checkpoint; None starts from the Hugging Face directory.
    """
    hf = tiny.save_tiny(root / "hf", family)
    tokenizer = tiny.tiny_tokenizer(tiny.DEFAULT_STYLE[family])
    vocab_size = tiny.tiny_model(family, tokenizer).config.vocab_size
    assert vocab_size % 2 == 1, "the vocabulary must not divide by the tensor-parallel size"
    records = [*pairs.uneven_records(vocab_size), *pairs.edge_records(vocab_size)]
    shards = pairs.write_shards(root / "shards", records, tokenizer, vocab_size)
    checkpoint = hf if form is None else import_checkpoint(hf, root / form, format=form)
    return Workbench(hf, checkpoint, shards, records)


def make_reference(workbench: Workbench) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics and per-parameter gradients of the whole batch, by Hugging Face."""
    model = AutoModelForCausalLM.from_pretrained(workbench.hf, dtype=torch.float32)
    records = [pairs.plain_record(record) for record in workbench.records]
    metrics = longpo_step(model, records, BETA, WEIGHT)
    return metrics, {name: parameter.grad for name, parameter in model.named_parameters()}
