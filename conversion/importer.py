"""Hugging Face directory → NeMo checkpoint, streaming: no model is built, no GPU and no trainer are needed."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from nemo_longpo.checkpoints import integrity, run_inputs
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.shards.fingerprint import weights_fingerprint
from nemo_longpo.terminal import note

from . import outputs, progress, tensor_values
from .families import name_tables
from .families.family import Family, Piece
from .huggingface import directory, tensor_files
from .huggingface.config import ScalingChoice, for_import
from .huggingface.weights import HfWeights, check_tensors
from .nemo_checkpoint import context, torch_dist


def import_checkpoint(
    model: Path,
    output: Path,
    *,
    rope_theta: float | None = None,
    rope_scaling: ScalingChoice | None = None,
    max_length: int | None = None,
    full_attention: bool = False,
    allow_pickle: bool = False,
    overwrite: bool = False,
    workers: int = progress.DEFAULT_WORKERS,
) -> Path:
    """Convert a Hugging Face directory to a NeMo checkpoint directory (`weights/` and `context/`).

    The weights keep their dtype and bits. A record holds size and hash of every file. Another record names the original
    weights, so that training can check whether they scored its shards. `rope_theta`, `rope_scaling` and `max_length`
    set the policy's rotary base, its scaling and the number of positions; the checkpoint keeps all three, and export
    writes them. A new base with an existing scaling requires `rope_scaling`. Raises InputError, before anything is
    written, if the input cannot be converted.
    """
    outputs.require_apart(output, model)
    outputs.require_free(output, overwrite=overwrite)
    source = directory.HfDirectory.open(model)
    family = name_tables.family_of(source.config)
    config = for_import(
        source.config,
        theta=rope_theta,
        scaling=rope_scaling,
        max_length=max_length,
        full_attention=full_attention,
    )
    source.require_tokenizer()
    model_shape = ModelShape.of(config)
    weights = HfWeights(source, allow_pickle=allow_pickle)
    check_tensors(weights, family, model_shape)
    not_finite = tensor_values.NotFinite()
    chunks = plan_chunks(weights, family, model_shape, not_finite)
    size = sum(chunk.size for chunk in chunks) + outputs.bytes_of(source.companions())
    with (
        progress.Parts(output, f"import of {model.name}") as parts,
        outputs.new_model(output, overwrite=overwrite, size=size) as partial_output,
    ):
        parts.start("describe the model to NeMo")
        _write_context(partial_output / "context", source, config, family, model_shape, weights)
        advance = parts.start("write the weights", sum(chunk.size for chunk in chunks))
        torch_dist.write_checkpoint(
            partial_output / "weights",
            chunks,
            torch_dist.extra_states(model_shape),
            workers=workers,
            advance=advance,
        )
        if any(source.path.glob("*.safetensors")):  # pickles score no shards, so their fingerprint is never needed
            parts.start("name the model by its weights")
            run_inputs.write_origin(partial_output, weights_fingerprint(source.path))
        integrity.write_record(partial_output, parts.start("record the hashes of all files", size))
        parts.start("wait for the disk")
    if not_finite.names:
        note(f"import: {not_finite}")
    return output


def plan_chunks(
    weights: HfWeights, family: Family, model_shape: ModelShape, not_finite: tensor_values.NotFinite
) -> list[torch_dist.Chunk]:
    """One chunk per piece of the model, each read from the Hugging Face files when it is written."""
    return [
        torch_dist.Chunk(
            key=torch_dist.KEY_PREFIX + piece.entry.key,
            global_shape=piece.global_shape,
            offsets=piece.offsets,
            sizes=piece.sizes,
            dtype=tensor_files.TORCH_DTYPES[weights.dtype(piece.names[0])],
            load=partial(_load, weights, piece, not_finite),
        )
        for piece in family.pieces(model_shape)
    ]


def _load(weights: HfWeights, piece: Piece, not_finite: tensor_values.NotFinite) -> torch.Tensor:
    parts = weights.parts(piece)
    for name, part in zip(piece.names, parts, strict=True):
        not_finite.look_at(name, part)
    return piece.join(parts)


def _write_context(
    target: Path,
    source: directory.HfDirectory,
    config: ModelConfig,
    family: Family,
    model_shape: ModelShape,
    weights: HfWeights,
) -> None:
    with TemporaryDirectory() as scratch:
        artifacts = Path(scratch) / context.ARTIFACTS
        artifacts.mkdir()
        source.copy_companions(artifacts)
        if config != source.config:
            directory.write_json(artifacts / "config.json", config.raw)
        listing = weights.listing(family.copies(model_shape))
        context.write_weight_list(artifacts, listing, weights.headers())
        with progress.quiet_libraries():
            context.write_context(target, family, config, model_shape, artifacts)
