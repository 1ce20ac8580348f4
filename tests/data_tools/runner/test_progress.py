"""The bar moves with every request, and shows the tokens that the model reads and writes."""

import os
import re
import time

from nemo_longpo import live_status
from nemo_longpo.data_tools.runner.progress import Kept, Progress, Usage, remove_shares, shares_of_parts


def tokens_per_second(bar, what):
    (found,) = re.findall(rf"([0-9,]+) tokens/s {what}", str(bar))
    return int(found.replace(",", ""))


def test_documents_move_with_requests_of_their_part(tmp_path):
    finished = set()
    with Progress("respond", [4, 4, 3], lambda: finished, tmp_path) as progress:
        assert " 0/11 " in str(progress)
        progress.begin(1, Kept(tmp_path, 1, "x"))
        progress.expect(16)
        for done, shown in ((1, "0.2"), (1, "0.5"), (2, "1"), (11, "3.8")):
            progress(Usage(done, 100 * done, generated_tokens=10))
            assert f" {shown}/11 " in str(progress)
        assert "15 requests" in str(progress)
        finished |= {0, 1}  # another process made part 0
        progress.end()
        assert " 8/11 " in str(progress)
        assert progress.usage() == {"requests": 15, "prompt_tokens": 1500, "generated_tokens": 40}
        progress.begin(2, Kept(tmp_path, 2, "x"))
        assert progress.usage() == {}


def test_only_uncached_prompt_tokens_count_as_read(tmp_path):
    with Progress("score", [1], set, tmp_path) as progress:
        progress.begin(0, Kept(tmp_path, 0, "x"))
        progress(Usage(1, 1_000_000, 200_000))
        assert tokens_per_second(progress, "read") > 10_000
        assert "written" not in str(progress)
        assert "20% cached" in str(progress)
        progress(Usage(1, 1_000_000, generated_tokens=180_000))
        assert 5 < tokens_per_second(progress, "read") / tokens_per_second(progress, "written") < 15


def test_resumed_stage_shows_earlier_progress(tmp_path):
    with Progress("respond", [4, 4], lambda: {0}, tmp_path) as progress:
        assert " 4/8 " in str(progress)


def test_the_status_says_what_the_bar_says_until_all_parts_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(live_status, "_SECONDS", 0)
    finished = {0}
    with Progress("respond", [4, 4, 3], lambda: finished, tmp_path) as progress:
        progress.begin(1, Kept(tmp_path, 1, "x"))
        progress.expect(4)
        progress(Usage(1, 100))
        status = live_status.read_status(tmp_path)
        assert (status.what, status.done, status.total, status.unit) == ("respond", 5, 11, "document")
        assert status.said.startswith("1 requests, ")
    assert live_status.read_status(tmp_path).state == "running", "others have the other parts"
    with Progress("respond", [4, 4, 3], lambda: finished, tmp_path):
        finished |= {1, 2}
    assert not list(tmp_path.iterdir())


def test_other_processes_see_the_share_done(tmp_path):
    with Progress("respond", [4, 4, 3], set, tmp_path) as progress:
        assert shares_of_parts(tmp_path) == (0, None)
        (tmp_path / "status.json").unlink()
        progress.begin(1, Kept(tmp_path, 1, "x"))
        progress.expect(4)
        progress(Usage(1, 10))
        assert shares_of_parts(tmp_path) == (0.25, 3)
        (tmp_path / ".progress-other.1").write_text("0.500 3")
        assert shares_of_parts(tmp_path) == (0.75, 3)
        progress.end()
        assert shares_of_parts(tmp_path) == (0.5, 3)
    (tmp_path / ".progress-other.2").write_text("")  # at the moment of its writing
    long_ago = time.time() - 3600
    os.utime(tmp_path / ".progress-other.1", (long_ago, long_ago))
    assert shares_of_parts(tmp_path) == (0, None)
    remove_shares(tmp_path)
    assert list(tmp_path.iterdir()) == []
