"""Load a Hugging Face model for inference, with its own RoPE base or another one, by transformers 4 or 5."""

from pathlib import Path
from typing import Any

import torch
import transformers

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(directory: str | Path, dtype: str, rope_theta: float | None) -> Any:
    """Return the Hugging Face model in a directory, for inference; "auto" and None keep its dtype and RoPE base.

    Raises InputError if it cannot be loaded.
    """
    ModelConfig.read(directory)
    try:
        config = transformers.AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        _adopt_rope_parameters(config)
        if rope_theta is not None:
            set_rope_theta(config, rope_theta)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(directory), config=config, dtype=DTYPES.get(dtype, "auto"), local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{directory} cannot be loaded as a language model ({error}); check the files") from error
    return model.eval()


def _adopt_rope_parameters(config: Any) -> None:
    """Copy the RoPE settings of a `config.json` of version 5 to where transformers 4 reads them; it ignores others."""
    parameters = getattr(config, "rope_parameters", None)
    if parameters is None or not transformers.__version__.startswith("4."):
        return
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    config.rope_theta, config.rope_parameters = parameters["rope_theta"], None
    config.rope_scaling = None if scaling.get("rope_type", "default") == "default" else scaling


def set_rope_theta(config: Any, rope_theta: float) -> None:
    """Change the RoPE base of a Hugging Face configuration, where transformers 4 or 5 keeps it."""
    parameters = getattr(config, "rope_parameters", None)
    if parameters is None:
        config.rope_theta = rope_theta
    else:
        parameters["rope_theta"] = rope_theta
