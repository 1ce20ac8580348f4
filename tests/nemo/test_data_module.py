"""What the data module restores from a checkpoint, and what it does not."""

import pytest

from nemo_longpo.errors import InputError

TRAINED = {"consumed_samples": 12, "order": {"global_batch_size": 2, "length_window": 4, "seed": 1234}}


@pytest.mark.parametrize(("name", "value"), [("global_batch_size", 4), ("length_window", 1), ("seed", 1)])
def test_changed_order_is_refused_at_resume(name, value):
    from nemo_longpo.nemo.data_module import LongPODataModule

    settings = {**TRAINED["order"], name: value}
    with pytest.raises(InputError, match=f"data.{name}={TRAINED['order'][name]}, and data.{name}={value} now"):
        LongPODataModule("shards", **settings).load_state_dict(TRAINED)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("limit_train_batches", 2), ("limit_train_batches", 0.5),
     ("overfit_batches", 3), ("accumulate_grad_batches", 2)],
)  # fmt: skip
def test_what_would_repeat_documents_is_refused(setting, value):
    """Lightning would begin the order again behind `limit_train_batches`, with every step."""
    import lightning.pytorch as pl

    from nemo_longpo.nemo.data_module import refuse_other_steps

    plain = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "barebones": False}
    refuse_other_steps(pl.Trainer(**plain, max_steps=5))
    with pytest.raises(InputError, match=rf"trainer\.{setting}\b.*(is {value}|out)"):
        refuse_other_steps(pl.Trainer(**plain, **{"max_steps": 5, setting: value}))


@pytest.mark.parametrize("state", [TRAINED, {"consumed_samples": 12}], ids=["same order", "older checkpoint"])
def test_continues_after_trained_documents(state, monkeypatch):
    from nemo_longpo.nemo.data_module import LongPODataModule

    monkeypatch.setattr("nemo_longpo.nemo.data_module.update_num_microbatches", lambda **told: None)
    data = LongPODataModule("shards", **TRAINED["order"])
    data.load_state_dict(state)
    assert data.data_sampler.init_consumed_samples == 12
