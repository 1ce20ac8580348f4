"""Random pairs with short prompts, scored by a Hugging Face model, so that a run can be held against its reference."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from support import training_pairs as pairs
from transformers import AutoModelForCausalLM

from nemo_longpo.shards.schema import PairRecord


@torch.no_grad()
def scored_records(hf: Path, ref_context: str, shift: float = 0.0) -> list[PairRecord]:
    """Four records of 1 to 3 turns; every second token's log-prob is stored `shift` below the model's."""
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    rng = np.random.default_rng(3)
    records = []
    for record in pairs.uneven_records(model.config.vocab_size):
        prompts = tuple(
            rng.integers(0, model.config.vocab_size, rng.integers(5, 30)).astype(np.int32) for _ in range(record.turns)
        )
        changes: dict = {"ref_context": ref_context, "short_prompt_ids": prompts}
        for side in ("chosen", "rejected"):
            ids, spans = getattr(record, f"{side}_ids"), getattr(record, f"{side}_spans")
            before = [
                np.concatenate([record.trunk_ids, ids[:start]]) if ref_context == "long" else prompts[turn]
                for turn, (start, _) in enumerate(spans)
            ]
            changes[f"ref_{side}_logps"] = tuple(
                _logps(model, prompt, ids[start:end], shift) for prompt, (start, end) in zip(before, spans, strict=True)
            )
        records.append(replace(record, **changes))
    return records


def _logps(model, prompt: np.ndarray, answer: np.ndarray, shift: float) -> np.ndarray:
    ids = torch.tensor(np.concatenate([prompt, answer])[None].astype(np.int64))
    logps = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[len(prompt) - 1 :, 0].numpy()
    return logps - np.where(np.arange(len(answer)) % 2 == 0, shift, 0.0).astype(np.float32)
