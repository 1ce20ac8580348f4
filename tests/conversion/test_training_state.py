"""The optimizer's state and the counters go from one trainer's form to the other's, and the run goes on at its step."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from support import bridge_checkpoints
from support.checkpoint_tensors import checkpoint_tensors
from support.damage import assert_refused

from nemo_longpo.cli import main
from nemo_longpo.conversion import model_on_disk
from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.conversion.torch_dist import write_checkpoint
from nemo_longpo.conversion.training_state import read_state
from nemo_longpo.errors import InputError


@pytest.fixture(scope="module")
def there_and_back(hf_models, tmp_path_factory) -> tuple[Path, Path, Path]:
    """A run of Bridge, the same in NeMo's form, and that again in Bridge's."""
    root = tmp_path_factory.mktemp("state")
    run = bridge_checkpoints.save_run(hf_models["mistral"], root / "run")
    nemo = import_checkpoint(run, root / "nemo", optimizer=True)
    return run, nemo, import_checkpoint(nemo, root / "back", format="bridge", optimizer=True) / "iter_0000004"


def test_every_tensor_goes_along(there_and_back):
    run, nemo, back = there_and_back
    expected, found, again = (checkpoint_tensors(path) for path in (run, nemo / "weights", back))
    assert any(name.startswith("optimizer.state.exp_avg_sq.") for name in expected)
    named = {
        f"optimizer.state.{kind}.module.{key}" if kind else f"module.{name}": tensor
        for name, tensor in expected.items()
        for kind, _, key in [
            name.removeprefix("optimizer.state.").partition(".") if "optimizer" in name else ("", "", "")
        ]
    }
    for ours, theirs in ((named, found), (expected, again)):
        assert ours.keys() == theirs.keys()
        assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


def test_what_nemo_reads(there_and_back):
    _, nemo, _ = there_and_back
    common = torch.load(nemo / "weights" / "common.pt", weights_only=True)
    assert (common["global_step"], common["LongPODataModule"]["consumed_samples"]) == (4, 32)
    assert common["LongPODataModule"]["order"] == {"global_batch_size": 8, "length_window": 2, "seed": 1234}
    assert common["lr_schedulers"] == [{"last_epoch": 4, "_step_count": 5}]
    progress = common["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    assert progress["optimizer"]["step"]["total"] == {"ready": 4, "completed": 4}
    (optimizer,) = common["optimizer"]
    assert [(group["pre_wd_mult"], group["pre_mult_wd"], group["lr"]) for group in optimizer["param_groups"]] == [
        (1.0, 0.1, 0.005),
        (0.0, 0.1, 0.005),
    ]


def test_what_bridge_reads(there_and_back):
    """The end of the curve is in NeMo's record of a run; an import has none, so it is 0 here."""
    _, _, back = there_and_back
    common = torch.load(back / "common.pt", weights_only=True)
    expected = bridge_checkpoints.common_state(4)
    for group in expected["optimizer"]["param_groups"]:
        group["min_lr"] = 0.0
    assert common["optimizer"] == expected["optimizer"]
    assert (common["iteration"], common["opt_param_scheduler"]["num_steps"]) == (4, 32)
    assert common["content_metadata"] == expected["content_metadata"]
    counters = torch.load(back / "train_state.pt", weights_only=True)
    assert (int(counters["step"]), int(counters["consumed_train_samples"])) == (4, 32)
    record = yaml.safe_load((back / "run_config.yaml").read_text())
    assert record["checkpoint"]["save_optim"] is True
    assert (record["dataset"], record["train"]) == ({"length_window": 2, "seed": 1234}, {"global_batch_size": 8})
    assert (back.parent / "latest_checkpointed_iteration.txt").read_text() == "4"


def test_what_cannot_go_on_is_refused(hf_models, nemo_checkpoints, tmp_path, capsys):
    run = bridge_checkpoints.save_run(hf_models["mistral"], tmp_path / "run")
    record = yaml.safe_load((run / "run_config.yaml").read_text())
    own = shutil.copytree(run, tmp_path / "own" / run.name)
    bridge_checkpoints.describe(own, record["model"], dataset={"seed": 1})
    by_rank = shutil.copytree(run, tmp_path / "by-rank" / run.name)
    metadata = {"content_metadata": {"distrib_optim_sharding_type": "dp_reshardable"}}
    write_checkpoint(by_rank, [], {}, common=bridge_checkpoints.common_state(4) | metadata)
    for model, message in (
        (hf_models["mistral"], "holds no optimizer of a whole model; leave out --optimizer"),
        (nemo_checkpoints["mistral"], "cannot go on in another trainer: there is none, or leave out --optimizer"),
        (own, "it was not trained with nemo_longpo"),
    ):
        command = ["import", "--format", "bridge", "--optimizer", "--model", str(model)]
        assert_refused([*command, "--output", str(tmp_path / "output")], message, tmp_path, capsys)
    stored = model_on_disk.stored_weights(by_rank)

    with pytest.raises(InputError, match=r"save with checkpoint.dist_ckpt_optim_fully_reshardable=True first"):
        read_state(stored, {})
    assert main(["convert", "import", "--model", str(own), "--output", str(tmp_path / "weights")]) == 0
