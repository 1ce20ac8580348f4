"""Names for `nemo llm finetune --factory NAME`, and `peft=lora`. The `nemo` command imports this file to find them.

The 7B recipes train Mistral-7B-Instruct-v0.2 and Qwen2.5-7B-Instruct at 128K to 512K tokens on GPUs of 80 GB. They
have the paper's constants, and differ in length and in their placement. Both models divide by the same sizes (32 and 28
heads, 8 and 4 of them for keys and values), so both take the same placements.
"""

import os
from collections.abc import Callable
from typing import Optional

import nemo_run as run
from nemo.collections import llm
from nemo.lightning.pytorch.callbacks import PEFT
from nemo_run.core.frontend.console.api import CONSOLE

from nemo_longpo.placement import LONGEST_BRANCH, Placement, Precision

from .base import longpo_recipe

if os.environ.get("LOCAL_RANK", "0") != "0":
    # Lightning starts the same command line again for every rank of a machine; the first has shown the configuration.
    CONSOLE.quiet = True

K = 1024
LINEAR_LAYERS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")

# Tensor parallelism stays inside a node and splits the weights, context parallelism spans the rest and splits the pair.
ONE_NODE = Placement(tp=4, cp=2)
TWO_NODES = Placement(tp=4, cp=4)

RECIPES: dict[str, Callable[..., run.Partial]] = {}


def recipe(function: Callable[..., run.Partial]) -> Callable[..., run.Partial]:
    """Offer a recipe under its function's name."""
    RECIPES[function.__name__] = run.cli.factory(target=llm.finetune, name=function.__name__)(function)
    return RECIPES[function.__name__]


def _long(length: int, placement: Placement) -> run.Partial:
    """Recompute the feed-forward part of each layer up to 256K tokens, whole layers beyond them.

    A process of its own reads the next pairs of a rank and lays them out, beside the training.
    """
    recomputing = placement.recomputing("mlp" if length <= 256 * K else "full")
    return longpo_recipe(seq_length=length + LONGEST_BRANCH, placement=recomputing, data_workers=1)


@recipe
def mistral_7b_longpo_128k() -> run.Partial:
    """Mistral-7B at 128K tokens on 8 GPUs of 80 GB."""
    return _long(128 * K, ONE_NODE)


@recipe
def mistral_7b_longpo_256k() -> run.Partial:
    """Mistral-7B at 256K tokens on 16 GPUs of 80 GB."""
    return _long(256 * K, TWO_NODES)


@recipe
def mistral_7b_longpo_512k() -> run.Partial:
    """Mistral-7B at 512K tokens on 16 GPUs of 80 GB."""
    return _long(512 * K, TWO_NODES)


@recipe
def mistral_7b_longpo_512k_one_node() -> run.Partial:
    """Mistral-7B at 512K tokens on 8 GPUs of 80 GB, half of what the paper used."""
    return _long(512 * K, ONE_NODE)


@recipe
def qwen25_7b_longpo_128k() -> run.Partial:
    """Qwen2.5-7B at 128K tokens on 8 GPUs of 80 GB."""
    return _long(128 * K, ONE_NODE)


@recipe
def qwen25_7b_longpo_512k() -> run.Partial:
    """Qwen2.5-7B at 512K tokens on 16 GPUs of 80 GB."""
    return _long(512 * K, TWO_NODES)


@recipe
def longpo(precision: Precision = "bf16-mixed") -> run.Partial:
    """LongPO with the paper's constants for any model, length and GPUs: `longpo plan --recipe` writes the rest."""
    return longpo_recipe(seq_length=8 * K, precision=precision)


@recipe
def tiny_longpo(precision: Precision = "32") -> run.Partial:
    """LongPO for small Mistral, Qwen2.5 and Llama 3 checkpoints; runs without a GPU.

    `precision` is that of weights, activations and optimizer together: `--factory "tiny_longpo(precision=bf16-mixed)"`.
    """
    return longpo_recipe(
        seq_length=8 * K, precision=precision, global_batch_size=4, learning_rate=1e-4, warmup_ratio=0.0
    )


@run.cli.factory(target=PEFT, name="lora")
def lora(
    dim: int = 32,
    alpha: int = 32,
    target_modules: Optional[list[str]] = None,  # noqa: UP045 (NeMo-Run's parser knows no `|`)
) -> run.Config[llm.peft.LoRA]:
    """Adapters of rank `dim`, scaled by alpha / dim, on all linear layers of the decoder or on those named."""
    return run.Config(llm.peft.LoRA, dim=dim, alpha=alpha, target_modules=list(target_modules or LINEAR_LAYERS))
