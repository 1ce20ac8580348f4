"""`peft=lora`: NeMo's own LoRA for any recipe."""

from typing import Optional

import nemo_run as run
from nemo.collections import llm
from nemo.lightning.pytorch.callbacks import PEFT

LINEAR_LAYERS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")


@run.cli.factory(target=PEFT, name="lora")
def lora(
    dim: int = 32,
    alpha: int = 32,
    target_modules: Optional[list[str]] = None,  # noqa: UP045 (NeMo-Run's parser knows no `|`)
) -> run.Config[llm.peft.LoRA]:
    """Adapters of rank `dim`, scaled by alpha / dim, on all linear layers of the decoder or on those named."""
    return run.Config(llm.peft.LoRA, dim=dim, alpha=alpha, target_modules=list(target_modules or LINEAR_LAYERS))
