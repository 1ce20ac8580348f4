"""What rounds will cost: GPU hours, of training by the estimate of `longpo plan`, and disk. All are estimates."""

from dataclasses import dataclass, field

from nemo_longpo.costs import answering, devices, model_shape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.placement import TYPICAL_BRANCH
from nemo_longpo.planning import job, search, speed

from . import asking
from .evolution_settings import Evolution, Hardware, Round

CHECKPOINT_BYTES = {2: 14, 4: 12}
"""Of a training checkpoint per parameter, by the bytes of a weight: with the optimizer's averages, and its fp32 weights
where the weights themselves are none."""
_CHECKPOINTS = 2  # the newest complete one, and the one that is being written
_DTYPE_BYTES = {"float32": 4}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of one round. GPU hours are None without hardware, or where the work does not fit it; then `why` says so.

    Data are made for as many documents as training reads, as if no pair were filtered out. `not_counted` are benchmarks
    whose lengths are those of their documents.
    """

    number: int
    steps: int
    documents: int
    data_gpu_hours: float | None
    gpu_hours: float | None
    evaluation_gpu_hours: float | None
    data_bytes: int
    disk_bytes: int
    not_counted: list[str] = field(default_factory=list)
    why: str = ""

    def lines(self) -> list[str]:
        rest = f", without {len(self.not_counted)} whose documents say how long they are" if self.not_counted else ""
        name = f"round {self.number}"
        return [
            f"{name}, data: {self.documents:,} documents, {_hours(self.data_gpu_hours)}, about "
            f"{self.data_bytes / 1e9:,.3g} GB of disk",
            f"{name}, training: "
            f"{self.steps:,} steps, {_hours(self.gpu_hours)}; at most {self.disk_bytes / 1e9:,.3g} GB "
            "of disk for the imported model, two checkpoints and the exported model",
            f"{name}, evaluation: {_hours(self.evaluation_gpu_hours)} for benchmarks of stated lengths{rest}",
            *([f"{name}: {self.why}"] if self.why else []),
        ]


def _hours(value: float | None) -> str:
    return "GPU hours unknown" if value is None else f"about {value:,.1f} GPU hours"


def forecast(evolution: Evolution) -> list[Forecast]:
    """Estimate every round. Raises InputError if the base model's sizes cannot be read, or the GPU is not known."""
    shape = model_shape.load_shape(str(evolution.base))
    size = _DTYPE_BYTES.get(ModelConfig.read(evolution.base).stored_dtype, 2)
    disk = shape.parameters * (2 * size + _CHECKPOINTS * CHECKPOINT_BYTES[size])
    return [_round(evolution, own, shape, disk) for own in evolution.rounds]


def _round(evolution: Evolution, own: Round, shape: model_shape.ModelShape, disk: int) -> Forecast:
    steps = own.train.settings[own.train.command.steps]
    documents = steps * own.train.command.batch_size(own.train.settings)
    evaluation, not_counted = asking.evaluation_requests(own, models=2)
    found: dict[str, float | None] = dict.fromkeys(("data_gpu_hours", "gpu_hours", "evaluation_gpu_hours"))
    why = ["give 'hardware' for GPU hours"] if evolution.hardware is None else []
    if evolution.hardware is not None:
        machine = answering.Machine(gpu=devices.find_gpu(evolution.hardware.gpu), gpus=evolution.hardware.gpus)
        for name, requests in (
            ("data_gpu_hours", asking.data_requests(own, documents)),
            ("evaluation_gpu_hours", evaluation),
        ):
            try:
                found[name] = asking.gpu_hours(requests, machine, shape)
            except InputError as error:
                why.append(str(error).partition(";")[0])
        found["gpu_hours"], problem = _training_hours(own, evolution.hardware, shape, steps)
        why += [problem] if problem else []
    return Forecast(
        number=own.number,
        steps=steps,
        documents=documents,
        **found,
        data_bytes=asking.data_bytes(own, documents),
        disk_bytes=disk,
        not_counted=not_counted,
        why="; ".join(dict.fromkeys(why)),
    )


def _training_hours(
    own: Round, hardware: Hardware, shape: model_shape.ModelShape, steps: int
) -> tuple[float | None, str]:
    """Return GPU hours by the best placement, or None and why there are none."""
    if own.train.settings.get("model.objective.loss_type") == "solopo":
        return None, "where short prompts are trained on too, `longpo plan --short-tokens` estimates the training"
    branch = min(TYPICAL_BRANCH, own.max_length - own.length)
    pairs = own.train.command.batch_size(own.train.settings)
    trained = job.Job(shape=shape, trunk=own.length, chosen=branch, rejected=branch, pairs=pairs)
    machine = speed.Machine(devices.find_gpu(hardware.gpu), hardware.gpus, hardware.gpus_per_node)
    found = search.search(trained, machine, search.Wishes())
    if not found.candidates:
        return None, f"training does not fit {hardware.gpus} x {hardware.gpu} by the formulas of `longpo plan`"
    return steps * found.candidates[0].speed.seconds * hardware.gpus / 3600, ""
