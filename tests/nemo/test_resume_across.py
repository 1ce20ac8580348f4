"""A run goes on from its state in the other trainer's form as if it had never left."""

import pytest
import torch
from support.checkpoint_tensors import checkpoint_tensors
from support.jobs import nemo_jobs

from nemo_longpo.checkpoints.run_directory import find_checkpoint, read_metrics
from nemo_longpo.conversion.importer import import_checkpoint

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("workbench", ["mistral"], indirect=True)
def test_a_run_goes_on_after_the_way_through_bridge(workbench, workers, tmp_path):
    """Two steps in NeMo, across and back, two more: the same losses and bits as four.

    tests/bridge/test_bridge_conversion.py holds Bridge's half.
    """

    def train(run: str) -> None:
        settings = {
            "data.paths": str(workbench.shards),
            "data.global_batch_size": 4,
            "resume.restore_config.path": str(workbench.checkpoint),
            "log.log_dir": str(tmp_path / run),
            "log.ckpt.every_n_train_steps": 2,
            "log.ckpt.save_top_k": -1,
            "optim.config.lr": 1e-2,
            "trainer.max_steps": 4,
        }
        workers.run(nemo_jobs.finetune, 1, overrides=settings, checkpoints=True)

    train("straight")
    folder = tmp_path / "straight" / "longpo" / "checkpoints"
    across = import_checkpoint(folder / "global_step=2", tmp_path / "bridge", format="bridge", optimizer=True)
    again = tmp_path / "again" / "longpo" / "checkpoints"
    again.mkdir(parents=True)
    import_checkpoint(across, again / "global_step=2", optimizer=True)
    train("again")
    names = "step", "loss", "grad_norm", "lr"
    straight, resumed = (
        [[line[name] for name in names] for line in read_metrics(tmp_path / run)] for run in ("straight", "again")
    )
    assert resumed == straight[2:]
    expected, found = (checkpoint_tensors(find_checkpoint(tmp_path / run) / "weights") for run in ("straight", "again"))
    assert expected.keys() == found.keys()
    assert not [name for name in expected if not torch.equal(expected[name], found[name])]
