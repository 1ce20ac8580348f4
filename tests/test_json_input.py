"""Every way in which foreign JSON can be unreadable ends in one sentence that names the place."""

import pytest

from nemo_longpo.errors import InputError
from nemo_longpo.json_input import parse_json, parse_json_object, read_json_object


def test_values_come_through():
    assert parse_json(b'{"a": [1, 2.5, "\\ud83d\\ude00", null]}', "here", "do") == {"a": [1, 2.5, "😀", None]}


def test_byte_order_mark_is_ignored():
    assert parse_json("\ufeff[1]".encode(), "here", "do") == [1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"", "Expecting value"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5_000, "too many digits"),
        (b'{"a": ["\\ud800"]}', "half of a character (\\ud800)"),
        (b'{"\\uDC00": 1}', "half of a character (\\udc00)"),
    ],
    ids=["syntax", "empty", "bytes", "deep", "digits", "half a character", "half a character in a key"],
)
def test_unreadable(content, reason):
    with pytest.raises(InputError) as caught:
        parse_json(content, "pairs.jsonl, line 3", "mend the line")
    assert str(caught.value).startswith("pairs.jsonl, line 3 is not readable JSON: ")
    assert reason in str(caught.value)
    assert str(caught.value).endswith("; mend the line")


def test_no_object():
    with pytest.raises(InputError, match=r"^here should hold a JSON object, not a list; do$"):
        parse_json_object("[]", "here", "do")


def test_files(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    assert read_json_object(path, "do") == {"a": 1}
    with pytest.raises(InputError, match=r"nowhere.json does not exist; do$"):
        read_json_object(tmp_path / "nowhere.json", "do")
    with pytest.raises(InputError, match=r"config.json/below does not exist; do$"):
        read_json_object(path / "below", "do")
    with pytest.raises(InputError, match=r"cannot be read: Is a directory; do$"):
        read_json_object(tmp_path, "do")
