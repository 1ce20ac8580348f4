"""What a run puts into Megatron-Bridge's loop: its pairs, its micro-batches, its lines of metrics, and the guards."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.bridge.data import base as bridge_data
from megatron.bridge.training import state as bridge_state, train as bridge_loop
from megatron.bridge.training.callbacks import Callback, CallbackContext
from torch import Tensor

from nemo_longpo.errors import InputError
from nemo_longpo.megatron import finite_steps, loss, pair_data, reference_guard, step_record, topology
from nemo_longpo.parallel.layout import PairRows

from .provider import LongPOProvider


@dataclass(kw_only=True)
class PairDataset(bridge_data.DatasetProvider):
    """Reads shard directories made by `longpo data pack`, one pair per micro-batch, in an order that restarts keep.

    Bridge's loader takes the pairs in turn, from the first that a checkpoint has not consumed.

    Attributes:
        paths: one shard directory or several; their records are mixed.
        seq_length: the longest sequence (trunk + branch, in tokens) that the run is prepared for; longer records are
            refused before training starts.
        length_window: with n > 1, the batches of n steps at a time are formed from pairs of similar length.
        num_workers: processes per rank that read and lay out the next pairs during training.
        check_hashes: compare every file with its hash in the manifest, once per run and machine.
        check_reference: what a new run does if its policy has the reference's RoPE, but not its log-probs of a few
            stored pairs: `error`, `warn`, or `off` to compare nothing.
        check_reference_samples: pairs to compare, of each shard directory.
        tokenizer: set by Bridge, which saves it with checkpoints.
    """

    dataloader_type: Any = "single"
    num_workers: int = 0
    pin_memory: bool = False
    persistent_workers: bool = False
    paths: Any = None
    seq_length: int = 131072
    length_window: int = 1
    seed: int = 1234
    check_hashes: bool = True
    check_reference: reference_guard.CheckReference = "error"
    check_reference_samples: int = 2
    tokenizer: Any = None

    def open(
        self, model: LongPOProvider, tokenizer_fingerprint: str | None, global_batch_size: int
    ) -> pair_data.PairData:
        """Open the shards for a model whose architecture is known. Raises InputError if it cannot train on them."""
        if not isinstance(self.paths, str | list | tuple | None) or self.num_workers < 0:
            raise InputError(
                f"dataset.paths is {self.paths!r} and dataset.num_workers {self.num_workers}; give a list of shard "
                "directories, and 0 processes or more."
            )
        paths = [self.paths] if isinstance(self.paths, str) else [str(path) for path in self.paths or ()]
        self._order = {"global_batch_size": global_batch_size, "length_window": self.length_window, "seed": self.seed}
        self._opened = pair_data.PairData(
            paths,
            self.seq_length,
            vars(model),
            model.rope,
            model.chosen_objective,
            model.pair_layout,
            tokenizer_fingerprint,
        )
        return self._opened

    def build_datasets(self, context: bridge_data.DatasetBuildContext) -> tuple["_Pairs", None, None]:
        """Return the pairs of the whole run. Raises InputError unless the shards were opened."""
        opened: pair_data.PairData | None = vars(self).get("_opened")
        if opened is None:
            raise InputError(
                "the shards are not open: start the run with nemo_longpo.bridge.train.train(config), which opens and "
                "checks them before any work."
            )
        here = topology.current_topology()
        records = opened.records(context.train_samples, **self._order, dp_size=here.dp_group.size())
        return _Pairs(records, opened.collate(here)), None, None


class _Pairs(torch.utils.data.Dataset):
    """Records with the function that lays them out, where Bridge looks for it."""

    def __init__(self, records: pair_data.OrderedRecords, lay_out: Callable[[list[Any]], Any]):
        self.records = records
        self.collate_fn = partial(_as_batch, lay_out)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: int) -> Any:
        return self.records[item]


def _as_batch(lay_out: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    """A micro-batch as `next_rows` takes it."""
    return (lay_out(items),)


class PairStep:
    """The `forward_step_func` of `pretrain`. It notes documents and losses for the policy on steps that are not finite.

    Metrics are pairs (sum, count): Bridge adds both over micro-batches and over DP × CP, and divides. Single values it
    would average over this rank's micro-batches alone.
    """

    def __init__(self, pair_loss: loss.PairLoss, finite: finite_steps.FiniteSteps):
        self.pair_loss = pair_loss
        self.finite = finite
        self.losses: list[Tensor] = []
        """Of the micro-batches of this step, on the last pipeline stage."""

    def begin_step(self) -> None:
        self.finite.begin_step()
        self.losses = []

    def __call__(
        self, state: bridge_state.GlobalState, data_iterator: Iterator[Any], model: Any
    ) -> tuple[Tensor, partial[tuple[Tensor, dict[str, Tensor]]]]:
        rows = pair_data.next_rows(data_iterator).to_device(torch.cuda.current_device())
        self.finite.add_document(rows.doc_id)
        return loss.logprobs_of(model, rows), partial(self._loss, rows)

    def _loss(self, rows: PairRows, logprobs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = self.pair_loss(rows, logprobs, topology.current_topology().cp_group)
        self.losses.append(value.detach())
        return value, {name: torch.stack([one.detach(), torch.ones_like(one)]) for name, one in metrics.items()}


@dataclass(kw_only=True)
class RunCallback(Callback):
    """`metrics` is the file of metrics, `start` the checkpoint that a new run begins with; None for a resumed one."""

    step: PairStep
    data: pair_data.PairData
    metrics: Path
    start: Path | None
    record: step_record.StepRecord | None = None

    def on_train_start(self, context: CallbackContext) -> None:
        config = context.state.cfg
        self.record = step_record.StepRecord(
            self.metrics,
            step=context.state.train_state.step,
            steps=config.train.train_iters,
            pairs=config.train.global_batch_size,
            devices=dist.get_world_size(),
            is_first_rank=dist.get_rank() == 0,
        )
        if self.start is not None and self.step.pair_loss.objective.ref_context:
            self._compare_with_reference(context, self.start)
        self._hold_back_steps(context)

    def on_train_step_start(self, context: CallbackContext) -> None:
        assert self.record
        assert context.optimizer
        self.step.begin_step()
        self.record.begin_step()
        self._lr = max(group["lr"] for group in context.optimizer.param_groups if group)

    def on_train_step_end(self, context: CallbackContext) -> None:
        """Write the line of the step; only the last pipeline stage has its metrics."""
        assert self.record
        names = (*self.step.pair_loss.objective.metrics, *loss.WORK)
        self.record.end_step(
            context.state.train_state.step + 1,
            step_record.from_last_stage(names, context.loss_dict),
            lr=self._lr,
            grad_norm=math.nan if context.grad_norm is None else float(context.grad_norm),
            is_skipped=bool(context.skipped_iter),
        )

    def end(self, error: BaseException | None = None) -> None:
        """Say in the run's status that it is over."""
        if self.record:
            self.record.end(error)

    def _compare_with_reference(self, context: CallbackContext, start: Path) -> None:
        config = context.state.cfg
        policy = reference_guard.Policy(
            modules=context.model,
            run=loss.logprobs_of,
            layout=config.model.pair_layout,
            rope=config.model.rope,
            dtype=reference_guard.dtype_of(config.model),
            start=start,
        )
        data = config.dataset
        with _without_param_gather(context.model, config):
            policy.compare(self.data.readers, data.check_reference, data.check_reference_samples, data.seq_length)

    def _hold_back_steps(self, context: CallbackContext) -> None:
        """Apply a step only if the policy on steps that are not finite lets it pass.

        Bridge takes a step that its optimizer leaves out for one that is made again at the same learning rate; here it
        counts, so the schedule goes on.
        """
        optimizer: Any = context.optimizer
        scheduler: Any = context.scheduler
        apply, train_state = optimizer.step, context.state.train_state
        weights = [weight for module in context.model for weight in module.parameters() if weight.requires_grad]

        def step(*args: Any, **kwargs: Any) -> Any:
            self.step.finite.end_step(self.step.losses)
            gradients = [weight.main_grad for weight in weights]
            if self.step.finite.may_be_applied(train_state.step + 1, gradients):
                return apply(*args, **kwargs)
            scheduler.step(increment=context.state.cfg.train.global_batch_size)
            return False, None, None

        optimizer.step = step


@contextmanager
def _without_param_gather(modules: list[Any], config: Any) -> Iterator[None]:
    """Bridge, too, begins without the hooks that wait for weights of the distributed optimizer: none are under way."""
    waits = bridge_loop.should_disable_forward_pre_hook(
        config.ddp.use_megatron_fsdp, config.optimizer.use_distributed_optimizer, config.ddp.overlap_param_gather
    )
    if waits:
        bridge_loop.disable_forward_pre_hook(modules, param_sync=False)
    try:
        yield
    finally:
        if waits:
            bridge_loop.enable_forward_pre_hook(modules)
