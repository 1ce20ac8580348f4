"""What the `nemo` command loads: importing a factory registers it."""

from .long_context import (
    mistral_7b_longpo_128k,
    mistral_7b_longpo_256k,
    mistral_7b_longpo_512k,
    mistral_7b_longpo_512k_one_node,
    qwen25_7b_longpo_128k,
    qwen25_7b_longpo_512k,
)
from .lora import lora
from .tiny import tiny_longpo

__all__ = ["RECIPES", "lora", "tiny_longpo"]

RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        mistral_7b_longpo_128k,
        mistral_7b_longpo_256k,
        mistral_7b_longpo_512k,
        mistral_7b_longpo_512k_one_node,
        qwen25_7b_longpo_128k,
        qwen25_7b_longpo_512k,
        tiny_longpo,
    )
}
