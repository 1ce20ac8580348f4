"""Before the first step of a new run: does its policy give the log-probs that the reference left in the shards?

The pairs go through the model as it trains, in its layout and on all its ranks, forward only.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from nemo.utils import logging
from torch import Tensor

from nemo_longpo.checkpoints.run_inputs import read_origin
from nemo_longpo.errors import InputError
from nemo_longpo.parallel import collectives, layout
from nemo_longpo.shards import reference_check
from nemo_longpo.shards.reader import ShardReader
from nemo_longpo.shards.schema import PairRecord

from . import topology

CheckReference = Literal["error", "warn", "off"]


class ReferenceGuard(pl.Callback):
    """Compares the policy of a new run with the reference log-probs of a few stored pairs, of each shard directory.

    Weights and RoPE of the reference must give its log-probs, up to the rounding of the dtypes. If the RoPE is another,
    as in every LongPO round, the difference is only logged. A resumed run is not checked, nor one without a start
    checkpoint or with a loss that reads no reference.

    Raises InputError on all ranks, before the first step, if they differ and `data.check_reference` is "error".
    """

    def __init__(self, start: Path | None):
        self.start = start
        self.is_new = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.is_new = stage == "fit" and not trainer.ckpt_path

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.is_new and self.start and data.check_reference != "off" and pl_module.objective.ref_context:
            for opened in data.readers:
                self._check(trainer, pl_module, opened.directory, data)

    def _check(self, trainer: pl.Trainer, model: Any, shards: Path, data: Any) -> None:
        started = time.perf_counter()
        reader, pairs = choose_on_all(
            shards, data.check_reference_samples, min(reference_check.LONGEST, data.seq_length)
        )
        if not pairs:
            logging.info(
                f"{shards}: the policy was not compared with the reference's log-probs, because no stored pair has "
                f"{'a whole document' if reader.manifest.ref_context == 'long' else 'a short prompt'} of at most "
                f"{min(reference_check.LONGEST, data.seq_length)} tokens (shards before schema version 3 have none)"
            )
            return
        found = measure(trainer, model, pairs)
        dtypes = reader.manifest.reference.dtype, dtype_of(model.config)
        allowed = reference_check.allowed_mean(*dtypes)
        difference = f"the policy's log-probs differ from the reference's {found}"
        other_rope = reference_check.rope_difference(reader.manifest, model.rope)
        seconds = f"{time.perf_counter() - started:.1f} s"
        if other_rope:
            logging.info(f"{shards}: {difference}; no equality is asked for, since {other_rope} ({seconds})")
        elif found.mean <= allowed:
            logging.info(f"{shards}: {difference}; {allowed:g} on average is allowed in {'/'.join(dtypes)} ({seconds})")
        else:
            problem = self._problem(shards, difference, allowed, reader.manifest.reference.weights_sha256)
            if data.check_reference == "error":
                raise InputError(f"{problem}, or set data.check_reference=warn or off if you want this.")
            logging.warning(f"{problem}. The run goes on because of data.check_reference=warn")

    def _problem(self, shards: Path, difference: str, allowed: float, scored: str) -> str:
        assert self.start is not None
        weights = read_origin(self.start)
        if weights == scored:
            cause = "its weights scored the shards, so tokenizer, chat template, RoPE or precision may differ"
        elif weights is None:
            cause = "it may have other weights than those that scored the shards, or another tokenizer or RoPE"
        else:
            cause = f"its weights are {weights[:12]}…, and {scored[:12]}… scored the shards"
        return (
            f"{shards}: {difference}, and {allowed:g} on average is allowed for equal weights and RoPE; check "
            f"{self.start}: {cause}; import the model that scored the pairs, score them again with this one"
        )


def choose_on_all(shards: Path, count: int, longest: int) -> tuple[ShardReader, list[PairRecord]]:
    """Return the pairs to compare. Raises InputError on all ranks if any rank finds a damaged record."""
    reader, pairs = ShardReader(shards), []

    def choose() -> None:
        pairs.extend(reference_check.samples(reader, count, longest))

    topology.raise_on_all(choose)
    return reader, pairs


def dtype_of(config: Any) -> str:
    """Return the dtype of a model's activations, in the words of a manifest."""
    return "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"


@torch.no_grad()
def measure(trainer: pl.Trainer, model: Any, pairs: list[PairRecord]) -> reference_check.Deviation:
    """Return the same deviation on all ranks, which must all call this. Modules are in evaluation mode meanwhile."""
    strategy: Any = trainer.strategy
    here = topology.current_topology()
    cp_rank, cp_size = collectives.place(here.cp_group)
    rows = [
        layout.lay_out_pair(pair, model.pair_layout, cp_size, here.tp_size).on_rank(cp_size, cp_rank) for pair in pairs
    ]
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with strategy.precision_plugin.val_step_context():
            seen = get_forward_backward_func()(
                forward_step_func=_forward_step,
                data_iterator=iter(rows),
                model=strategy.megatron_parallel.pipeline,
                num_microbatches=len(rows),
                seq_length=max(map(reference_check.tokens, pairs)),
                micro_batch_size=1,
                forward_only=True,
                collect_non_loss_data=True,
            )
    finally:
        for module in training:
            module.training = True
    mine = torch.stack(seen).tolist() if seen else [[0.0, 0.0, 0.0]] * len(pairs)  # only the last stage sees log-probs
    return reference_check.deviation(pairs, np.array(topology.gather_from_all(mine)))


def _forward_step(batches: Any, model: Any) -> tuple[Tensor, Any]:
    batch = next(batches).to_device(torch.cuda.current_device())
    return model.forward_step(batch), partial(_differences, batch)


def _differences(batch: layout.PairRows, logprobs: Tensor, non_loss_data: bool) -> Tensor:
    """Return (tokens, Σ |difference|, max |difference|) of this rank's response rows, fp64 [3]."""
    scored = (batch.chosen_mask + batch.rejected_mask) > 0
    apart = torch.where(scored, logprobs - batch.ref_logps, 0.0).abs().double()
    return torch.stack([scored.sum().double(), apart.sum(), apart.amax()])
