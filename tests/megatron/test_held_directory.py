"""Two processes and one directory of a run; and one name for two directories."""

import os
import signal

import pytest
from support.held_lock import hold
from support.jobs import directory_jobs

from nemo_longpo.errors import InputError


def test_one_run_at_a_time(tmp_path):
    from nemo_longpo.megatron.held_directory import held

    inputs = tmp_path / "run" / "longpo" / "inputs"
    lock = inputs / "lock"
    with held(inputs, first=True):
        assert hold(lock).wait() == 1
        with pytest.raises(ZeroDivisionError), held(inputs / "other", first=True):
            _ = 1 / 0
        assert hold(lock).wait() == 1
        if (fork := os.fork()) == 0:  # as a data worker is one, which ends after its parent
            os._exit(0)
        os.waitpid(fork, 0)
        assert hold(lock).wait() == 1
    assert hold(lock).wait() == 0

    lock.write_text("node7 77 mark")
    with hold(lock, 600) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=r"another run writes into .*run/longpo \(process 77 on node7\)"):
            held(inputs, first=True).__enter__()
        assert lock.read_text() == "node7 77 mark"
        other.send_signal(signal.SIGKILL)
    with held(inputs, first=True):
        assert str(os.getpid()) in lock.read_text()


@pytest.mark.distributed
def test_all_machines_see_one_directory(workers, tmp_path):
    """Here each rank has a directory of its own, with what an earlier run has left in it."""
    shared = {"directories": [str(tmp_path / "shared")] * 3}
    assert workers.run(directory_jobs.refusal, 3, **shared) == ["", "", ""]
    own = {"directories": [str(tmp_path / f"node-{rank}" / "inputs") for rank in range(3)]}
    for _ in range(2):
        messages = workers.run(directory_jobs.refusal, 3, **own)
        assert messages == [messages[0]] * 3
        assert "is not the directory of that name on" in messages[0]
        for rank in (1, 2):
            (tmp_path / f"node-{rank}" / "inputs").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"node-{rank}" / "inputs" / "lock").write_text("node7 77 mark")
