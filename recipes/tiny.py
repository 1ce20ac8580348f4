"""`tiny_longpo`: train any small imported checkpoint, on a laptop or on one GPU."""

import nemo_run as run
from nemo.collections import llm

from .base import Precision, longpo_recipe


@run.cli.factory(target=llm.finetune, name="tiny_longpo")
def tiny_longpo(precision: Precision = "32") -> run.Partial:
    """LongPO for small Mistral, Qwen2.5 and Llama 3 checkpoints; runs without a GPU.

    `precision` is that of weights, activations and optimizer together: `--factory "tiny_longpo(precision=bf16-mixed)"`.
    """
    return longpo_recipe(
        seq_length=8192,
        precision=precision,
        global_batch_size=4,
        learning_rate=1e-4,
        warmup_ratio=0.0,
    )
