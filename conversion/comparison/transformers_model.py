"""A Hugging Face directory in fp32, computed by `transformers`."""

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from nemo_longpo.attention.rope import inverse_frequencies
from nemo_longpo.model_directory.rope_settings import RopeSettings, scaling_settings

from ..model_on_disk import ModelOnDisk
from .logits import Forward


def load(source: ModelOnDisk, rope: RopeSettings | None) -> tuple[torch.nn.Module, Forward]:
    """The model and its forward function; `rope` takes the place of the settings in `config.json`.

    The settings are given to `transformers` as its version wants them: version 4 silently overlooks those in a file of
    version 5. No code of the directory runs, and a pickle is read only where that is allowed, for tensors alone.
    """
    rope = rope or source.config.rope
    config = AutoConfig.from_pretrained(source.path, trust_remote_code=False)
    _set_rope(config, rope)
    model = AutoModelForCausalLM.from_pretrained(
        source.path,
        config=config,
        dtype=torch.float32,
        use_safetensors=None if source.access.allow_pickle else True,
        trust_remote_code=False,
    ).eval()
    computed = model.model.rotary_emb.inv_freq
    expected = inverse_frequencies(rope, source.model_shape.head_size)
    assert torch.allclose(computed, expected), f"transformers {transformers.__version__} has other rotary angles"

    def forward(ids: Tensor) -> tuple[Tensor, Tensor]:
        output = model(ids[None], output_hidden_states=True, use_cache=False)
        return torch.cat(output.hidden_states), output.logits[0]

    return model, forward


def _set_rope(config: transformers.PretrainedConfig, rope: RopeSettings) -> None:
    scaling = scaling_settings(rope.scaling)
    if int(transformers.__version__.split(".")[0]) < 5:
        config.rope_theta, config.rope_scaling = rope.theta, scaling
    else:
        config.rope_parameters = {"rope_type": "default", "rope_theta": rope.theta, **(scaling or {})}
