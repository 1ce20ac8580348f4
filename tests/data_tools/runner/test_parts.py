"""The stage runner writes whole parts, continues where it stopped, and refuses mixed settings."""

import json
from collections import Counter

import pytest

from nemo_longpo import live_status
from nemo_longpo.data_tools.runner.claims import Claims
from nemo_longpo.data_tools.runner.parts import PartResult, PartsJob, run_parts
from nemo_longpo.data_tools.runner.progress import Usage
from nemo_longpo.data_tools.runner.rows import PartsSource, open_parts
from nemo_longpo.data_tools.settings import WorkShare
from nemo_longpo.errors import InputError


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "input.jsonl"
    path.write_text("".join(json.dumps({"n": number}) + "\n\n" for number in range(10)), encoding="utf-8")
    return path


class Doubler:
    """A process that notes its parts, and can be made to fail at one."""

    def __init__(self, fail_at=None):
        self.fail_at = fail_at
        self.seen = []
        self.loads = 0

    def make(self):
        self.loads += 1
        return self

    def __call__(self, rows, tick):
        numbers = [row.record["n"] for row in rows]
        if self.fail_at in numbers:
            raise KeyboardInterrupt
        self.seen.append(numbers)
        tick(Usage(len(rows), 0))
        return PartResult([{"twice": 2 * number} for number in numbers], Counter(seen=len(numbers)))


def run(source, output, process, *, rank=0, world_size=1, part_size=3, part_bytes=None, **settings):
    return run_parts(
        PartsJob(
            name="double",
            source=PartsSource(source, rows_per_part=part_size, bytes_per_part=part_bytes),
            output=output,
            settings={"factor": 2, "names": ("a", "b")} | settings,
            make_process=process.make,
            share=WorkShare(rank=rank, world_size=world_size),
        )
    )


