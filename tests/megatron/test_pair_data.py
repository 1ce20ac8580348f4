"""What a rank's loader makes of a pair, and of a fault in it."""

from functools import partial

import pytest
import torch
from support import training_pairs
from torch.utils.data import DataLoader

from nemo_longpo.errors import InputError
from nemo_longpo.parallel.layout import lay_out_pair


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_yields_rank_rows_and_errors(workers):
    """Also from a data worker; PyTorch would turn its exceptions into tracebacks."""
    from nemo_longpo.megatron.pair_data import lay_out_on_rank, next_rows

    (record, *_) = training_pairs.with_short_prompts(training_pairs.uneven_records(100), 100)
    rank = {"layout": "shared_prefix", "cp_size": 2, "cp_rank": 1, "tp_size": 1, "short_prompts": True}
    loader = DataLoader(
        [record, InputError("doc-7 is damaged")], collate_fn=partial(lay_out_on_rank, **rank), num_workers=workers
    )
    items = ((item, 0, 0) for item in loader)
    found, expected = next_rows(items), lay_out_pair(record, "shared_prefix", cp_size=2, short_prompts=True)
    expected = expected.on_rank(2, 1)
    for name, tensor in expected.tensors().items():
        assert torch.equal(getattr(found, name), tensor), name
    assert (found.trees, found.lengths) == (expected.trees, expected.lengths)
    with pytest.raises(InputError, match=r"^doc-7 is damaged$"):
        next_rows(items)
    items.close()  # ends the worker; the exception would keep it, and the collector waits five seconds for it


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seq_length", 0),
        ("global_batch_size", -2),
        ("micro_batch_size", 2),
        ("length_window", 0),
        ("seed", -1),
        ("check_reference_samples", 0),
    ],
)
def test_data_settings_that_no_run_can_have(name, value):
    from nemo_longpo.megatron import pair_data

    sizes = {"seq_length": 64, "global_batch_size": 4, "micro_batch_size": 1, "length_window": 1, "seed": 0}
    settings = {**sizes, "check_reference": "error", "check_reference_samples": 1}
    pair_data.check_settings(**settings)
    with pytest.raises(InputError, match=rf"data\.{name} is {value}; "):
        pair_data.check_settings(**{**settings, name: value})
