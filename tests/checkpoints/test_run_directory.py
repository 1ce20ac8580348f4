"""The newest complete checkpoint of a run is found, and no run silently starts over beside one."""

import os
import shutil
from pathlib import Path

import pytest

from nemo_longpo.checkpoints.completeness import missing_part
from nemo_longpo.checkpoints.run_directory import (
    beside_checkpoints,
    find_checkpoint,
    find_checkpoints,
    find_resume_point,
    list_checkpoints,
    log_dir_of,
    point_last_link,
    refuse_to_start_beside,
)
from nemo_longpo.errors import InputError

SMALL = ("weights/common.pt", "weights/.metadata", "weights/metadata.json", "context/io.json", "context/model.yaml")
PARTS = (*SMALL, "weights/__0_0.distcp")


def save(folder: Path, name: str) -> Path:
    checkpoint = folder / name
    for part in PARTS:
        (checkpoint / part).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / part).write_text(part)
    return checkpoint


@pytest.fixture
def folder(tmp_path) -> Path:
    """Folder of a run that was killed while checkpoint 8 replaced checkpoint 6; the link still names 6."""
    folder = tmp_path / "run" / "longpo" / "checkpoints"
    old, _ = save(folder, "global_step=6"), save(folder, "global_step=8")
    (folder / "global_step=6-last").symlink_to(old.name)
    (folder / "global_step=6-unfinished").touch()
    (old / "weights" / ".metadata").unlink()
    return folder


def test_newest_while_the_old_is_removed(folder):
    assert list_checkpoints(folder).newest == folder / "global_step=8"
    assert list_checkpoints(folder).unfinished == [folder / "global_step=6"]


def test_newest_without_a_valid_link(folder):
    shutil.rmtree(folder / "global_step=6")
    assert list_checkpoints(folder).newest == folder / "global_step=8"
    (folder / "global_step=6-last").unlink()
    assert list_checkpoints(folder).newest == folder / "global_step=8"


def test_old_checkpoint_during_a_save(folder):
    save(folder, "global_step=6")
    (folder / "global_step=6-unfinished").rename(folder / "global_step=8-unfinished")
    assert list_checkpoints(folder).newest == folder / "global_step=6"


def test_steps_are_compared_as_numbers(folder):
    newest = save(folder, "global_step=10")
    for part in (newest / "weights").iterdir():
        os.utime(part, (0, 0))
    assert list_checkpoints(folder).newest == newest


def test_names_without_steps_sort_by_time(tmp_path):
    checkpoints = [save(tmp_path / "checkpoints", name) for name in ("b", "a")]
    for seconds, checkpoint in enumerate(checkpoints):
        os.utime(checkpoint / "weights" / "metadata.json", (seconds, seconds))
    assert list_checkpoints(tmp_path / "checkpoints").complete == checkpoints


@pytest.mark.parametrize("part", [*SMALL, "weights/*.distcp"])
def test_missing_part_makes_a_checkpoint_damaged(folder, part):
    damaged = save(folder, "global_step=10")
    for file in damaged.glob(part):
        file.unlink()
    found = list_checkpoints(folder)
    assert (found.newest, found.damaged) == (folder / "global_step=8", [damaged])
    assert found.describe_left_out() == [f"{damaged} is left out: {damaged / part} is missing or empty"]
    assert missing_part(damaged) == part


def test_copied_links_are_checkpoints(folder, tmp_path):
    """As `cp -rL` leaves them."""
    shutil.rmtree(folder / "global_step=6")
    point_last_link(folder / "global_step=8")
    copied = shutil.copytree(folder, tmp_path / "copy" / "checkpoints")
    assert not any(path.is_symlink() for path in copied.iterdir())
    assert list_checkpoints(copied).newest in (copied / "global_step=8", copied / "global_step=8-last")


def test_one_relative_link_to_the_newest(folder, tmp_path):
    point_last_link(folder / "global_step=8")
    point_last_link(folder / "global_step=8")
    assert [path.name for path in folder.iterdir() if path.is_symlink()] == ["global_step=8-last"]
    moved = folder.parents[1].rename(tmp_path / "moved") / "longpo" / "checkpoints"
    assert (moved / "global_step=8-last").resolve() == (moved / "global_step=8").resolve()


@pytest.mark.parametrize("place", [".", "longpo", "longpo/checkpoints", "longpo/checkpoints/global_step=8"])
def test_every_run_folder_is_accepted(folder, place):
    run = folder.parents[1]
    (run / "tb_logs" / "longpo").mkdir(parents=True)
    assert find_checkpoint(run / place) == folder / "global_step=8"


