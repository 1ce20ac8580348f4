"""Job: what is to be trained, one half of every estimate. The other half is a `Placement`."""

from dataclasses import dataclass

from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.placement import GLOBAL_BATCH_SIZE, LOGPROB_MEMORY_GB, PairLayout, Placement, Precision


@dataclass(frozen=True, kw_only=True)
class Job:
    """One optimizer step over `pairs` pairs of these lengths, in tokens.

    On GPUs, norms are Transformer Engine's and the optimizer is distributed over data- and context-parallel ranks.
    `on_cpu` estimates the CPU backend, which has neither.
    """

    shape: ModelShape
    trunk: int
    chosen: int
    rejected: int
    pairs: int = GLOBAL_BATCH_SIZE
    layout: PairLayout = "shared_prefix"
    precision: Precision = "bf16-mixed"
    logprob_memory_gb: float = LOGPROB_MEMORY_GB
    on_cpu: bool = False

    @property
    def pair(self) -> tuple[ModelShape, int, int, int, PairLayout]:
        """What the formulas of `costs.flops` take."""
        return self.shape, self.trunk, self.chosen, self.rejected, self.layout

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

    @property
    def number_bytes(self) -> int:
        """Bytes of a weight and of an activation."""
        return 4 if self.precision == "32" else 2

    def rows_per_gpu(self, placement: Placement) -> int:
        """Rows of a pair on one context-parallel rank, the last one filled up."""
        return -(-self.rows // placement.cp)

    def stage_layers(self, placement: Placement) -> int:
        """Layers of one pipeline stage."""
        return self.shape.layers // placement.pp
