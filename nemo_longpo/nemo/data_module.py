"""Preference shards as a NeMo data module."""

from typing import Any, Optional, Union

import lightning.pytorch as pl
from megatron.core.num_microbatches_calculator import update_num_microbatches
from nemo.collections.common.tokenizers import TokenizerSpec
from nemo.lightning import MegatronDataSampler, data, io
from torch.utils.data import DataLoader

from nemo_longpo.errors import InputError
from nemo_longpo.megatron import pair_data, run_inputs
from nemo_longpo.megatron.reference_guard import CheckReference
from nemo_longpo.megatron.topology import current_topology, raise_on_all
from nemo_longpo.placement import GLOBAL_BATCH_SIZE
from nemo_longpo.shards import fingerprint
from nemo_longpo.shards.reader import ShardReader

from .callbacks import inputs_directory


def refuse_other_steps(trainer: pl.Trainer) -> None:
    """Raises InputError for a setting with which Lightning would begin the order of the documents again and again, or
    count other steps than optimizer steps."""
    if trainer.limit_train_batches != 1.0 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise InputError(
            f"trainer.limit_train_batches is {trainer.limit_train_batches}, which would train on the first documents "
            "again and again; leave it (and trainer.overfit_batches) out, and set trainer.max_steps."
        )
    if trainer.accumulate_grad_batches != 1:
        raise InputError(
            f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}, but every optimizer step takes "
            "data.global_batch_size pairs already, one after another; leave it out, and set that."
        )


class LongPODataModule(pl.LightningDataModule, io.IOMixin):
    """Reads shard directories made by `longpo data pack`.

    Args:
        paths: one shard directory or several; their records are mixed.
        seq_length: the longest sequence (trunk + branch, in tokens) that the run is prepared for; longer records are
            refused before training starts.
        micro_batch_size: pairs per forward pass; always 1, pairs differ in length and one fills the device.
        length_window: with 1, every global batch is a random sample of the epoch, distributed over the data-parallel
            ranks so that their work is similar. This changes neither batch nor gradient, but cannot help if each rank
            gets one pair. With n > 1, the batches of n steps at a time are formed from pairs of similar length: work is
            equal then too, but batches are not random samples. Documents per epoch stay the same.
        num_workers: processes per rank that read and lay out the next pairs during training; with 0 this happens
            between two steps and takes 30 to 60 ms for a pair of 512K tokens.
        check_hashes: compare every file with its hash in the manifest, once per run and machine, to detect any byte
            changed since the shards were written. If false, only the records themselves are validated.
        check_reference: what a new run does if its policy has the reference's RoPE, but not its log-probs of a few
            stored pairs: `error`, `warn`, or `off` to compare nothing; see `ReferenceGuard`.
        check_reference_samples: pairs to compare, of each shard directory; the shortest of 16 documents.
        tokenizer: set by NeMo from the model's checkpoint, and compared with the shards' tokenizer.
    """

    trainer: pl.Trainer  # set by Lightning before any of the methods below

    def __init__(
        self,
        paths: Optional[Union[list[str], str]] = None,  # noqa: UP007, UP045 (NeMo-Run's parser knows no `|`)
        seq_length: int = 131072,
        global_batch_size: int = GLOBAL_BATCH_SIZE,
        micro_batch_size: int = 1,
        length_window: int = 1,
        seed: int = 1234,
        num_workers: int = 0,
        check_hashes: bool = True,
        check_reference: CheckReference = "error",
        check_reference_samples: int = 2,
        tokenizer: TokenizerSpec | None = None,
    ):
        super().__init__()
        pair_data.check_settings(
            seq_length=seq_length,
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
            length_window=length_window,
            seed=seed,
            check_reference=check_reference,
            check_reference_samples=check_reference_samples,
        )
        self.paths = [paths] if isinstance(paths, str) else list(paths or [])
        self.seq_length = seq_length
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.length_window = length_window
        self.seed = seed
        self.num_workers = num_workers
        self.check_hashes = check_hashes
        self.check_reference = check_reference
        self.check_reference_samples = check_reference_samples
        self.tokenizer = tokenizer
        self.init_global_step = 0
        self.data_sampler = MegatronDataSampler(
            seq_len=seq_length, micro_batch_size=micro_batch_size, global_batch_size=global_batch_size
        )

    def setup(self, stage: str = "fit") -> None:
        """Open the shards.

        Raises InputError, the same on all ranks, if they have another tokenizer or schema, do not meet the
        `Requirements` of the model, or have changed bytes.
        """
        raise_on_all(self._open)
        if self.check_hashes:
            run_inputs.check_shards(
                self.readers,
                inputs_directory(),
                local_rank=self.trainer.local_rank,
                first=self.trainer.is_global_zero,
            )

    def _open(self) -> None:
        refuse_other_steps(self.trainer)
        known = fingerprint.tokenizer_fingerprint(self.tokenizer.tokenizer) if self.tokenizer is not None else None
        model: Any = self.trainer.lightning_module
        self.pairs = pair_data.PairData(
            self.paths, self.seq_length, vars(model.config), model.rope, model.objective, model.pair_layout, known
        )

    @property
    def readers(self) -> list[ShardReader]:
        return self.pairs.readers

    def train_dataloader(self) -> DataLoader:
        """Return the loader. Lightning calls this once, when a resumed run already knows its step."""
        topology = current_topology()
        self.init_global_step = self.data_sampler.init_global_step = self.trainer.global_step
        steps = max(self.trainer.max_steps - self.trainer.global_step, 1)  # NeMo refuses an empty sampler
        return data.WrappedDataLoader(
            mode="train",
            dataset=self.pairs.records(
                samples=self.data_sampler.init_consumed_samples + steps * self.global_batch_size,
                dp_size=topology.dp_group.size(),
                **self._order_settings(),
            ),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=self.pairs.collate(topology),
        )

    def _order_settings(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in pair_data.ORDER_SETTINGS}

    def val_dataloader(self) -> list:
        return []

    def state_dict(self) -> dict[str, Any]:
        steps = self.trainer.global_step - self.init_global_step
        return {
            "consumed_samples": self.data_sampler.compute_consumed_samples(steps),
            "order": self._order_settings(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the documents that were trained already.

        Raises InputError if the settings change the order of documents: some would be repeated, others left out.
        """
        pair_data.refuse_another_order(state_dict.get("order", {}), self._order_settings())
        consumed = state_dict["consumed_samples"]
        self.data_sampler.init_consumed_samples = consumed
        self.data_sampler.prev_consumed_samples = consumed
        self.data_sampler.if_first_step = 1
        update_num_microbatches(consumed_samples=consumed, consistency_check=False)
