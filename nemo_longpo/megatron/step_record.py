"""The metrics of each optimizer step: a line of `metrics.jsonl`, and how far the run has come."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, distributed as dist

from nemo_longpo import live_status
from nemo_longpo.atomic import explain_full_disk
from nemo_longpo.checkpoints import run_directory
from nemo_longpo.costs.devices import peak_of_device
from nemo_longpo.run_log import LOG

from . import loss, topology

_SHOWN = {"loss": "loss", "rewards/margins": "margin", "tokens_per_second": "tokens/s"}


class StepRecord:
    """Appends one JSON object per optimizer step to `path`, on the first rank.

    Keys: `step` (from 1), the names of `Objective.metrics` (means over the global batch's pairs), `lr`, `grad_norm`,
    `tokens_per_second` (trunk and both branches of every pair, and of every short prompt that is read),
    `tflops_per_device` (10¹² FLOPs per second that forward and backward of the pairs need; recompute does not count),
    `mfu` (their share of the device's bf16 peak, only if the peak is known), `memory_gib` (the most that tensors have
    taken on the first rank's GPU so far, 2³⁰ bytes) and `step_seconds`; `skipped` is 1 in the line of a step that was
    left out, and missing in others. After a resume, lines of steps that will be trained again are dropped. The first
    rank says in `status.json` how far it has come.

    Args:
        step: optimizer steps that are done already, by the checkpoint that the run goes on from.
        steps: of the whole run; None if it has no end.
        pairs: in a global batch.
        devices: of the job; a rank has one.
    """

    def __init__(self, path: Path, *, step: int, steps: int | None, pairs: int, devices: int, is_first_rank: bool):
        self.path, self.pairs, self.devices, self.is_first_rank = path, pairs, devices, is_first_rank
        self.status: live_status.StatusFile | None = None
        if not is_first_rank:
            return
        if unreadable := run_directory.keep_steps(path, step):
            LOG.warning(f"{path}: dropped {unreadable} torn or foreign line(s)")
        self.status = live_status.StatusFile(
            run_directory.log_dir_of(path), f"training {path.parent.name}", done=step, total=steps, unit="step"
        )

    def begin_step(self) -> None:
        self._started = time.perf_counter()

    def end_step(
        self, step: int, metrics: dict[str, float], *, lr: float, grad_norm: float, is_skipped: bool
    ) -> dict[str, float]:
        """Write the line of a step and return it; `metrics` are means over its pairs, `loss.WORK` among them."""
        seconds = time.perf_counter() - self._started
        values = dict(metrics)
        tokens, flops = (self.pairs * values.pop(name) for name in loss.WORK)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        record = {
            "step": step,
            **values,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens_per_second": tokens / seconds,
            **compute_speed(flops / seconds / self.devices, device),
            **({} if device is None else {"memory_gib": torch.cuda.max_memory_allocated() / 2**30}),
            "step_seconds": seconds,
            **({"skipped": 1} if is_skipped else {}),
        }
        if self.is_first_rank:
            with explain_full_disk(self.path, run_directory.GOES_ON), self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        if self.status:
            self.status.update(done=step, metrics=record, said=live_status.shown_metrics(record, _SHOWN))
        return record

    def end(self, exception: BaseException | None = None) -> None:
        """Say in the status that the run is over."""
        if self.status:
            self.status.end(exception)


def from_last_stage(names: Sequence[str], metrics: dict[str, Tensor] | None) -> dict[str, float]:
    """Return the metrics, which only the last pipeline stage has, on all stages. All ranks must call it."""
    here = topology.current_topology()
    values = (
        torch.stack([metrics[name] for name in names])
        if metrics
        else torch.zeros(len(names), device=torch.cuda.current_device())
    )
    if here.pp_group.size() > 1:
        dist.broadcast(values, here.pp_last_rank, group=here.pp_group)
    return dict(zip(names, values.tolist(), strict=True))


def compute_speed(flops_per_second: float, device_name: str | None) -> dict[str, float]:
    """Return `tflops_per_device`, and `mfu` if the device's peak is known."""
    peak = None if device_name is None else peak_of_device(device_name)
    speed = {"tflops_per_device": flops_per_second / 1e12}
    return speed if peak is None else speed | {"mfu": flops_per_second / peak}
