"""Differences between Megatron-Core 0.15 and 0.19 that this room meets, each with the version that brought it.

Only this file of the room asks which of them is installed; it looks at signatures, because images carry builds between
versions.
Where one way of calling serves all versions, the code takes it, and the difference is only listed here:

- 0.16: `TransformerLayer` hands `padding_mask`, of experts, to its feed-forward part. `TiledMLP` takes and drops it.
- 0.16: `TEDotProductAttention.forward` has `num_splits`, which attention passes in inference alone; `TEPairAttention`
  leaves it at its default.
- 0.18: full recompute is a function that `TransformerBlock.forward` calls (megatron/core/recompute.py). Until 0.17 it
  was a method, and an override of it would silently not be called any more. `FrugalBlock` overrides `forward`.
- 0.18: `GPTModel.forward` has `output_processor`, which gets hidden states, labels, output layer and shared weight. The
  override of `_postprocess` gets the same in every version, so `LogprobGPTModel` needs no second way for later ones.
- 0.19: `GPTModel` logs that it is deprecated; it trains as before.

What NeMo calls as in 0.15 is mended in `nemo_longpo.nemo.core_versions`, CUDA calls in `nemo_longpo.backends`.
"""

import inspect
from typing import Any

from megatron.core.models.gpt import GPTModel


def preprocessed(decoder_input: Any, rotary_angles: Any) -> tuple[Any, ...]:
    """Return what `GPTModel.forward` unpacks of `_preprocess`.

    Behind our two values: cosines, sines and an offset for inference, and from 0.16 on the padding mask of experts.
    """
    takes_mask = "padding_mask" in inspect.signature(GPTModel._preprocess).parameters
    return decoder_input, rotary_angles, None, None, None, *([None] if takes_mask else [])
