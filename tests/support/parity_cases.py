"""The one table of cases in which a training step is compared with Hugging Face, whatever trainer makes it.

A case is the sizes of context, tensor, pipeline and data parallelism, then settings by the names that all trainers
share; each knows where it keeps them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

Case = tuple[int, int, int, int, dict[str, Any]]

FULL = {"recompute_granularity": "full"}
BLOCK = {**FULL, "recompute_method": "block"}
SELECTIVE = {"recompute_granularity": "selective"}
TWO_PARTS = {"recompute_modules": ["core_attn", "mlp"]}
SEQUENCE_PARALLEL = {"sequence_parallel": True}
CONCATENATED = {"pair_layout": "concatenated"}
OFFLOAD = {**FULL, "offload_layer_inputs": True}
TILES = {"mlp_tile_tokens": 14}  # which no number of rows here divides by

# Every rank's place in the layout differs between these.
PARALLEL: dict[str, Case] = {
    "one process": (1, 1, 1, 1, {}),
    "cp 2": (2, 1, 1, 1, {}),
    "cp 4": (4, 1, 1, 1, {}),
    "tp 2": (1, 2, 1, 1, {}),
    "pp 2": (1, 1, 2, 1, {}),
    "dp 2": (1, 1, 1, 2, {}),
    "cp 2, tp 2": (2, 2, 1, 1, {}),
    "cp 2, tp 2, sequence parallel": (2, 2, 1, 1, SEQUENCE_PARALLEL),
    "cp 2, pp 2": (2, 1, 2, 1, {}),
    "cp 2, full recompute": (2, 1, 1, 1, FULL),
    "tp 2, pp 2, full recompute": (1, 2, 2, 1, FULL),
}
# What both families share: one of them is enough.
MISTRAL: dict[str, Case] = {
    "cp 2, dp 2": (2, 1, 1, 2, {}),
    "cp 2, selective recompute": (2, 1, 1, 1, SELECTIVE),
    "log-probs in chunks of 7": (1, 1, 1, 1, {"logprob_chunk_size": 7}),
    "cp 2, offload, tiles": (2, 1, 1, 1, OFFLOAD | TILES),
    "pp 2, offload": (1, 1, 2, 1, OFFLOAD),
    "tp 2, sequence parallel, offload, tiles": (1, 2, 1, 1, SEQUENCE_PARALLEL | OFFLOAD | TILES),
    "tiles": (1, 1, 1, 1, TILES),
    "concatenated, one process": (1, 1, 1, 1, CONCATENATED),
    "concatenated, cp 2, tp 2, sequence parallel": (2, 2, 1, 1, CONCATENATED | SEQUENCE_PARALLEL),
    "concatenated, cp 2, full recompute": (2, 1, 1, 1, CONCATENATED | FULL),
}
# Its output layer and its embedding are one weight, and so are those of Qwen3.
QWEN2: dict[str, Case] = {
    "pp 2, dp 2": (1, 1, 2, 2, {}),
    "cp 2, tp 2, sequence parallel, full recompute": (2, 2, 1, 1, SEQUENCE_PARALLEL | FULL),
    "cp 2, pp 2, selective recompute of two parts": (2, 1, 2, 1, SELECTIVE | TWO_PARTS),
    "block recompute": (1, 1, 1, 1, BLOCK),
    "pp 2, block recompute, offload, tiles": (1, 1, 2, 1, OFFLOAD | BLOCK | TILES),
    "cp 2, tp 2, sequence parallel, tiles": (2, 2, 1, 1, SEQUENCE_PARALLEL | TILES),
    "tp 2, selective recompute of two parts, tiles": (1, 2, 1, 1, SELECTIVE | TWO_PARTS | TILES),
    "concatenated, cp 2, offload, tiles": (2, 1, 1, 1, CONCATENATED | OFFLOAD | TILES),
    "concatenated, cp 2": (2, 1, 1, 1, CONCATENATED),
    "concatenated, pp 2": (1, 1, 2, 1, CONCATENATED),
}
# Every rank has some of the heads: the gradient of a norm that all heads share is the sum over tensor-parallel ranks,
# with sequence parallelism and without.
QWEN3: dict[str, Case] = {
    "cp 2": (2, 1, 1, 1, {}),
    "tp 2": (1, 2, 1, 1, {}),
    "tp 2, sequence parallel, full recompute": (1, 2, 1, 1, SEQUENCE_PARALLEL | FULL),
    "cp 2, tp 2, sequence parallel": (2, 2, 1, 1, SEQUENCE_PARALLEL),
    "pp 2": (1, 1, 2, 1, {}),
    "concatenated, cp 2, tp 2, sequence parallel, full recompute": (
        *(2, 2, 1, 1),
        CONCATENATED | SEQUENCE_PARALLEL | FULL,
    ),
}
# As Mistral, but for the RoPE scaling.
LLAMA: dict[str, Case] = {"cp 2": (2, 1, 1, 1, {})}

CASES = {"mistral": PARALLEL | MISTRAL, "qwen2": PARALLEL | QWEN2, "qwen3": QWEN3, "llama": LLAMA}


def parameters(chosen: Mapping[str, Sequence[str]] | None = None) -> list[Any]:
    """Family and case of every test: all of the table, or those that `chosen` names for a family."""
    chosen = CASES if chosen is None else chosen
    return [
        pytest.param(family, CASES[family][name], id=f"{family}: {name}")
        for family, names in chosen.items()
        for name in names
    ]
