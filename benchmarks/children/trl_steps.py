"""Train on pairs in their order with TRL's DPOTrainer, one pair per optimizer step, and measure each step.

    python -m benchmarks.children.trl_steps JOB.json

Runs in TRL's own environment (requirements/trl.txt) and imports nothing of the project. The job names the Hugging Face
directories `model` and `reference`, `pairs` (a JSONL file with prompt, chosen and rejected as text), `beta`, `weights`
of the preference term and of the NLL, `learning_rate`, `recompute`, `precompute` (the reference's log-probs before
training starts), `tile_rows` and a `folder` to write to. The last line of the output is a JSON list with one object per
step: what `Meter` measures, and TRL's metrics.

Settings that keep TRL's memory low or its time short: no truncation and no padding but to the longer answer, one pair
per batch, the attention of torch (`sdpa`), the trainer's fused AdamW, nothing saved or reported. TRL 1.16 computes
log-probs in tiles of logits and never holds them all. Without Triton, so on every CPU, it scores the document's rows
too, in tiles of 4,096 rows by 32,768 tokens that make up much of its peak here; `tile_rows` makes them smaller, for
which TRL has no setting.
"""

import json
import sys
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.kernels import chunked_logprob

from ..common.meter import Meter


class MeasuredSteps(TrainerCallback):
    def __init__(self, meter: Meter):
        self.meter = meter
        self.steps: list[dict[str, Any]] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.meter.start()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append(self.meter.stop())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "rewards/margins" in logs:
            self.steps[-1] |= {name: float(value) for name, value in logs.items()}


def train(job: dict[str, Any], meter: Meter) -> list[dict[str, Any]]:
    if job["tile_rows"] is not None:
        chunked_logprob.TOKEN_CHUNK_SIZE = job["tile_rows"]
    pairs = load_dataset("json", data_files=job["pairs"], split="train", cache_dir=job["folder"])
    settings = DPOConfig(
        output_dir=job["folder"],
        loss_type=["sigmoid", "sft"],
        loss_weights=job["weights"],
        beta=job["beta"],
        precompute_ref_log_probs=job["precompute"],
        gradient_checkpointing=job["recompute"],
        max_length=None,
        per_device_train_batch_size=1,
        max_steps=len(pairs),
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        logging_steps=1,
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    steps = MeasuredSteps(meter)
    trainer = DPOTrainer(
        model=_load(job["model"]),
        ref_model=_load(job["reference"]),
        args=settings,
        train_dataset=pairs,
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[steps],
    )
    trainer.train()
    return steps.steps


def _load(directory: str) -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(directory, dtype="float32", attn_implementation="sdpa")


if __name__ == "__main__":
    meter = Meter()
    print(json.dumps(train(json.loads(Path(sys.argv[1]).read_text()), meter)))
