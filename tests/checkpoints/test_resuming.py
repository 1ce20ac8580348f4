"""A run goes on from its newest checkpoint, and never starts over beside one in silence."""

from pathlib import Path

import pytest

from nemo_longpo.checkpoints.run_directory import find_resume_point, list_checkpoints, refuse_to_start_beside
from nemo_longpo.errors import InputError

SMALL = ("weights/common.pt", "weights/.metadata", "weights/metadata.json", "context/io.json", "context/model.yaml")
PARTS = (*SMALL, "weights/__0_0.distcp")


@pytest.fixture
def folder(tmp_path) -> Path:
    for step in (2, 4):
        for part in PARTS:
            path = tmp_path / f"global_step={step}" / part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(part)
    return tmp_path


def test_newest_checkpoint_is_the_resume_point(folder):
    assert find_resume_point(folder) == folder / "global_step=4"


@pytest.mark.parametrize("place", ["global_step=4", "global_step=4/weights", "global_step=4-last/weights"])
def test_resuming_from_the_newest_is_allowed(folder, place):
    (folder / "global_step=4-last").symlink_to("global_step=4")
    refuse_to_start_beside(folder, folder / place)


def test_a_new_run_has_nothing_beside_it(tmp_path):
    assert find_resume_point(tmp_path / "nothing yet") is None
    refuse_to_start_beside(tmp_path / "nothing yet", None)


@pytest.mark.parametrize("start", [None, "elsewhere/weights"])
def test_starting_over_is_refused(folder, start):
    with pytest.raises(InputError, match=r"global_step=4\), and this run would start over .* give another log.log_dir"):
        refuse_to_start_beside(folder, start and Path(start))


def test_going_back_is_refused(folder):
    with pytest.raises(InputError, match=r"would go back to .*global_step=2 although .*global_step=4 is newer"):
        refuse_to_start_beside(folder, folder / "global_step=2" / "weights")


def test_damaged_checkpoint_is_left_out_with_a_warning(folder):
    (folder / "global_step=4" / "weights" / "common.pt").unlink()
    assert find_resume_point(folder) == folder / "global_step=2"
    refuse_to_start_beside(folder, folder / "global_step=2")
    (line,) = list_checkpoints(folder).describe_left_out()
    assert line.endswith("global_step=4/weights/common.pt is missing or empty")


def test_only_damaged_checkpoints_is_an_error(folder):
    for step in (2, 4):
        (folder / f"global_step={step}" / "weights" / ".metadata").unlink()
    with pytest.raises(
        InputError, match=r"global_step=4/weights/.metadata is missing or empty, and .* to start the run over"
    ):
        find_resume_point(folder)
    with pytest.raises(InputError, match=r"global_step=4\), and this run would start over"):
        refuse_to_start_beside(folder, None)
    (folder / "global_step=6-unfinished").touch()
    (folder / "global_step=6").mkdir()
    with pytest.raises(InputError, match="to start the run over"):
        find_resume_point(folder)


def test_a_run_killed_in_its_first_save_begins_again(folder):
    for step in (2, 4):
        (folder / f"global_step={step}-unfinished").touch()
    assert find_resume_point(folder) is None
    refuse_to_start_beside(folder, None)
    assert len(list_checkpoints(folder).describe_left_out()) == 2


def test_kill_in_a_later_save_needs_no_warning(folder):
    (folder / "global_step=4-unfinished").touch()
    assert find_resume_point(folder) == folder / "global_step=2"
    assert list_checkpoints(folder).describe_left_out() == []


def test_a_run_directory_behind_a_link(folder, tmp_path_factory):
    link = tmp_path_factory.mktemp("elsewhere") / "run"
    link.symlink_to(folder)
    refuse_to_start_beside(link, folder / "global_step=4" / "weights")
    with pytest.raises(InputError, match="would go back to"):
        refuse_to_start_beside(link, link / "global_step=2" / "weights")


def test_going_back_to_a_damaged_checkpoint_is_refused(folder):
    (folder / "global_step=2" / "context" / "model.yaml").unlink()
    with pytest.raises(InputError, match=r"would go back to .*global_step=2 although .*global_step=4 is newer"):
        refuse_to_start_beside(folder, folder / "global_step=2" / "weights")
