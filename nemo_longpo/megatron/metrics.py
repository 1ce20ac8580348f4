"""Metrics of each optimizer step: to TensorBoard through Lightning, and to `metrics.jsonl` for everyone else."""

import json
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from nemo.lightning import io
from nemo.lightning.megatron_parallel import MegatronStep
from torch import Tensor

from nemo_longpo.objective import METRICS

from .topology import current_topology


class MetricsCallback(pl.Callback, io.IOMixin):
    """Appends one JSON object per optimizer step to `metrics.jsonl`, beside the TensorBoard files.

    Keys: `step` (from 1), the names of `METRICS` (means over the global batch's pairs), `lr`, `grad_norm`,
    `tokens_per_second` (trunk and both branches of every pair), `step_seconds`. After a resume, lines of steps that
    will be trained again are dropped.
    """

    def __init__(self, filename: str = "metrics.jsonl"):
        self.filename = filename

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not NeMo's own log_dir: a resumed run moves the files it finds there out of the way.
        self._path = Path(trainer.log_dir or trainer.default_root_dir) / self.filename
        if trainer.is_global_zero and self._path.exists():
            lines = self._path.read_text().splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= trainer.global_step]
            self._path.write_text("".join(f"{line}\n" for line in kept))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args) -> None:
        self._started = time.perf_counter()

    def on_megatron_step_end(self, step: MegatronStep, reduced: dict[str, Tensor] | Tensor) -> None:
        """Bring the metrics from the last pipeline stage, which computed them, to all stages."""
        topology = current_topology()
        names = (*METRICS, "tokens")
        values = (
            torch.stack([reduced[name] for name in names])
            if isinstance(reduced, dict)
            else torch.zeros(len(names), device=torch.cuda.current_device())
        )
        if topology.pp_size > 1:
            dist.broadcast(values, topology.pp_last_rank, group=topology.pp_group)
        self._values = dict(zip(names, values.tolist(), strict=True))
        self._values["lr"] = step.trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args) -> None:
        seconds = time.perf_counter() - self._started
        tokens = self._values.pop("tokens") * trainer.datamodule.global_batch_size  # type: ignore[attr-defined]
        record = {
            "step": trainer.global_step,
            **self._values,
            "grad_norm": float(trainer.callback_metrics.get("grad_norm", torch.nan)),
            "tokens_per_second": tokens / seconds,
            "step_seconds": seconds,
        }
        shown = {name: value for name, value in record.items() if name not in ("step", "grad_norm")}
        pl_module.log_dict(shown, batch_size=1)
        if trainer.is_global_zero:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
