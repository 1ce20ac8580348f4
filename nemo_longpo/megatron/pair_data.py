"""Preference shards as pairs for training: one per micro-batch, in an order that restarts do not change."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, get_args

import numpy as np
from torch.utils.data import Dataset

from nemo_longpo.costs import flops, model_shape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.rope_settings import RopeSettings, usable_positions
from nemo_longpo.objective import Objective
from nemo_longpo.parallel import collectives, sampling
from nemo_longpo.parallel.layout import PairRows, lay_out_pair
from nemo_longpo.placement import PairLayout
from nemo_longpo.shards import requirements
from nemo_longpo.shards.reader import ShardReader
from nemo_longpo.shards.schema import PairRecord

from .reference_guard import CheckReference
from .topology import Topology

ORDER_SETTINGS = ("global_batch_size", "length_window", "seed")  # what the order of the records depends on


def check_settings(
    *,
    seq_length: int,
    global_batch_size: int,
    micro_batch_size: int,
    length_window: int,
    seed: int,
    check_reference: str,
    check_reference_samples: int,
) -> None:
    """Raises InputError for a setting of the data that no run can have."""
    for name, value in (("seq_length", seq_length), ("global_batch_size", global_batch_size)):
        if value < 1:
            raise InputError(f"data.{name} is {value}; give a number above 0.")
    if seed < 0:
        raise InputError(f"data.seed is {seed}; give 0 or a number above it.")
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


def refuse_another_order(begun: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare ORDER_SETTINGS of the run that a checkpoint belongs to with those it would go on with.

    Raises InputError if they change the order of documents: some would be repeated, others left out.
    """
    for name, value in begun.items():
        if now[name] != value:
            raise InputError(
                f"The checkpoint was trained with data.{name}={value}, and data.{name}={now[name]} now "
                "would repeat some documents and leave out others; set it back, or start another run "
                "(log.log_dir) with this checkpoint as resume.restore_config.path."
            )


class PairData:
    """Open shard directories, which fit a model.

    Args:
        config: the model's configuration by field names, as in NeMo; `seq_length` in it counts its positions.
        seq_length: the longest sequence that the run is prepared for.
        tokenizer_fingerprint: of the model's tokenizer; None leaves the shards' unchecked.

    Raises:
        InputError: no directory or no record, another tokenizer or schema, or what `Requirements` refuses.
    """

    def __init__(
        self,
        paths: Sequence[str],
        seq_length: int,
        config: Mapping[str, Any],
        rope: RopeSettings,
        objective: Objective,
        layout: PairLayout,
        tokenizer_fingerprint: str | None,
    ):
        if not paths:
            raise InputError("data.paths is not set; give a shard directory, data.paths=SHARDS.")
        self.layout = layout
        self.shape = model_shape.ModelShape.from_nemo(config, "the model's configuration")
        self.short_prompts = objective.reads_short_prompts
        self.readers = [
            ShardReader(path, tokenizer_fingerprint=tokenizer_fingerprint, short_prompts=self.short_prompts)
            for path in paths
        ]
        lengths = [reader.lengths() for reader in self.readers]
        short_lengths = [reader.short_lengths() for reader in self.readers]
        positions = usable_positions(config["seq_length"], rope.scaling)
        asked = requirements.Requirements(config["vocab_size"], seq_length, positions, objective)
        for of_reader in zip(self.readers, lengths, short_lengths, strict=True):
            asked.check(*of_reader)
        self.short_lengths = list(chain.from_iterable(short_lengths))
        self.lengths = np.concatenate(lengths)
        if not len(self.lengths):
            raise InputError(f"{', '.join(paths)}: no records to train on; check the report of `longpo data filter`.")

    def order(self, *, global_batch_size: int, length_window: int, seed: int, dp_size: int) -> sampling.RecordOrder:
        costs = [
            flops.forward_flops(self.shape, flops.PairLengths(trunk, chosen, rejected, short), self.layout)
            for (trunk, chosen, rejected), short in zip(self.lengths.tolist(), self.short_lengths, strict=True)
        ]
        return sampling.RecordOrder(
            costs_N=np.array(costs), seed=seed, batch_size=global_batch_size, window=length_window, dp_size=dp_size
        )

    def records(self, samples: int, **order: int) -> "OrderedRecords":
        """Return the first `samples` records of a run; `order` as for the method of this name."""
        return OrderedRecords(self.readers, self.order(**order), samples)

    def collate(self, topology: Topology) -> partial[PairRows | InputError]:
        """Return the function that lays out the record of a micro-batch on this rank."""
        cp_rank, cp_size = collectives.place(topology.cp_group)
        return partial(
            lay_out_on_rank,
            layout=self.layout,
            cp_size=cp_size,
            cp_rank=cp_rank,
            tp_size=topology.tp_size,
            short_prompts=self.short_prompts,
        )


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
