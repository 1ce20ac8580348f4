"""Job: what is to be trained, one half of every estimate. The other half is a `Placement`."""

from dataclasses import dataclass, replace
from functools import cached_property

from nemo_longpo.costs.flops import PairLengths
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.placement import GLOBAL_BATCH_SIZE, LOGPROB_MEMORY_GB, PairLayout, Placement, Precision


@dataclass(frozen=True, kw_only=True)
class Job:
    """One optimizer step over `pairs` pairs of these lengths, in tokens.

    `short_prompts` are the lengths of the prompts that an objective reads besides the document, one for each turn; the
    turns share the answers' tokens equally.

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
    short_prompts: tuple[int, ...] = ()

    @cached_property
    def lengths(self) -> PairLengths:
        """Tokens of the document's pair, and of each short prompt with its two answers."""
        turns = max(len(self.short_prompts), 1)
        answers = -(-self.chosen // turns), -(-self.rejected // turns)
        return PairLengths(
            self.trunk, self.chosen, self.rejected, tuple((prompt, *answers) for prompt in self.short_prompts)
        )

    @cached_property
    def document_alone(self) -> "Job":
        """The same without short prompts: the longest that attention sees at once."""
        return replace(self, short_prompts=())

    @property
    def pair(self) -> tuple[ModelShape, PairLengths, PairLayout]:
        """What the formulas of `costs.flops` take."""
        return self.shape, self.lengths, self.layout

    @cached_property
    def tokens(self) -> int:
        """Trained tokens of one pair: every trunk once, and both branches; the same for both layouts."""
        return self.lengths.tokens

    @cached_property
    def branch_rows(self) -> int:
        """Rows that go through branch attention."""
        if self.layout == "concatenated":
            return 0
        return sum(chosen + rejected for _, chosen, rejected in self.lengths.trees)

    @cached_property
    def rows(self) -> int:
        """Rows of one pair that run through the layers."""
        if self.layout == "concatenated":
            return sum(2 * (trunk + max(answers)) for trunk, *answers in self.lengths.trees)
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
