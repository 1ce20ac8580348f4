"""Train on the pairs of a shard directory in their order with the tiny recipe, one per step, and measure each step.

    python -m benchmarks.children.longpo_steps JOB.json

The job names `checkpoint`, `shards`, `steps`, `overrides` of the recipe and a `folder` to write to; the last line of
the output is a JSON list with one object per step: what `Meter` measures, and the step's metrics.
"""

import json
import sys
from pathlib import Path
from typing import Any

import fiddle as fdl
import lightning.pytorch as pl
import nemo_run as run
from nemo.lightning.data import WrappedDataLoader

from nemo_longpo.checkpoints.run_directory import read_metrics
from nemo_longpo.nemo.data_module import LongPODataModule
from nemo_longpo.nemo.recipes import tiny_longpo

from ..common.meter import Meter


class PairsInOrder(LongPODataModule):
    """Every record of the shards once, as they stand there."""

    def train_dataloader(self) -> WrappedDataLoader:
        records = [reader[index] for reader in self.readers for index in range(len(reader))]
        return WrappedDataLoader(mode="train", dataset=records, collate_fn=lambda items: items[0])


class MeasuredSteps(pl.Callback):
    def __init__(self, meter: Meter):
        self.meter = meter
        self.steps: list[dict[str, float]] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.meter.start()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.steps.append(self.meter.stop())


def train(job: dict[str, Any], meter: Meter) -> list[dict[str, float]]:
    recipe = tiny_longpo()
    recipe.data = run.Config(PairsInOrder, paths=job["shards"], seq_length=1 << 20, global_batch_size=1)
    recipe.log.log_dir = job["folder"]
    recipe.log.ckpt = None
    recipe.resume.restore_config.path = job["checkpoint"]
    recipe.trainer.max_steps = job["steps"]
    recipe.trainer.enable_checkpointing = False
    recipe.trainer.enable_progress_bar = False
    for path, value in job["overrides"].items():
        *parents, name = path.split(".")
        owner = recipe
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, value)
    steps = MeasuredSteps(meter)
    complete = fdl.build(recipe)
    complete.keywords["trainer"].callbacks.append(steps)
    complete()
    metrics = read_metrics(Path(job["folder"]))
    return [measured | logged for measured, logged in zip(steps.steps, metrics, strict=True)]


if __name__ == "__main__":
    found = train(json.loads(Path(sys.argv[1]).read_text()), Meter())
    print(json.dumps(found))
