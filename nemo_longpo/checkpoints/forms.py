"""The forms of a checkpoint: how each trainer lays out the same model in files.

Both keep the tensors in Megatron's `torch_dist` format, under the same names but for a prefix, and stacked over the
layers. What differs is where they lie, and what describes the model:

    NeMo 2                                  Megatron-Bridge
    global_step=4/weights/*.distcp          iter_0000004/*.distcp
    global_step=4/weights/.metadata         iter_0000004/.metadata
    global_step=4/weights/common.pt         iter_0000004/common.pt, or an object among the tensors (Megatron-Core 0.19)
    global_step=4/context/model.yaml        iter_0000004/run_config.yaml
    global_step=4/context/hf/               iter_0000004/hf/

`hf/` holds the small files of the Hugging Face model, `config.json` and the tokenizer's among them. NeMo carries it
into every checkpoint as its tokenizer's directory; training in Bridge does so with `carry_small_files`. Bridge would
put a model there that it exports itself (`checkpoint.also_save_hf_checkpoint`), with small files of the same names.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from nemo_longpo.trainers import TrainerName

SMALL_FILES = "hf"
"""Last component of the directory with the small files of the Hugging Face model."""


@dataclass(frozen=True, kw_only=True)
class CheckpointForm:
    """How a trainer lays out a checkpoint. Places are relative to the checkpoint.

    `weights`: directory of the tensors. `parts`: files of every complete checkpoint, beside those with the tensors.
    `prefix`: what the model's tensors are called by before Megatron's own names. `notes`: directory of what we record
    of the checkpoint, which training does not carry along. `transformers`: the major version of that library beside
    the trainer. `last`: the file that the trainer writes last.
    """

    trainer: TrainerName
    title: str
    weights: str
    parts: tuple[str, ...]
    prefix: str
    small_files: str
    notes: str
    transformers: int
    last: str | None = None


NEMO = CheckpointForm(
    trainer="nemo",
    title="NeMo checkpoint",
    weights="weights",
    parts=(
        *("weights/.metadata", "weights/metadata.json", "weights/common.pt"),
        *("context/io.json", "context/model.yaml"),
    ),
    prefix="module.",  # NeMo's LightningModule holds the Megatron model as `module`
    small_files=f"context/{SMALL_FILES}",
    notes="context",
    transformers=4,
)

RUN_CONFIG = "run_config.yaml"
BRIDGE = CheckpointForm(
    trainer="bridge",
    title="Megatron-Bridge checkpoint",
    weights="",
    parts=(".metadata", "metadata.json", "train_state.pt", RUN_CONFIG),
    prefix="",
    small_files=SMALL_FILES,
    notes="",
    transformers=5,
    last=RUN_CONFIG,
)

TRACKERS = ("latest_train_state.pt", "latest_checkpointed_iteration.txt")
"""Beside Bridge's checkpoints, naming the newest; wrong after one is copied or removed."""

_ITERATION = re.compile(r"iter_\d+")


def iteration_name(iteration: int) -> str:
    """Bridge's name of the directory of a checkpoint."""
    return f"iter_{iteration:07d}"


def form_of(directory: Path) -> CheckpointForm | None:
    """Return the form of a checkpoint, complete or not; None for what is no checkpoint."""
    if any((directory / name).is_dir() for name in ("weights", "context")):
        return NEMO
    tensors = any((directory / name).is_file() for name in (".metadata", "metadata.json", "train_state.pt"))
    if tensors and (directory / RUN_CONFIG).is_file():
        return BRIDGE
    if _ITERATION.fullmatch(directory.name) and (tensors or any(directory.glob("*.distcp"))):
        return BRIDGE
    return None


def small_files_of(checkpoint: Path) -> Path:
    """Return the directory of a checkpoint's small Hugging Face files, there or not."""
    form = form_of(checkpoint)
    return checkpoint / (form.small_files if form else SMALL_FILES)


def carry_small_files(start: Path, checkpoint: Path) -> bool:
    """Copy the small Hugging Face files of what a run started from into a checkpoint that it has saved.

    `start` is another checkpoint, or a Hugging Face directory. Files of the same names are replaced. Returns whether
    there were any.
    """
    is_model = form_of(start) is None and (start / "config.json").is_file()
    source = start if is_model else small_files_of(start)
    files = [path for path in source.iterdir() if _is_small(path)] if source.is_dir() else []
    place = small_files_of(checkpoint)
    for path in files:
        place.mkdir(exist_ok=True)
        shutil.copyfile(path, place / path.name)
    return bool(files)


def _is_small(path: Path) -> bool:
    return path.is_file() and path.name.endswith(_SMALL) and not path.name.endswith(".index.json")


_SMALL = (".json", ".model", ".txt", ".jinja")