def snapshot(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_parts_report_and_settings(pairs_file, tmp_path):
    process = Doubler()
    assert run(pairs_file, tmp_path / "out", process) == {"requests": 10, "seen": 10}
    assert process.seen == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert sorted(path.name for path in (tmp_path / "out").glob("part*")) == [
        f"part-0000{number}.jsonl" for number in range(4)
    ]
    assert (tmp_path / "out" / "part-00003.jsonl").read_text() == '{"twice": 18}\n'
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == {"requests": 10, "seen": 10}
    source = PartsSource(tmp_path / "out")
    assert source.rows_in_parts == [3, 3, 3, 1]
    assert source.history() == {"double": {"factor": 2, "names": ["a", "b"]}}


def test_interrupted_and_resumed_equals_undisturbed(pairs_file, tmp_path):
    run(pairs_file, tmp_path / "whole", Doubler())
    with pytest.raises(KeyboardInterrupt):
        run(pairs_file, tmp_path / "out", Doubler(fail_at=7))
    assert len(list((tmp_path / "out").glob("part*"))) == 2
    assert not (tmp_path / "out" / "report.json").exists()
    assert live_status.read_status(tmp_path / "out").state == "stopped"
    with pytest.raises(InputError, match="2 of the 4 parts of stage 'double'"):
        PartsSource(tmp_path / "out")
    resumed = Doubler()
    run(pairs_file, tmp_path / "out", resumed)
    assert resumed.seen == [[6, 7, 8], [9]]
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")
    third = Doubler()
    run(pairs_file, tmp_path / "out", third)
    assert third.loads == 0


def test_ranks_share_the_parts(pairs_file, tmp_path):
    run(pairs_file, tmp_path / "whole", Doubler())
    first, second = Doubler(), Doubler()
    with Claims(tmp_path / "out") as other:
        (tmp_path / "out").mkdir()
        assert other.take("0")
        assert other.take("2")
        assert run(pairs_file, tmp_path / "out", second, rank=1, world_size=2) == {}
        assert second.seen == [[3, 4, 5], [9]]
    assert run(pairs_file, tmp_path / "out", first, rank=0, world_size=2) == {"requests": 10, "seen": 10}
    assert first.seen == [[0, 1, 2], [6, 7, 8]]
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_parts_of_a_lost_process_are_taken_over(pairs_file, tmp_path):
    survivor = Doubler()
    assert run(pairs_file, tmp_path / "out", survivor, rank=1, world_size=2) == {"requests": 10, "seen": 10}
    assert survivor.seen == [[3, 4, 5], [9], [0, 1, 2], [6, 7, 8]]


def test_rank_outside_the_world_is_refused(pairs_file, tmp_path):
    with pytest.raises(InputError, match="rank 2 must be below world_size 2"):
        run(pairs_file, tmp_path / "out", Doubler(), rank=2, world_size=2)


def test_changed_settings_and_input_are_named(pairs_file, tmp_path):
    run(pairs_file, tmp_path / "out", Doubler())
    before = snapshot(tmp_path / "out")
    with pytest.raises(InputError, match=r"settings.factor was 2, now 3"):
        run(pairs_file, tmp_path / "out", Doubler(), factor=3)
    with pytest.raises(InputError, match=r"settings.extra was \"absent\", now 1"):
        run(pairs_file, tmp_path / "out", Doubler(), extra=1)
    with pytest.raises(InputError, match=r"input.rows_per_part was 3, now 5"):
        run(pairs_file, tmp_path / "out", Doubler(), part_size=5)
    pairs_file.write_text(pairs_file.read_text() + '{"n": 10}\n')
    with pytest.raises(InputError, match=r"input.input.jsonl was \d+, now \d+"):
        run(pairs_file, tmp_path / "out", Doubler())
    assert snapshot(tmp_path / "out") == before


def test_failed_first_part_leaves_no_output(pairs_file, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(pairs_file, tmp_path / "out", Doubler(fail_at=0))
    assert not (tmp_path / "out").exists()


def test_foreign_outputs_are_refused(pairs_file, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match=r"not empty and holds no settings.json"):
        run(pairs_file, tmp_path / "mine", Doubler())
    with pytest.raises(InputError, match="is a file"):
        run(pairs_file, pairs_file, Doubler())


def test_lines_keep_their_numbers_across_parts(pairs_file):
    rows = [row for _, part in PartsSource(pairs_file, rows_per_part=3).parts(lambda _: True) for row in part]
    assert [row.where for row in rows] == [f"{pairs_file}, line {line}" for line in range(1, 20, 2)]
    assert [row.record["n"] for row in rows] == list(range(10))


def test_file_is_cut_by_bytes(tmp_path):
    """Lines of 10, 10, 50, 10, … bytes with blank ones between them; at most 3 lines and 25 bytes."""
    path = tmp_path / "input.jsonl"
    path.write_text("".join(f'{{"n":{n}{" " * (44 if n == 2 else 4 - len(str(n)))}}}\n\n' for n in range(9)))
    source = PartsSource(path, rows_per_part=3, bytes_per_part=25)
    found = [[row.record["n"] for row in rows] for _, rows in source.parts(lambda _: True)]
    assert found == [[0, 1], [2], [3, 4], [5, 6], [7, 8]]
    assert [row.where for row in source.rows()] == [f"{path}, line {line}" for line in range(1, 18, 2)]
    assert source.identity()["bytes_per_part"] == 25
    generous = PartsSource(path, rows_per_part=3, bytes_per_part=500)
    assert generous.rows_in_parts == [3, 3, 3]
    assert generous.identity() == PartsSource(path, rows_per_part=3).identity()


def test_effective_byte_limit_is_recorded(pairs_file, tmp_path):
    run(pairs_file, tmp_path / "out", Doubler(), part_bytes=24)
    done = snapshot(tmp_path / "out")
    with pytest.raises(InputError, match=r"input.bytes_per_part was 24, now 12"):
        run(pairs_file, tmp_path / "out", Doubler(), part_bytes=12)
    with pytest.raises(InputError, match=r"parts was \d, now 4; input.bytes_per_part was 24, now \"absent\""):
        run(pairs_file, tmp_path / "out", Doubler(), part_bytes=1000)
    run(pairs_file, tmp_path / "whole", Doubler())
    third = Doubler()
    run(pairs_file, tmp_path / "whole", third, part_bytes=1000)
    assert third.loads == 0
    assert snapshot(tmp_path / "out") == done


def test_part_settings_without_effect_are_reported(pairs_file, tmp_path, capsys):
    run(pairs_file, tmp_path / "out", Doubler())
    for source, settings, words in (
        (tmp_path / "out", {"part_size": 2}, "respond: --part-size without effect: "),
        (tmp_path / "out", {"part_size": 2, "part_bytes": 9}, "respond: --part-size and --part-bytes without effect: "),
        (tmp_path / "out", {"part_size": 2, "rank": 1, "world_size": 2}, None),
        (tmp_path / "out", {}, None),
        (pairs_file, {"part_size": 2}, None),
    ):
        capsys.readouterr()
        found = open_parts("respond", source, WorkShare(**settings)).rows_in_parts
        said = capsys.readouterr().err
        assert said == "" if words is None else said.startswith(f"{words}{source} has 4 parts, which stay as they are")
        assert found == ([3, 3, 3, 1] if source != pairs_file else [2] * 5)


def test_empty_and_missing_inputs(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        PartsSource(tmp_path / "nowhere")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no records"):
        PartsSource(tmp_path / "empty.jsonl")
