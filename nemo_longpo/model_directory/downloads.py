"""The small files of a model directory, which may be what a failed download left in their place."""

import codecs
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.json_input import read_json_object

ADVICE = "download it again, or correct it"
_LFS_POINTER = b"version https://git-lfs"
_WEB_PAGE = (b"<!doctype html", b"<html")


def cache_hint(path: Path) -> str:
    """The ending of an error about the root of a model in the Hub's cache, which keeps the model in `snapshots/`."""
    snapshots = sorted((path / "snapshots").glob("*/config.json"), key=lambda file: file.lstat().st_mtime)
    return f"; it is a model's root in the Hub's cache, give its snapshot {snapshots[-1].parent}" if snapshots else ""


def check_download(path: Path) -> None:
    """Raises InputError if the file is absent, cannot be read, or is not what was asked for. Reads 64 bytes."""
    if not path.exists():
        broken = f"is a link to {path.readlink()}, which does not exist" if path.is_symlink() else "does not exist"
        raise InputError(f"{path} {broken}; download the model again")
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if start.startswith(_LFS_POINTER):
        raise InputError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in {path.parent}")
    if start.startswith(_WEB_PAGE):
        raise InputError(
            f"{path} is a web page, not the file that was asked for; log in where the model asks for it, and download "
            "the file again"
        )


def read_model_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises InputError if the file is absent, is not what was asked for, holds no object, or begins with a byte order
    mark: this project reads one elsewhere, but transformers does not.
    """
    check_download(path)
    content = read_json_object(path, ADVICE)
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            raise InputError(
                f"{path} begins with a byte order mark, which transformers cannot read; save it as UTF-8 without one"
            )
    return content
