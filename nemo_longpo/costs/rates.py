"""How fast kinds of kernels run on a GPU: as measured where they were, else the data sheet at the same shares.

One H100 and one H200 were measured (`benchmarks/results`: h100, gpu_engine). The two compute alike, so each takes
what was measured on the other alone: the attention of trunks from the profile of a training step on the H100, log-probs
from the H200, as the same share of a large matrix product. Element-wise kernels took 7 % of that step's 8.13 s; on the
H200 they are taken to use its memory as well. The host link was not measured: 25 of PCIe 4's 32 GB/s, as pinned copies
usually reach, and as much of PCIe 5.
"""

from dataclasses import dataclass, fields
from typing import Annotated

from nemo_longpo.typed_fields import Kind

from .devices import GPUS, Gpu

HOST_LINK_SHARE = 25 / 32
"""Of PCIe's speed in one direction, assumed."""


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 1e30


Rate = Annotated[float, Kind("a number from 1 to 1e30", _is_rate)]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """FLOP/s of a GPU while it runs kernels of a kind, and bytes per second; bf16.

    Attention counts the operations that it executes: the backward 2.5 times the forward, because it forms the scores
    anew. `logprobs` counts four products of hidden states and table. `element_wise` is the traffic of
    `planning.compute.element_wise_widths`. `host_link` goes to and from pinned host memory, one direction at a time.
    `source` says where the figures come from.
    """

    matrices: Rate
    trunk_forward: Rate
    trunk_backward: Rate
    branch_forward: Rate
    branch_backward: Rate
    logprobs: Rate
    element_wise: Rate
    host_link: Rate
    source: str


KINDS = tuple(field.name for field in fields(Rates) if field.name != "source")

MEASURED = {
    "h100-80gb": Rates(
        matrices=771e12,
        trunk_forward=549e12,
        trunk_backward=523e12,
        branch_forward=642e12,
        branch_backward=560e12,
        logprobs=643e12,
        element_wise=1.34e12,
        host_link=64e9 * HOST_LINK_SHARE,
        source="measured on one H100 80GB (log-probs on an H200)",
    ),
    "h200-141gb": Rates(
        matrices=781e12,
        trunk_forward=549e12,
        trunk_backward=523e12,
        branch_forward=627e12,
        branch_backward=564e12,
        logprobs=652e12,
        element_wise=1.92e12,
        host_link=64e9 * HOST_LINK_SHARE,
        source="measured on one H200 (attention of the trunk on an H100)",
    ),
}
_LIKE = "h100-80gb"


def rates_of(gpu: Gpu) -> Rates:
    """Return what was measured of a GPU, else its data sheet at the shares that the H100 reached of its own."""
    if gpu.name in MEASURED:
        return MEASURED[gpu.name]
    sheet, measured = GPUS[_LIKE], MEASURED[_LIKE]
    computing, moving = gpu.peak_flops / sheet.peak_flops, gpu.memory_bandwidth / sheet.memory_bandwidth
    scaled = dict.fromkeys(KINDS, computing) | {"element_wise": moving, "host_link": gpu.pcie / sheet.pcie}
    return Rates(
        **{kind: share * getattr(measured, kind) for kind, share in scaled.items()},
        source=f"its data sheet, at the shares of it that an {_LIKE} reached",
    )
