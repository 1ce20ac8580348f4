"""What rounds will cost: GPU hours of training, by the estimate of `longpo plan`, and disk."""

from dataclasses import dataclass
from typing import Any

from nemo_longpo.costs import devices, model_shape
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.placement import GLOBAL_BATCH_SIZE, TYPICAL_BRANCH
from nemo_longpo.planning import job, search, speed

from .evolution_settings import Evolution, Round

CHECKPOINT_BYTES = {2: 14, 4: 12}
"""Of a training checkpoint per parameter, by the bytes of a weight: with the optimizer's averages, and its fp32 weights
where the weights themselves are none."""
_CHECKPOINTS = 2  # the newest complete one, and the one that is being written
_DTYPE_BYTES = {"float32": 4}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of one round. `gpu_hours` is None without hardware, or if the job does not fit it; then `why` says so."""

    number: int
    steps: int
    gpu_hours: float | None
    disk_bytes: int
    why: str = ""

    def line(self) -> str:
        hours = f"about {self.gpu_hours:,.1f} GPU hours" if self.gpu_hours is not None else self.why
        return (
            f"round {self.number}: {self.steps:,} training steps, {hours}; at most {self.disk_bytes / 1e9:,.3g} GB of "
            "disk for the imported model, two checkpoints and the exported model"
        )


def forecast(evolution: Evolution) -> list[Forecast]:
    """Estimate every round. Raises InputError if the base model's sizes cannot be read, or the GPU is not known."""
    shape = model_shape.load_shape(str(evolution.base))
    size = _DTYPE_BYTES.get(ModelConfig.read(evolution.base).stored_dtype, 2)
    disk = shape.parameters * (2 * size + _CHECKPOINTS * CHECKPOINT_BYTES[size])
    return [_round(evolution, own, shape, disk) for own in evolution.rounds]


def _round(evolution: Evolution, own: Round, shape: model_shape.ModelShape, disk: int) -> Forecast:
    steps = own.train.settings["trainer.max_steps"]
    told: dict[str, Any] = {"number": own.number, "steps": steps, "disk_bytes": disk}
    hardware = evolution.hardware
    if hardware is None:
        return Forecast(**told, gpu_hours=None, why="GPU hours unknown without 'hardware'")
    if own.train.settings.get("model.objective.loss_type") == "solopo":
        why = "GPU hours unknown where short prompts are trained on too (`longpo plan --short-tokens` estimates them)"
        return Forecast(**told, gpu_hours=None, why=why)
    branch = min(TYPICAL_BRANCH, own.max_length - own.length)
    pairs = own.train.settings.get("data.global_batch_size", GLOBAL_BATCH_SIZE)
    trained = job.Job(shape=shape, trunk=own.length, chosen=branch, rejected=branch, pairs=pairs)
    machine = speed.Machine(devices.find_gpu(hardware.gpu), hardware.gpus, hardware.gpus_per_node)
    found = search.search(trained, machine, search.Wishes())
    if not found.candidates:
        return Forecast(
            **told,
            gpu_hours=None,
            why=f"which do not fit {hardware.gpus} x {hardware.gpu} by the formulas of `longpo plan`",
        )
    return Forecast(**told, gpu_hours=steps * found.candidates[0].speed.seconds * hardware.gpus / 3600)
