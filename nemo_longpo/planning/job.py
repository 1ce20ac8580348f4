"""What is to be trained, and how: the two halves of every estimate."""

from dataclasses import dataclass
from typing import Literal

from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.placement import PairLayout

Recompute = Literal["none", "core_attn", "mlp", "full"]


@dataclass(frozen=True)
class Job:
    """One optimizer step over `pairs` pairs of these lengths, in tokens."""

    shape: ModelShape
    trunk: int
    chosen: int
    rejected: int
    pairs: int = 8
    layout: PairLayout = "shared_prefix"

    @property
    def tokens(self) -> int:
        """Trained tokens of one pair: the trunk once, and both branches; the same for both layouts."""
        return self.trunk + self.chosen + self.rejected

    @property
    def branch_rows(self) -> int:
        """Rows that go through branch attention."""
        return self.chosen + self.rejected if self.layout == "shared_prefix" else 0

    @property
    def rows(self) -> int:
        """Rows of one pair that run through the layers."""
        if self.layout == "concatenated":
            return 2 * (self.trunk + max(self.chosen, self.rejected))
        return self.tokens


@dataclass(frozen=True)
class Precision:
    """Bytes per number. `master` and `moments` are the optimizer's copy of the weights and Adam's two averages."""

    weight: int = 2
    gradient: int = 4
    master: int = 4
    moments: int = 8
    activation: int = 2


BF16 = Precision()
FP32 = Precision(weight=4, gradient=4, master=0, moments=8, activation=4)


@dataclass(frozen=True)
class Setup:
    """How a job is spread over GPUs, and what it saves memory with.

    `recompute` is what the backward computes again: nothing, the core attention, the feed-forward part of every layer,
    or whole layers, the first `recompute_layers` of each pipeline stage. Sequence parallelism goes with tp > 1.
    GPUs always have `fused_norms`, Transformer Engine's, and the optimizer `distributed` over data- and
    context-parallel ranks; the CPU backend has neither.
    """

    tp: int = 1
    pp: int = 1
    cp: int = 1
    dp: int = 1
    recompute: Recompute = "none"
    recompute_layers: int = 0
    offload_optimizer: bool = False
    precision: Precision = BF16
    logprob_buffer: float = 1e9
    fused_norms: bool = True
    distributed: bool = True

    @property
    def gpus(self) -> int:
        return self.tp * self.pp * self.cp * self.dp

    def stage_layers(self, shape: ModelShape) -> int:
        return shape.layers // self.pp

    def rows(self, job: Job) -> int:
        """Rows of a pair on one context-parallel rank, the last one filled up."""
        return -(-job.rows // self.cp)

    def describe(self) -> str:
        layers = f" of {self.recompute_layers} layers" if self.recompute == "full" and self.recompute_layers else ""
        parts = f"tp {self.tp}, cp {self.cp}, pp {self.pp}, dp {self.dp}, recompute {self.recompute}{layers}"
        return parts + (", optimizer on the CPU" if self.offload_optimizer else "")
