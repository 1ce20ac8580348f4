"""What `transformers` takes for a field that a `config.json` does not name."""

from collections.abc import Mapping
from typing import Any

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "llama": {},
}
"""By `model_type`, as far as they are not null and change what is computed."""


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which every field that changes what is computed has a value, if its model is one of those above."""
    return {**DEFAULTS.get(str(config.get("model_type")), {}), **config}
