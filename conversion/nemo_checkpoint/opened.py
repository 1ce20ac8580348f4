"""A NeMo checkpoint as Hugging Face would describe it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_longpo.checkpoints import integrity
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.model_directory.rope_settings import parse_scaling

from ..families.family import Family
from ..families.known import family_of
from ..huggingface.config import check_supported, with_rope_scaling, with_rope_theta
from ..huggingface.directory import HfDirectory
from .adapters import Adapters, MergedWeights
from .context import read_model
from .names import KEY_PREFIX
from .stock import StockOrigin, stock_origin, tokenizer_directory
from .torch_dist_reader import DistCheckpoint


@dataclass(frozen=True)
class NemoCheckpoint:
    """Read access to a checkpoint that `longpo convert import` or stock NeMo made, or one trained from it under any
    parallel sizes.

    `origin` is the directory whose small files describe the imported model; `config` is its `config.json` with the
    rotary base and scaling of training.
    """

    path: Path
    origin: HfDirectory
    config: ModelConfig
    family: Family
    model_shape: ModelShape
    weights: DistCheckpoint | MergedWeights

    @classmethod
    def open(
        cls,
        path: Path,
        base: Path | None = None,
        base_checkpoint: Path | None = None,
        *,
        check_hashes: bool = False,
    ) -> "NemoCheckpoint":
        """`base` is a Hugging Face directory to take the small files from, instead of those in the checkpoint;
        `base_checkpoint` is where the checkpoint that LoRA adapters were trained on lies, if it was moved.

        Both checkpoints are held to the record of their files: sizes, and hashes if they are asked for.
        """
        integrity.check(path, hashes=check_hashes)
        model = read_model(path / "context")
        adapters = Adapters.of(path, model)
        if base_checkpoint and not adapters:
            raise InputError(f"{path} holds whole weights; --base-checkpoint is for checkpoints of LoRA adapters")
        whole = adapters.find_base(base_checkpoint) if adapters else path
        if adapters:
            integrity.check(whole, hashes=check_hashes)
        weights = DistCheckpoint(whole / "weights")
        origin = HfDirectory.open(base) if base else _kept(path / "context", model, weights)
        if not isinstance(origin, StockOrigin):
            check_supported(origin.config)
        config = _as_trained(origin.config, model)
        family, model_shape = family_of(config), ModelShape.of(config)
        _check_tensors(weights, family, model_shape, Path(config.file).name)
        merged = adapters.merged_into(weights, family, model_shape) if adapters else weights
        return cls(path, origin, config, family, model_shape, merged)


def _kept(context: Path, model: Mapping[str, Any], weights: DistCheckpoint) -> HfDirectory:
    """The imported model's files travel as those of its tokenizer; a stock checkpoint has those of a tokenizer only."""
    tokenizer = tokenizer_directory(context, model)
    if tokenizer is not None and (tokenizer / "config.json").is_file():
        return HfDirectory.open(tokenizer)
    return stock_origin(context, model, weights)


def _as_trained(config: ModelConfig, model: Mapping[str, Any]) -> ModelConfig:
    changed = with_rope_theta(config, model["config"]["rotary_base"])
    # Our training records the scaling; a checkpoint that was only imported has that of its config.json.
    if "rope_scaling" in model and parse_scaling(model["rope_scaling"], config.file) != config.scaling:
        changed = with_rope_scaling(changed, model["rope_scaling"])
    return changed


def _check_tensors(weights: DistCheckpoint, family: Family, model_shape: ModelShape, file: str) -> None:
    """The checkpoint is of this architecture. Vocabulary rows may exceed the model's: tensor parallelism pads them."""
    pieces = {KEY_PREFIX + piece.entry.key: piece for piece in family.first_pieces(model_shape)}
    for key, piece in pieces.items():
        found, expected = weights.shape(key), piece.global_shape
        padded = piece.entry.is_vocabulary and found[1:] == expected[1:] and found[0] >= expected[0]
        if found != expected and not padded:
            raise InputError(
                f"{weights.directory}: {key} has shape {list(found)}, the model's {file} says "
                f"{list(expected)}; the checkpoint is of another model"
            )
    extra = sorted(name for name in weights.tensor_names() if name.startswith(KEY_PREFIX) and name not in pieces)
    if extra:
        others = f" and {len(extra) - 1} others" if extra[1:] else ""
        raise InputError(
            f"{weights.directory}: there is no place in {family.architecture} for tensor {extra[0]}{others}"
        )
