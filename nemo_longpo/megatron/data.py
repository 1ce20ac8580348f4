"""Preference shards as a NeMo data module: one pair per micro-batch, in an order that restarts do not change."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, Optional, Union, get_args

import lightning.pytorch as pl
import numpy as np
from megatron.core.num_microbatches_calculator import update_num_microbatches
from nemo.collections.common.tokenizers import TokenizerSpec
from nemo.lightning import MegatronDataSampler, data, io
from torch.utils.data import DataLoader, Dataset

from nemo_longpo.costs import flops, model_shape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.rope_settings import parse_scaling, usable_positions
from nemo_longpo.parallel import collectives, sampling
from nemo_longpo.parallel.layout import PairRows, lay_out_pair
from nemo_longpo.placement import GLOBAL_BATCH_SIZE, PairLayout
from nemo_longpo.shards import fingerprint, requirements
from nemo_longpo.shards.reader import ShardReader
from nemo_longpo.shards.schema import PairRecord

from .reference_guard import CheckReference
from .run_inputs import check_shards, inputs_directory
from .topology import current_topology, raise_on_all

ORDER_SETTINGS = ("global_batch_size", "length_window", "seed")  # what the order of the records depends on


class OrderedRecords(Dataset):
    """The records of all readers, repeated for every epoch, in the order of a `RecordOrder`."""

    def __init__(self, readers: Sequence[ShardReader], order: sampling.RecordOrder, samples: int):
        self.readers = list(readers)
        self.records = [(number, index) for number, reader in enumerate(readers) for index in range(len(reader))]
        self.order = order
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, item: int) -> PairRecord | InputError:
        """Return a record, or its error if it is not valid; `next_rows` raises it in the training process.

        If a data worker raised it, PyTorch would print a traceback.
        """
        number, index = self.records[self.order[int(item)]]
        try:
            return self.readers[number][index]
        except InputError as error:
            return error


def lay_out_on_rank(
    items: list[PairRecord | InputError],
    layout: PairLayout,
    cp_size: int,
    cp_rank: int,
    tp_size: int,
    short_prompts: bool,
) -> PairRows | InputError:
    """Lay out the one record of a micro-batch, in the data worker that read it if there is one."""
    (item,) = items
    if isinstance(item, InputError):
        return item
    return lay_out_pair(item, layout, cp_size, tp_size, short_prompts=short_prompts).on_rank(cp_size, cp_rank)


def next_rows(dataloader_iter: Iterator) -> PairRows:
    """Return the rows of the next record. Raises InputError, naming file and document, if it is not valid."""
    item, *_ = next(dataloader_iter)
    if isinstance(item, InputError):
        raise item
    return item


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
        if micro_batch_size != 1:
            raise InputError(f"data.micro_batch_size is {micro_batch_size}; a micro-batch is one pair, set it to 1.")
        if length_window < 1:
            raise InputError(f"data.length_window is {length_window}; 1 or more global batches, 1 to leave it off.")
        if check_reference not in get_args(CheckReference):
            raise InputError(
                f"data.check_reference is {check_reference!r}; choose one of {', '.join(get_args(CheckReference))}."
            )
        if check_reference_samples < 1:
            raise InputError(
                f"data.check_reference_samples is {check_reference_samples}; compare 1 pair or more, or set "
                "data.check_reference=off."
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
            check_shards(
                self.readers,
                inputs_directory(),
                local_rank=self.trainer.local_rank,
                first=self.trainer.is_global_zero,
            )

    def _open(self) -> None:
        if not self.paths:
            raise InputError("data.paths is not set; give a shard directory, data.paths=SHARDS.")
        known = fingerprint.tokenizer_fingerprint(self.tokenizer.tokenizer) if self.tokenizer is not None else None
        model: Any = self.trainer.lightning_module
        self.readers = [
            ShardReader(path, tokenizer_fingerprint=known, short_prompts=model.objective.reads_short_prompts)
            for path in self.paths
        ]
        lengths = [reader.lengths() for reader in self.readers]
        short_lengths = [reader.short_lengths() for reader in self.readers]
        positions = usable_positions(model.config.seq_length, parse_scaling(model.rope_scaling, "model.rope_scaling"))
        asked = requirements.Requirements(model.config.vocab_size, self.seq_length, positions, model.objective)
        for of_reader in zip(self.readers, lengths, short_lengths, strict=True):
            asked.check(*of_reader)
        self.short_lengths = list(chain.from_iterable(short_lengths))
        self.lengths = np.concatenate(lengths)
        if not len(self.lengths):
            raise InputError(
                f"{', '.join(self.paths)}: no records to train on; check the report of `longpo data filter`."
            )

    def train_dataloader(self) -> DataLoader:
        """Return the loader. Lightning calls this once, when a resumed run already knows its step."""
        model: Any = self.trainer.lightning_module
        topology = current_topology()
        cp_rank, cp_size = collectives.place(topology.cp_group)
        self.init_global_step = self.data_sampler.init_global_step = self.trainer.global_step
        steps = max(self.trainer.max_steps - self.trainer.global_step, 1)  # NeMo refuses an empty sampler
        return data.WrappedDataLoader(
            mode="train",
            dataset=OrderedRecords(
                self.readers,
                self._order(model, topology.dp_group.size()),
                samples=self.data_sampler.init_consumed_samples + steps * self.global_batch_size,
            ),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=partial(
                lay_out_on_rank,
                layout=model.pair_layout,
                cp_size=cp_size,
                cp_rank=cp_rank,
                tp_size=topology.tp_size,
                short_prompts=model.objective.reads_short_prompts,
            ),
        )

    def _order(self, model: Any, dp_size: int) -> sampling.RecordOrder:
        shape = model_shape.ModelShape.from_nemo(vars(model.config), "the model's configuration")
        costs = [
            flops.forward_flops(shape, flops.PairLengths(trunk, chosen, rejected, short), model.pair_layout)
            for (trunk, chosen, rejected), short in zip(self.lengths.tolist(), self.short_lengths, strict=True)
        ]
        return sampling.RecordOrder(
            costs_N=np.array(costs),
            seed=self.seed,
            batch_size=self.global_batch_size,
            window=self.length_window,
            dp_size=dp_size,
        )

    def val_dataloader(self) -> list:
        return []

    def state_dict(self) -> dict[str, Any]:
        steps = self.trainer.global_step - self.init_global_step
        return {
            "consumed_samples": self.data_sampler.compute_consumed_samples(steps),
            "order": {name: getattr(self, name) for name in ORDER_SETTINGS},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the documents that were trained already.

        Raises InputError if the settings change the order of documents: some would be repeated, others left out.
        """
        for name, value in state_dict.get("order", {}).items():
            if getattr(self, name) != value:
                raise InputError(
                    f"The checkpoint was trained with data.{name}={value}, and data.{name}={getattr(self, name)} now "
                    "would repeat some documents and leave out others; set it back, or start another run "
                    "(log.log_dir) with this checkpoint as resume.restore_config.path."
                )
        consumed = state_dict["consumed_samples"]
        self.data_sampler.init_consumed_samples = consumed
        self.data_sampler.prev_consumed_samples = consumed
        self.data_sampler.if_first_step = 1
        update_num_microbatches(consumed_samples=consumed, consistency_check=False)
