"""Every way in which foreign YAML can be unreadable ends in one sentence that names the file."""

import pytest

from nemo_longpo.errors import InputError
from nemo_longpo.yaml_input import read_yaml_mapping

BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))


def test_values_and_aliases_come_through(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_bytes("\ufeffa: &x {b: [1, 2.5, null, é]}\nc: *x\n".encode())
    assert read_yaml_mapping(path, "do") == {"a": {"b": [1, 2.5, None, "é"]}, "c": {"b": [1, 2.5, None, "é"]}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: [", "is not readable YAML: "),
        (b"\xff", "is not readable YAML: "),
        (b"[" * 5_000, "is not readable YAML: RecursionError"),
        (b"a: " + b"1" * 5_000, "is not readable YAML: Exceeds the limit"),
        (b"a: 2001-99-99", "is not readable YAML: month must be in 1..12"),
        (b"a: !!int ''", "is not readable YAML: "),
        (b"a: !!timestamp x", "is not readable YAML: "),
        (b"a: !!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
        (b"- a", "should hold a mapping of names to values, not a list"),
        (b"", "should hold a mapping of names to values, not a NoneType"),
        (b'a: ["\\ud800"]', "holds half of a character"),
        (b"a: &x [*x]", "has a value within itself"),
        (BOMB.encode(), "values once its aliases are written out"),
    ],
)
def test_unreadable(tmp_path, content, reason):
    path = tmp_path / "data.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_yaml_mapping(path, "mend it")
    assert str(caught.value).startswith(f"{path} ")
    assert reason in str(caught.value)
    assert str(caught.value).endswith("; mend it")


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.yaml does not exist; do$"):
        read_yaml_mapping(tmp_path / "nowhere.yaml", "do")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/data.yaml does not exist; do$"):
        read_yaml_mapping(tmp_path / "file" / "data.yaml", "do")
    with pytest.raises(InputError, match=r"cannot be read: Is a directory; do$"):
        read_yaml_mapping(tmp_path, "do")
