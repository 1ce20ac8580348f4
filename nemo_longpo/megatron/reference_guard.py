"""Before the first step of a new run: does its policy give the log-probs that the reference left in the shards?

The pairs go through the model as it trains, in its layout and on all its ranks, forward only. One thing is different:
queries and keys are turned by the reference's RoPE. Every round raises the base, and its weights must match even so.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.rope_settings import RopeSettings
from nemo_longpo.parallel import collectives
from nemo_longpo.parallel.layout import PairRows, lay_out_pair
from nemo_longpo.placement import PairLayout
from nemo_longpo.run_log import LOG
from nemo_longpo.shards import reader as shard_reader, reference_check, schema

from . import gpt, run_inputs, topology

CheckReference = Literal["error", "warn", "off"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A model of the job, built and loaded on all ranks, that is about to be trained.

    `modules` are this rank's pipeline stages; `run` calls one of them for the rows of a pair and returns their
    log-probs, or what the next stage takes. `forward_context` is what the trainer does around a forward pass.
    """

    modules: list[Any]
    run: Callable[[Any, PairRows], Tensor]
    layout: PairLayout
    rope: RopeSettings
    dtype: str
    start: Path
    forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext

    def compare(
        self, readers: Sequence[shard_reader.ShardReader], check: CheckReference, samples: int, seq_length: int
    ) -> None:
        """Compare the policy of a new run with the reference log-probs of `samples` stored pairs, of each reader.

        The reference's weights must give its log-probs, up to the rounding of the dtypes. Where the policy cannot take
        on the reference's RoPE, see `reference_rope`, the difference is only logged. All ranks must call this.

        Raises InputError on all ranks, if they differ and `check` is "error".
        """
        for reader in readers if check != "off" else ():
            self._compare(reader.directory, check, samples, min(reference_check.LONGEST, seq_length))

    def _compare(self, shards: Path, check: CheckReference, samples: int, longest: int) -> None:
        started = time.perf_counter()
        reader, pairs = choose_on_all(shards, samples, longest)
        if not pairs:
            LOG.info(
                f"{shards}: the policy was not compared with the reference's log-probs, because no stored pair has "
                f"{'a whole document' if reader.manifest.ref_context == 'long' else 'a short prompt'} of at most "
                f"{longest} tokens (shards before schema version 3 have none)"
            )
            return
        unlike, rope = "", self.rope
        try:
            rope = reference_check.reference_rope(reader.manifest, self.rope)
        except InputError as reason:
            unlike = str(reason)
        with gpt.turned_by(rope, self.modules):
            found = self.measure(pairs)
        dtypes = reader.manifest.reference.dtype, self.dtype
        allowed = reference_check.allowed_mean(*dtypes)
        difference = f"the policy's log-probs differ from the reference's {found}"
        if rope != self.rope:
            scaling = f", {rope.scaling}" if rope.scaling else ""
            difference = f"turned by the reference's RoPE (base {rope.theta:g}{scaling}), {difference}"
        seconds = f"{time.perf_counter() - started:.1f} s"
        if unlike:
            LOG.info(f"{shards}: {difference}; no equality is asked for, since {unlike} ({seconds})")
        elif found.mean <= allowed:
            LOG.info(f"{shards}: {difference}; {allowed:g} on average is allowed in {'/'.join(dtypes)} ({seconds})")
        else:
            problem = self._problem(shards, difference, allowed, reader.manifest.reference.weights_sha256)
            if check == "error":
                raise InputError(f"{problem}, or set data.check_reference=warn or off if you want this.")
            LOG.warning(f"{problem}. The run goes on because of data.check_reference=warn")

    def _problem(self, shards: Path, difference: str, allowed: float, scored: str) -> str:
        weights = run_inputs.original_weights(self.start)
        if weights == scored:
            cause = "its weights scored the shards, so tokenizer, chat template or precision may differ"
        elif weights is None:
            cause = "it may have other weights than those that scored the shards, or another tokenizer"
        else:
            cause = f"its weights are {weights[:12]}…, and {scored[:12]}… scored the shards"
        return (
            f"{shards}: {difference}, and {allowed:g} on average is allowed for equal weights; check "
            f"{self.start}: {cause}; import the model that scored the pairs, score them again with this one"
        )

    @torch.no_grad()
    def measure(self, pairs: list[schema.PairRecord]) -> reference_check.Deviation:
        """Return the same deviation on all ranks, which must all call it. Modules are in evaluation mode meanwhile."""
        here = topology.current_topology()
        cp_rank, cp_size = collectives.place(here.cp_group)
        rows = [lay_out_pair(pair, self.layout, cp_size, here.tp_size).on_rank(cp_size, cp_rank) for pair in pairs]
        training = [part for module in self.modules for part in module.modules() if part.training]
        for module in self.modules:
            module.eval()
        try:
            with self.forward_context():
                seen = get_forward_backward_func()(
                    forward_step_func=self._forward_step,
                    data_iterator=iter(rows),
                    model=self.modules,
                    num_microbatches=len(rows),
                    seq_length=max(map(reference_check.tokens, pairs)),
                    micro_batch_size=1,
                    forward_only=True,
                    collect_non_loss_data=True,
                )
        finally:
            for part in training:
                part.training = True
        mine = torch.stack(seen).tolist() if seen else [[0.0] * 3] * len(pairs)  # only the last stage sees log-probs
        return reference_check.deviation(pairs, np.array(topology.gather_from_all(mine)))

    def _forward_step(self, batches: Iterator[PairRows], module: Any) -> tuple[Tensor, Any]:
        rows = next(batches).to_device(torch.cuda.current_device())
        return self.run(module, rows), partial(_differences, rows)


def choose_on_all(shards: Path, count: int, longest: int) -> tuple[shard_reader.ShardReader, list[schema.PairRecord]]:
    """Return the pairs to compare. Raises InputError on all ranks if any rank finds a damaged record."""
    reader, pairs = shard_reader.ShardReader(shards), []

    def choose() -> None:
        pairs.extend(reference_check.samples(reader, count, longest))

    topology.raise_on_all(choose)
    return reader, pairs


def dtype_of(config: Any) -> str:
    """Return the dtype of a model's activations, in the words of a manifest."""
    return "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"


def _differences(batch: PairRows, logprobs: Tensor, non_loss_data: bool) -> Tensor:
    """Return (tokens, Σ |difference|, max |difference|) of this rank's response rows, fp64 [3]."""
    scored = (batch.chosen_mask + batch.rejected_mask) > 0
    apart = torch.where(scored, logprobs - batch.ref_logps, 0.0).abs().double()
    return torch.stack([scored.sum().double(), apart.sum(), apart.amax()])
