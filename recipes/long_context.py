"""The 7B recipes: Mistral-7B-Instruct-v0.2 and Qwen2.5-7B-Instruct at 128K to 512K tokens, on GPUs of 80 GB.

All train with the paper's constants, which are the base's; they differ in length and in their place on the GPUs. Both
models divide by the same sizes (32 and 28 heads, 8 and 4 of them for keys and values), so both take the same places.
"""

from dataclasses import replace

import nemo_run as run
from nemo.collections import llm

from .base import Placement, longpo_recipe

K = 1024
BRANCH_TOKENS = 8 * K  # room for the longer answer branch behind a document of the full length

# Tensor parallelism stays inside a node and splits the weights, context parallelism spans the rest and splits the pair.
ONE_NODE = Placement(devices=8, tensor_model_parallel_size=4, context_parallel_size=2)
TWO_NODES = Placement(num_nodes=2, devices=8, tensor_model_parallel_size=4, context_parallel_size=4)


def _recipe(length: int, placement: Placement) -> run.Partial:
    """Up to 256K tokens the feed-forward part of each layer is recomputed, beyond them the whole layer."""
    recompute = (
        replace(placement, recompute_granularity="selective", recompute_modules=("mlp",))
        if length <= 256 * K
        else replace(placement, recompute_granularity="full")
    )
    return longpo_recipe(seq_length=length + BRANCH_TOKENS, placement=recompute)


@run.cli.factory(target=llm.finetune, name="mistral_7b_longpo_128k")
def mistral_7b_longpo_128k() -> run.Partial:
    """Mistral-7B at 128K tokens on 8 GPUs of 80 GB."""
    return _recipe(128 * K, ONE_NODE)


@run.cli.factory(target=llm.finetune, name="mistral_7b_longpo_256k")
def mistral_7b_longpo_256k() -> run.Partial:
    """Mistral-7B at 256K tokens on 16 GPUs of 80 GB."""
    return _recipe(256 * K, TWO_NODES)


@run.cli.factory(target=llm.finetune, name="mistral_7b_longpo_512k")
def mistral_7b_longpo_512k() -> run.Partial:
    """Mistral-7B at 512K tokens on 16 GPUs of 80 GB."""
    return _recipe(512 * K, TWO_NODES)


@run.cli.factory(target=llm.finetune, name="mistral_7b_longpo_512k_one_node")
def mistral_7b_longpo_512k_one_node() -> run.Partial:
    """Mistral-7B at 512K tokens on 8 GPUs of 80 GB, half of what the paper used."""
    return _recipe(512 * K, ONE_NODE)


@run.cli.factory(target=llm.finetune, name="qwen25_7b_longpo_128k")
def qwen25_7b_longpo_128k() -> run.Partial:
    """Qwen2.5-7B at 128K tokens on 8 GPUs of 80 GB."""
    return _recipe(128 * K, ONE_NODE)


@run.cli.factory(target=llm.finetune, name="qwen25_7b_longpo_512k")
def qwen25_7b_longpo_512k() -> run.Partial:
    """Qwen2.5-7B at 512K tokens on 16 GPUs of 80 GB."""
    return _recipe(512 * K, TWO_NODES)