def test_checkpoint_folder_with_another_name(folder, tmp_path):
    """`log.ckpt.dirpath` may be anything, and so may a copy."""
    copy = shutil.copytree(folder, tmp_path / "kept", symlinks=True)
    assert find_checkpoint(copy) == copy / "global_step=8"


def test_a_run_with_a_version(tmp_path):
    newest = save(tmp_path / "longpo" / "2026-01-01_00-00-00" / "checkpoints", "global_step=1")
    assert find_checkpoint(tmp_path) == newest


def test_several_runs_are_refused(folder, tmp_path):
    save(folder.parents[1] / "second" / "checkpoints", "global_step=2")
    with pytest.raises(InputError, match=r"several runs \(longpo, second\); give one of them"):
        find_checkpoint(folder.parents[1])


def test_all_complete_checkpoints_of_a_run(folder, tmp_path):
    """`folder` holds an unfinished one, too."""
    save(folder, "global_step=10")
    found = find_checkpoints(folder.parents[1])
    assert [path.name for path in found][-2:] == ["global_step=8", "global_step=10"]
    assert "global_step=6" not in [path.name for path in found]
    with pytest.raises(InputError, match=r"nowhere is not the directory of a run, .* give its log\.log_dir"):
        find_checkpoints(tmp_path / "nowhere")


def test_other_paths_are_returned_unchanged(folder, tmp_path):
    imported = save(tmp_path, "start")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").touch()
    for path in (imported, tmp_path, tmp_path / "hf", tmp_path / "nowhere"):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        assert find_checkpoint(path) == path


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("global_step=6", "global_step=6 is not finished: .* give the run's directory instead"),
        ("global_step=6-last", "global_step=6 is not finished"),
        ("gone-last", "gone-last is a link to gone, which is not there; give the run's directory instead"),
    ],
)
def test_unfinished_and_dangling_are_refused(folder, place, message):
    (folder / "gone-last").symlink_to("gone")
    with pytest.raises(InputError, match=message):
        find_checkpoint(folder / place)


def test_a_run_without_a_complete_checkpoint(folder):
    shutil.rmtree(folder / "global_step=8")
    with pytest.raises(InputError, match="holds no complete checkpoint: global_step=6 was not finished"):
        find_checkpoint(folder.parents[1])
    (folder / "global_step=6-unfinished").unlink()
    with pytest.raises(
        InputError, match=r"holds no complete checkpoint: .*global_step=6/weights/.metadata is missing or empty"
    ):
        find_checkpoint(folder.parents[1])


@pytest.mark.parametrize("part", SMALL)
def test_empty_part_counts_as_missing(folder, part):
    damaged = save(folder, "global_step=10")
    (damaged / part).write_bytes(b"")
    assert list_checkpoints(folder).damaged == [damaged]
    (damaged / part).unlink()
    (damaged / part).mkdir()
    assert missing_part(damaged) == part


def test_damaged_checkpoints(tmp_path):
    """Either half of one, or a name with a step."""
    for name in ("a/weights", "b/context", "consumed_samples=7", "notes"):
        (tmp_path / name).mkdir(parents=True)
    assert {path.name for path in list_checkpoints(tmp_path).damaged} == {"a", "b", "consumed_samples=7"}


def test_names_with_steps_are_newer(tmp_path):
    for name in ("consumed_samples=12", "consumed_samples=8", "imported"):
        save(tmp_path, name)
    assert [path.name for path in list_checkpoints(tmp_path).complete] == [
        "imported",
        "consumed_samples=8",
        "consumed_samples=12",
    ]


def test_model_directory_with_a_run_is_the_model(folder, tmp_path):
    (tmp_path / "run" / "config.json").touch()
    assert find_checkpoint(tmp_path / "run") == tmp_path / "run"
    for part in ("weights", "context"):
        (tmp_path / part).mkdir()
        assert find_checkpoint(tmp_path) == tmp_path
        (tmp_path / part).rmdir()


def test_plain_files_are_ignored(folder):
    run = folder.parents[1]
    (run / "loss_step=8.png").touch()
    (run / "checkpoints").touch()
    assert find_checkpoint(run) == folder / "global_step=8"


def test_newest_damaged_checkpoint_is_named(tmp_path):
    for step in (9, 10):
        (save(tmp_path, f"step={step}") / "weights" / "common.pt").unlink()
    with pytest.raises(InputError, match=r"step=10/weights/common.pt is missing or empty"):
        find_checkpoint(tmp_path)
    for step in (9, 10):
        (tmp_path / f"step={step}-unfinished").touch()
    with pytest.raises(InputError, match="step=10 was not finished"):
        find_checkpoint(tmp_path)


def test_copied_links_stay(folder):
    copies = [save(folder, f"global_step={step}-last") for step in (7, 8)]
    point_last_link(folder / "global_step=8")
    point_last_link(copies[1])
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert all(path.is_dir() for path in copies)


