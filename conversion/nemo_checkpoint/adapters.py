"""LoRA adapters: a NeMo checkpoint of the matrices added to the linear layers of another checkpoint, its base.

An adapted layer computes W x + s B A x with s = alpha / dim (https://arxiv.org/abs/2106.09685), so the one matrix
W + s B A computes the same. W, A and B are those of Megatron's fused layers, stacked over the model's layers.

Shape letters: R rank of the adapters (`dim`), I and O inputs and outputs of a linear layer, L layers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nemo_longpo.checkpoints.forms import NEMO
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.downloads import read_model_json

from ..families.family import Family, Piece
from ..torch_dist import DistCheckpoint

RECORD = "adapter_metadata.json"
"""Inside `weights/`: NeMo writes it beside adapters and nowhere else."""

LORA = "nemo.collections.llm.peft.lora.LoRA"
_KEY = re.compile(re.escape(NEMO.prefix) + r"(?P<layer>.+)\.adapter\.linear_(in|out)\.weight")


@dataclass(frozen=True)
class Adapters:
    """A checkpoint's record of its adapters; `base` is the path of the checkpoint that they were trained on."""

    path: Path
    dim: int
    alpha: float
    base: str

    @classmethod
    def of(cls, path: Path, model: Mapping[str, Any]) -> "Adapters | None":
        """Read the record; None for a checkpoint of whole weights. `model` is the checkpoint's `model.yaml`."""
        record = path / "weights" / RECORD
        if not record.is_file():
            return None
        settings = model.get("model_transform") or {}
        if settings.get("_target_") != LORA:
            found = settings.get("_target_") or "no kind of adapter"
            raise InputError(f"{path / 'context' / 'model.yaml'} names {found}; only {LORA} can be merged")
        return cls(path, settings["dim"], settings["alpha"], str(read_model_json(record).get("model_ckpt_path")))

    def find_base(self, given: Path | None) -> Path:
        """The base checkpoint: `given`, or the recorded one if it is still there."""
        base = given or Path(self.base)
        base = base.parent if base.name == "weights" else base
        if not (base / "weights").is_dir():
            raise InputError(
                f"{self.path} holds LoRA adapters only, and {base} is not the NeMo checkpoint that they were trained "
                "on; pass --base-checkpoint with its directory"
            )
        if (base / "weights" / RECORD).is_file():
            raise InputError(f"{base} holds adapters itself; --base-checkpoint is the checkpoint with whole weights")
        return base

    def merged_into(self, base: DistCheckpoint, family: Family, model_shape: ModelShape) -> "MergedWeights":
        """Raises InputError if a tensor of the adapters belongs to no linear layer of the model, or does not fit it."""
        stored = DistCheckpoint(self.path / "weights")
        shapes = {piece.entry.key: piece.global_shape for piece in family.first_pieces(model_shape)}
        adapted = set()
        for key in stored.tensor_names():
            match = _KEY.fullmatch(key)
            if match and shapes.get(f"{match['layer']}.weight"):
                adapted.add(f"{match['layer']}.weight")
            elif key.startswith(NEMO.prefix):
                raise InputError(f"{stored.directory}: {key} is no LoRA adapter of a linear layer; it cannot be merged")
        for key in adapted:
            *layers, outputs, inputs = shapes[key]
            for name, shape in zip(_sides(key), ([self.dim, inputs], [outputs, self.dim]), strict=True):
                if list(stored.shape(name)) != [*layers, *shape]:
                    raise InputError(
                        f"{stored.directory}: {name} has shape {list(stored.shape(name))}, not {[*layers, *shape]}; "
                        "the adapters are of another model"
                    )
        return MergedWeights(base, stored, frozenset(adapted), self.alpha / self.dim)


@dataclass(frozen=True)
class MergedWeights:
    """The weights of `base`, with `scale` B A added to the tensors called `adapted`."""

    base: DistCheckpoint
    adapters: DistCheckpoint
    adapted: frozenset[str]
    scale: float

    @property
    def whole(self) -> Path:
        """The checkpoint of the whole weights."""
        return self.base.whole

    def piece_dtype(self, piece: Piece) -> torch.dtype:
        return self.base.piece_dtype(piece)

    def parts(self, piece: Piece) -> list[torch.Tensor]:
        """The Hugging Face tensors of a piece, in the base's dtype.

        An adapted piece is fp32: it is rounded once, when it is written.
        """
        key = piece.entry.key
        weight = self.base.read(self.base.key(piece), piece.offsets, piece.sizes).reshape(piece.shape)
        if key in self.adapted:
            a_RI, b_OR = (self._matrix(name, piece) for name in _sides(key))
            weight = weight.float()
            weight.addmm_(b_OR, a_RI, alpha=self.scale)
        return piece.split(weight)

    def _matrix(self, name: str, piece: Piece) -> torch.Tensor:
        """The piece's A or B in fp32."""
        rows, columns = self.adapters.shape(name)[-2:]
        return (
            self.adapters.read(name, piece.offsets, (*piece.sizes[:-2], rows, columns)).reshape(rows, columns).float()
        )


def _sides(key: str) -> tuple[str, str]:
    """Names of A and B of a linear layer's weight in the checkpoint."""
    stem = f"{NEMO.prefix}{key.removesuffix('.weight')}.adapter"
    return f"{stem}.linear_in.weight", f"{stem}.linear_out.weight"
