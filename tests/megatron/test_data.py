"""What the data module restores from a checkpoint, and what it does not."""

from functools import partial

import pytest
import torch
from support import training_pairs
from torch.utils.data import DataLoader

from nemo_longpo.errors import InputError
from nemo_longpo.parallel.layout import lay_out_pair

TRAINED = {"consumed_samples": 12, "order": {"global_batch_size": 2, "length_window": 4, "seed": 1234}}


@pytest.mark.parametrize(("name", "value"), [("global_batch_size", 4), ("length_window", 1), ("seed", 1)])
def test_changed_order_is_refused_at_resume(name, value):
    from nemo_longpo.nemo.data_module import LongPODataModule

    settings = {**TRAINED["order"], name: value}
    with pytest.raises(InputError, match=f"data.{name}={TRAINED['order'][name]}, and data.{name}={value} now"):
        LongPODataModule("shards", **settings).load_state_dict(TRAINED)


@pytest.mark.parametrize("state", [TRAINED, {"consumed_samples": 12}], ids=["same order", "older checkpoint"])
def test_continues_after_trained_documents(state, monkeypatch):
    from nemo_longpo.nemo.data_module import LongPODataModule

    monkeypatch.setattr("nemo_longpo.nemo.data_module.update_num_microbatches", lambda **told: None)
    data = LongPODataModule("shards", **TRAINED["order"])
    data.load_state_dict(state)
    assert data.data_sampler.init_consumed_samples == 12


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
