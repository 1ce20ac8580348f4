"""What the `nemo` command loads: importing a factory registers it."""

import os

from nemo_run.core.frontend.console.api import CONSOLE

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

if os.environ.get("LOCAL_RANK", "0") != "0":
    # Lightning starts the same command line again for every rank of a machine; the first has shown the configuration.
    CONSOLE.quiet = True