def test_leftover_link_is_replaced(folder):
    (folder / ".global_step=8-last.partial").symlink_to("global_step=6")
    point_last_link(folder / "global_step=8")
    assert [path.readlink() for path in folder.iterdir() if path.is_symlink()] == [Path("global_step=8")]


@pytest.fixture
def begun(tmp_path) -> Path:
    """Folder of a run that can continue from its newest checkpoint."""
    for step in (2, 4):
        save(tmp_path, f"global_step={step}")
    return tmp_path


def test_newest_checkpoint_is_the_resume_point(begun):
    assert find_resume_point(begun) == begun / "global_step=4"


@pytest.mark.parametrize("place", ["global_step=4", "global_step=4/weights", "global_step=4-last/weights"])
def test_resuming_from_the_newest_is_allowed(begun, place):
    (begun / "global_step=4-last").symlink_to("global_step=4")
    refuse_to_start_beside(begun, begun / place)


def test_new_run_starts(tmp_path):
    assert find_resume_point(tmp_path / "nothing yet") is None
    refuse_to_start_beside(tmp_path / "nothing yet", None)


@pytest.mark.parametrize("start", [None, "elsewhere/weights"])
def test_starting_over_is_refused(begun, start):
    with pytest.raises(InputError, match=r"global_step=4\), and this run would start over .* give another log.log_dir"):
        refuse_to_start_beside(begun, start and Path(start))


def test_going_back_is_refused(begun):
    with pytest.raises(InputError, match=r"would go back to .*global_step=2 although .*global_step=4 is newer"):
        refuse_to_start_beside(begun, begun / "global_step=2" / "weights")


def test_damaged_checkpoint_is_skipped_with_warning(begun):
    (begun / "global_step=4" / "weights" / "common.pt").unlink()
    assert find_resume_point(begun) == begun / "global_step=2"
    refuse_to_start_beside(begun, begun / "global_step=2")
    (line,) = list_checkpoints(begun).describe_left_out()
    assert line.endswith("global_step=4/weights/common.pt is missing or empty")


def test_only_damaged_checkpoints_is_an_error(begun):
    for step in (2, 4):
        (begun / f"global_step={step}" / "weights" / ".metadata").unlink()
    with pytest.raises(
        InputError, match=r"global_step=4/weights/.metadata is missing or empty, and .* to start the run over"
    ):
        find_resume_point(begun)
    with pytest.raises(InputError, match=r"global_step=4\), and this run would start over"):
        refuse_to_start_beside(begun, None)
    (begun / "global_step=6-unfinished").touch()
    (begun / "global_step=6").mkdir()
    with pytest.raises(InputError, match="to start the run over"):
        find_resume_point(begun)


def test_run_killed_in_first_save_restarts(begun):
    for step in (2, 4):
        (begun / f"global_step={step}-unfinished").touch()
    assert find_resume_point(begun) is None
    refuse_to_start_beside(begun, None)
    assert len(list_checkpoints(begun).describe_left_out()) == 2


def test_kill_in_later_save_gives_no_warning(begun):
    (begun / "global_step=4-unfinished").touch()
    assert find_resume_point(begun) == begun / "global_step=2"
    assert list_checkpoints(begun).describe_left_out() == []


def test_linked_run_directory(begun, tmp_path_factory):
    link = tmp_path_factory.mktemp("elsewhere") / "run"
    link.symlink_to(begun)
    refuse_to_start_beside(link, begun / "global_step=4" / "weights")
    with pytest.raises(InputError, match="would go back to"):
        refuse_to_start_beside(link, link / "global_step=2" / "weights")


def test_damaged_older_checkpoint_is_refused(begun):
    (begun / "global_step=2" / "context" / "model.yaml").unlink()
    with pytest.raises(InputError, match=r"would go back to .*global_step=2 although .*global_step=4 is newer"):
        refuse_to_start_beside(begun, begun / "global_step=2" / "weights")


def test_files_beside_the_checkpoints(tmp_path):
    """Those of the run with this folder, whatever it is called."""
    beside = beside_checkpoints(tmp_path / "run" / "name" / "checkpoints")
    assert beside.inputs == tmp_path / "run" / "name" / "inputs"
    assert beside.metrics == tmp_path / "run" / "tb_logs" / "name" / "metrics.jsonl"
    assert beside.command == tmp_path / "run" / "name" / "cmd-args.log"
    within = beside_checkpoints(tmp_path / "one")
    assert within.inputs == tmp_path / "one" / "inputs"
    assert log_dir_of(within.metrics) == tmp_path / "one"
    assert log_dir_of(tmp_path / "moved" / "metrics.jsonl") == tmp_path / "moved"
