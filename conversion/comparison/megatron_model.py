"""A checkpoint in fp32, computed by Megatron: the model that training builds, read by Megatron's own loader."""

from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from megatron.core import dist_checkpointing, transformer
from torch.distributed.checkpoint.api import CheckpointException

from nemo_longpo import logprobs, placement
from nemo_longpo.checkpoints import completeness, forms, trust
from nemo_longpo.errors import InputError
from nemo_longpo.megatron import backend, gpt, job_settings, topology
from nemo_longpo.model_directory.rope_settings import RopeSettings, parse_scaling

from .. import bridge_checkpoint, torch_dist
from ..model_on_disk import ModelOnDisk
from .logits import Forward

WITHIN = "model/"
"""Before the names of what is loaded, which come back among what is common to all ranks."""


def load_megatron(source: ModelOnDisk, rope: RopeSettings | None) -> tuple[torch.nn.Module, Forward]:
    """The model and its forward function; `rope` takes the place of what training would read from the checkpoint."""
    if source.kind == "nemo":
        # Before the redirections: torch.compile at import time trips over them.
        import nemo.collections.llm  # noqa: F401
    started = backend.start_backend()
    topology.become_single_process()
    config, own_rope = _nemo_architecture(source) if source.kind == "nemo" else _bridge_architecture(source)
    rope = rope or own_rope
    config.vocab_size = source.model_shape.vocab
    job_settings.put_one_process_on(config)
    job_settings.complete(started.prepare(config), rope)
    model = gpt.LogprobGPTModel(config, rope, logprobs.LogitBudget(placement.LOGPROB_MEMORY_GB), started).eval()
    _load_weights(model, source)

    states: list[torch.Tensor] = []
    for module in (model.embedding, *model.decoder.layers[:-1], model.decoder.final_layernorm):
        module.register_forward_hook(lambda module, inputs, output: states.append(_hidden(output)))

    def forward(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states.clear()
        logits = model(ids[None], torch.arange(len(ids))[None], None)
        return torch.stack([state[:, 0] for state in states]), logits[0].float().contiguous()

    return model, forward


def _nemo_architecture(source: ModelOnDisk) -> tuple[Any, RopeSettings]:
    """What training with NeMo builds of the checkpoint's record."""
    from nemo_longpo.nemo import resume

    config = resume.load_architecture(source.path, source.access.trust_checkpoint)
    return config, RopeSettings(
        config.rotary_base, parse_scaling(resume.load_rope_scaling(source.path), str(source.path))
    )


@dataclass(kw_only=True)
class _GptConfig(transformer.TransformerConfig):
    """The fields that a GPT has beside those of its layers, as NeMo and Megatron-Bridge name them."""

    vocab_size: int = 0
    seq_length: int = 0
    share_embeddings_and_output_weights: bool = False
    position_embedding_type: str = "rope"
    scatter_embedding_sequence_parallel: bool = True


def _bridge_architecture(source: ModelOnDisk) -> tuple[_GptConfig, RopeSettings]:
    """What an import records for Bridge, without Bridge: nothing is built of what the checkpoint itself names."""
    known = {field.name for field in fields(_GptConfig)}
    recorded = bridge_checkpoint.provider_fields(source.family, source.config, source.model_shape)
    plain = {name: value for name, value in recorded.items() if name in known and not isinstance(value, dict)}
    fixed = {
        "activation_func": torch.nn.functional.silu,
        "position_embedding_type": "rope",
        "bf16": False,
        "fp16": False,
    }
    return _GptConfig(**(plain | fixed)), source.config.rope


def _for_every_version(weights: Path, scratch: Path) -> Path:
    """A directory that every version of Megatron-Core loads: those before 0.19 want a file of what is no tensor."""
    if (weights / completeness.COMMON_FILE).exists():
        return weights
    for path in weights.iterdir():
        (scratch / path.name).symlink_to(path.resolve())
    torch.save(torch_dist.CONTENT, scratch / completeness.COMMON_FILE)
    return scratch


def _load_weights(model: gpt.LogprobGPTModel, source: ModelOnDisk) -> None:
    """Load as training does, and merge adapters. Raises InputError if training could not start from the checkpoint."""
    form = forms.form_of(source.weights.whole) or forms.NEMO
    directory = source.weights.whole / form.weights
    if not source.access.trust_checkpoint:
        trust.check_weights(directory)
    wanted = {f"{WITHIN}{key}": value for key, value in model.sharded_state_dict(prefix=form.prefix).items()}
    try:
        with TemporaryDirectory() as scratch:
            loaded = dist_checkpointing.load(wanted, str(_for_every_version(directory, Path(scratch))))
    except CheckpointException as error:
        (reason, _), *_ = error.failures.values()
        raise InputError(f"Megatron does not load {directory}, nor would training: {reason}") from error
    start = WITHIN + form.prefix
    model.load_state_dict({key.removeprefix(start): value for key, value in loaded.items() if key.startswith(start)})
    for piece in source.family.pieces(source.model_shape):
        if piece.entry.key in source.weights.adapted:  # the linear layers, whose names are those of the checkpoint
            name = piece.entry.key.replace("layers.", f"layers.{piece.layer}.")
            model.get_parameter(name).data.copy_(piece.join(source.weights.parts(piece)))


def _hidden(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """[S, 1, H]; a layer also returns the context of cross-attention."""
    return output if isinstance(output, torch.Tensor) else output[0]
