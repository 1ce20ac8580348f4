"""Text from files is printed safely: it cannot move the cursor, hide, or end a line."""

import json
import os
import shutil

import pytest
from support.tiny_models import save_tiny

from nemo_longpo.cli import main
from nemo_longpo.terminal import printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("naïve 你好 🙂 مرحبا\ttab", "naïve 你好 🙂 مرحبا\ttab"),
        ("👩‍👩‍👧", "👩‍👩‍👧"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("one\r\ntwo", r"one\r\ntwo"),
        ("a\u202ecod.exe\u2066", r"a\u202ecod.exe\u2066"),
        ("\u2028\ufeff\U000e0041", r"\u2028\ufeff\U000e0041"),
        ("caf\udce9.txt", r"caf\udce9.txt"),
        ("at https://me:secret@host/v1 and http://host/@x", "at https://***@host/v1 and http://host/@x"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_lines_that_are_meant_stay():
    assert printable_lines("a\nb\x1b\n") == "a\nb\\x1b\n"


EVIL = "\x1b]0;owned\x07\x1b[2K\rlongpo: all is well\n\u202e"


def test_error_is_one_line(tmp_path, capsys):
    pairs = tmp_path / f"{EVIL}.jsonl"
    pairs.write_text("no JSON\n")
    assert main(["data", "filter", "--input", str(pairs), "--output", str(tmp_path / "output")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("longpo: error: ")
    assert r"\x1b]0;owned\x07\x1b[2K\rlongpo: all is well\n\u202e" in err
    assert err.endswith("\n")
    assert not set(EVIL) & set(err[:-1]) - set(r"]0;owned[2Klongpo: all is well")


def test_a_report_shows_foreign_values_as_text(tmp_path, capsys):
    model = save_tiny(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": [EVIL], "rope_scaling": {"type": EVIL}}))
    assert main(["convert", "inspect", str(model)]) in (0, 1)
    out = capsys.readouterr().out
    assert out.count(r"\x1b]0;owned\x07\x1b[2K\rlongpo: all is well\n\u202e") >= 2
    assert not {"\x1b", "\r", "\x07", "\u202e"} & set(out)


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes")
def test_undecodable_name_is_printed(tmp_path, capsysbinary):
    model = save_tiny(tmp_path / "model")
    moved = os.path.join(os.fsencode(tmp_path), b"caf\xe9\x1b")
    shutil.move(model, moved)
    assert main(["convert", "inspect", os.fsdecode(moved)]) in (0, 1)
    assert rb"caf\udce9\x1b" in capsysbinary.readouterr().out
    assert main(["convert", "inspect", os.fsdecode(moved) + "/x"]) == 2
    assert rb"caf\udce9\x1b/x" in capsysbinary.readouterr().err
