"""A claim has one living owner; claims of dead or silent ones are taken over."""

import os
import subprocess
import sys
import time

from support.waiting import wait_until

from nemo_longpo.data_tools.runner.claims import Claims, remove_claims

HOLD = """
import sys, time
from pathlib import Path
from nemo_longpo.data_tools.runner.claims import Claims
with Claims(Path(sys.argv[1])) as claims:
    assert claims.take("7")
    print("held", flush=True)
    time.sleep(600)
"""


def hold_in_another_process(directory):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def files(directory):
    return sorted(path.name for path in directory.iterdir())


def test_claim_has_one_owner_and_is_removed(tmp_path):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.take("7")
        assert not second.take("7")
        assert second.take("8")
        first.release("7")
        assert second.take("7")
    assert files(tmp_path) == []


def test_dead_local_owner_loses_claim_at_once(tmp_path):
    owner = hold_in_another_process(tmp_path)
    with Claims(tmp_path) as claims:
        assert not claims.take("7")
        owner.kill()
        owner.wait()
        assert files(tmp_path) == [".claim-7"]
        assert claims.take("7")
    assert files(tmp_path) == []


def test_silent_remote_owner_loses_claim(tmp_path):
    (tmp_path / ".claim-7").write_text("elsewhere 1")
    with Claims(tmp_path, lease_seconds=100) as claims:
        assert not claims.take("7")
        long_ago = time.time() - 200
        os.utime(tmp_path / ".claim-7", (long_ago, long_ago))
        assert claims.take("7")


def test_living_owner_keeps_its_claim(tmp_path):
    with Claims(tmp_path, lease_seconds=0.3) as claims:
        assert claims.take("7")
        before = (tmp_path / ".claim-7").stat().st_mtime_ns
        wait_until(lambda: (tmp_path / ".claim-7").stat().st_mtime_ns != before)


def test_leftovers_can_be_removed(tmp_path):
    (tmp_path / ".claim-7").write_text("elsewhere 1")
    (tmp_path / "part-00007.jsonl").write_text("")
    remove_claims(tmp_path)
    assert files(tmp_path) == ["part-00007.jsonl"]
