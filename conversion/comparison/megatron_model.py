"""A NeMo checkpoint in fp32, computed by Megatron: the model that training builds, read by Megatron's own loader."""

from itertools import chain

import nemo.collections.llm  # noqa: F401  (before the redirections: torch.compile at import time trips over them)
import torch
from megatron.core import dist_checkpointing
from torch.distributed.checkpoint.api import CheckpointException

from nemo_longpo import logprobs, placement
from nemo_longpo.checkpoints.forms import NEMO
from nemo_longpo.checkpoints.trust import check_weights
from nemo_longpo.errors import InputError
from nemo_longpo.megatron import backend, gpt, job_settings, topology
from nemo_longpo.model_directory.rope_settings import RopeSettings, parse_scaling
from nemo_longpo.nemo import resume

from ..model_on_disk import ModelOnDisk
from .logits import Forward


def load_megatron(source: ModelOnDisk, rope: RopeSettings | None) -> tuple[torch.nn.Module, Forward]:
    """The model and its forward function; `rope` takes the place of what training would read from the checkpoint."""
    started = backend.start_backend()
    topology.become_single_process()
    config = resume.load_architecture(source.path, source.access.trust_checkpoint)
    scaling = parse_scaling(resume.load_rope_scaling(source.path), str(source.path))
    rope = rope or RopeSettings(config.rotary_base, scaling)
    config.vocab_size = source.model_shape.vocab
    job_settings.put_one_process_on(config)
    job_settings.complete(started.prepare(config), rope)
    model = gpt.LogprobGPTModel(config, rope, logprobs.LogitBudget(placement.LOGPROB_MEMORY_GB), started).eval()
    _load_weights(model, source)

    states: list[torch.Tensor] = []
    for module in chain([model.embedding], model.decoder.layers[:-1], [model.decoder.final_layernorm]):
        module.register_forward_hook(lambda module, inputs, output: states.append(_hidden(output)))

    def forward(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states.clear()
        logits = model(ids[None], torch.arange(len(ids))[None], None)
        return torch.stack([state[:, 0] for state in states]), logits[0].float().contiguous()

    return model, forward


def _load_weights(model: gpt.LogprobGPTModel, source: ModelOnDisk) -> None:
    """Load as training does, and merge adapters. Raises InputError if training could not start from the checkpoint."""
    directory = source.weights.whole / NEMO.weights
    if not source.access.trust_checkpoint:
        check_weights(directory)
    try:
        loaded = dist_checkpointing.load(model.sharded_state_dict(prefix=NEMO.prefix), str(directory))
    except CheckpointException as error:
        (reason, _), *_ = error.failures.values()
        raise InputError(f"Megatron does not load {directory}, nor would training: {reason}") from error
    names = (name for name in loaded if name.startswith(NEMO.prefix))
    model.load_state_dict({name.removeprefix(NEMO.prefix): loaded[name] for name in names})
    for piece in source.family.pieces(source.model_shape):
        if piece.entry.key in source.weights.adapted:  # the linear layers, whose names are those of the checkpoint
            name = piece.entry.key.replace("layers.", f"layers.{piece.layer}.")
            model.get_parameter(name).data.copy_(piece.join(source.weights.parts(piece)))


def _hidden(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """[S, 1, H]; a layer also returns the context of cross-attention."""
    return output if isinstance(output, torch.Tensor) else output[0]
