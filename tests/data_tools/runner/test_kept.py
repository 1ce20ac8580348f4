"""Requests of a stopped process: whole lines of the same work are used until the part is finished."""

from nemo_longpo.data_tools.runner.progress import Kept, remove_kept


def test_values_are_kept_until_the_part_ends(tmp_path):
    first = Kept(tmp_path, 3, "abc")
    assert first.get("a") is None
    first.put("a", [1, 0.1])
    first.put("b", {"ids": [1]})
    again = Kept(tmp_path, 3, "abc")
    assert (again.get("a"), again.get("b"), again.get("c")) == ([1, 0.1], {"ids": [1]}, None)
    assert Kept(tmp_path, 3, "other settings").get("a") is None
    assert Kept(tmp_path, 3, "ab").get("a") is None
    assert Kept(tmp_path, 4, "abc").get("a") is None
    again.drop()
    assert list(tmp_path.iterdir()) == []


def test_cut_line_is_ignored(tmp_path):
    kept = Kept(tmp_path, 0, "abc")
    kept.put("whole", 1)
    kept.put("cut", list(range(100)))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    kept.put("behind", 2)
    again = Kept(tmp_path, 0, "abc")
    assert (again.get("whole"), again.get("cut"), again.get("behind")) == (1, None, 2)


def test_parts_are_dropped_by_their_number(tmp_path):
    for part in (1, 10):
        Kept(tmp_path, part, "abc").put("a", part)
    Kept(tmp_path, 1, "other settings").drop()
    assert Kept(tmp_path, 1, "abc").get("a") is None
    assert Kept(tmp_path, 10, "abc").get("a") == 10
    remove_kept(tmp_path)
    assert list(tmp_path.iterdir()) == []
