"""Whether a checkpoint's files are those that were written: their sizes and hashes, in a record beside them.

Names in the record are relative to the checkpoint, so it stays true when the directory is moved or copied. A checkpoint
without a record (stock NeMo's, an older one, one whose run was killed before the record) is not held to anything here.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nemo_longpo.atomic import write_file
from nemo_longpo.errors import InputError
from nemo_longpo.json_input import read_json_object

RECORD = "integrity.json"
"""In the checkpoint's directory, beside `weights` and `context`."""

ALGORITHM = "sha256"
"""The quickest of the standard library where the processor has instructions for it, and `sha256sum` knows it too."""

COPY_AGAIN = "copy the checkpoint again, or take another one"
_ON_PURPOSE = f"{COPY_AGAIN} (if it was changed on purpose, remove {RECORD})"
_VERSION = 1
_BLOCK = 1 << 22
_THREADS = min(4, os.cpu_count() or 1)

Progress = Callable[[int], object]
"""Told how many bytes were read since it was last called; one call at a time."""


def _ignore(size: int) -> None:
    pass


@dataclass(frozen=True)
class RecordedFile:
    """`size` in bytes; `sha256` in hexadecimal."""

    size: int
    sha256: str


def list_files(checkpoint: Path) -> dict[str, int]:
    """Size by relative name of every file that belongs to a checkpoint: neither links, nor locks and other hidden files
    (but for `weights/.metadata`), nor the record itself."""
    found: dict[str, int] = {}
    for folder, folders, names in os.walk(checkpoint):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            relative = path.relative_to(checkpoint).as_posix()
            hidden = name.startswith(".") and relative != "weights/.metadata"
            if relative != RECORD and not hidden and not name.endswith(".lock") and not path.is_symlink():
                found[relative] = path.stat().st_size
    return found


def hash_files(checkpoint: Path, names: Mapping[str, int], progress: Progress = _ignore) -> dict[str, str]:
    """The hash of each file, a few at a time: reading and hashing let other threads run. Raises OSError."""
    lock = threading.Lock()

    def advance(size: int) -> None:
        with lock:
            progress(size)

    with ThreadPoolExecutor(_THREADS) as pool:
        largest_first = sorted(names, key=lambda name: -names[name])
        hashes = pool.map(lambda name: _hash_file(checkpoint / name, advance), largest_first)
        return dict(zip(largest_first, hashes, strict=True))


def _hash_file(path: Path, progress: Progress) -> str:
    digest, block = hashlib.new(ALGORITHM), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
            progress(size)
    return digest.hexdigest()


def write_record(checkpoint: Path, progress: Progress = _ignore) -> None:
    """Hash all files of a complete checkpoint and write the record, whole or not at all.

    Raises:
        InputError: the disk is full.
    """
    sizes = list_files(checkpoint)
    hashes = hash_files(checkpoint, sizes, progress)
    files = {name: {"size": sizes[name], ALGORITHM: hashes[name]} for name in sizes}
    content = json.dumps({"version": _VERSION, "files": files}, indent=1) + "\n"
    write_file(checkpoint / RECORD, content, kept="the checkpoint itself is complete")


def read_record(checkpoint: Path) -> dict[str, RecordedFile] | None:
    """The recorded files by relative name; None if there is no record.

    Raises:
        InputError: the record is not one.
    """
    path = checkpoint / RECORD
    if not path.exists():
        return None
    content = read_json_object(path, COPY_AGAIN)
    files = content.get("files")
    if content.get("version") != _VERSION or not isinstance(files, dict):
        raise InputError(f"{path} is no record of files in version {_VERSION}; {COPY_AGAIN}")
    return {name: _recorded_file(path, name, entry) for name, entry in files.items()}


def _recorded_file(record: Path, name: str, entry: object) -> RecordedFile:
    place = PurePosixPath(name)
    inside = not place.is_absolute() and ".." not in place.parts and "\0" not in name
    if inside and isinstance(entry, dict):
        size, sha256 = entry.get("size"), entry.get(ALGORITHM)
        if type(size) is int and isinstance(sha256, str):
            return RecordedFile(size, sha256)
    raise InputError(f"{record} does not say size and {ALGORITHM} of a file in the checkpoint under {name!r}")


def check_sizes(checkpoint: Path, record: Mapping[str, RecordedFile]) -> None:
    """Raises InputError for a recorded file that is missing or of another size."""
    for name, recorded in record.items():
        path = checkpoint / name
        if not path.is_file():
            raise InputError(f"{path} is missing; {COPY_AGAIN}")
        size = path.stat().st_size
        if size != recorded.size:
            raise InputError(f"{path} has {size} bytes and was written with {recorded.size}; {_ON_PURPOSE}")


def find_changed(checkpoint: Path, files: Mapping[str, RecordedFile], progress: Progress = _ignore) -> str | None:
    """Why the first of these files, by name, is not the one that was written; None if all are."""
    try:
        hashes = hash_files(checkpoint, {name: recorded.size for name, recorded in files.items()}, progress)
    except OSError as error:
        return f"{error.filename or checkpoint} cannot be read: {error.strerror}; {COPY_AGAIN}"
    for name, recorded in sorted(files.items()):
        if hashes[name] != recorded.sha256:
            return (
                f"{checkpoint / name} is damaged: its {ALGORITHM} is {hashes[name][:12]}… and was written as "
                f"{recorded.sha256[:12]}…; {_ON_PURPOSE}"
            )
    return None


def check(checkpoint: Path, *, hashes: bool) -> None:
    """Hold a checkpoint to its record, if it has one: sizes, and hashes if they are asked for.

    Raises:
        InputError: a file is missing, or not the one that was written.
    """
    record = read_record(checkpoint)
    if record is None:
        return
    check_sizes(checkpoint, record)
    if hashes:
        with show_progress(f"hashes of {checkpoint.name}", record) as progress:
            changed = find_changed(checkpoint, record, progress)
        if changed:
            raise InputError(changed)


def check_context(checkpoint: Path, *, hashes: bool) -> None:
    """Like `check`, for the small files under `context/` alone, which every rank reads. Raises InputError."""
    record = read_record(checkpoint) or {}
    context = {name: recorded for name, recorded in record.items() if name.startswith("context/")}
    check_sizes(checkpoint, context)
    changed = find_changed(checkpoint, context) if hashes else None
    if changed:
        raise InputError(changed)


@contextmanager
def show_progress(title: str, files: Mapping[str, RecordedFile]) -> Iterator[Progress]:
    """A bar over the bytes of the files, for what takes longer than two seconds."""
    from tqdm import tqdm

    total = sum(recorded.size for recorded in files.values())
    with tqdm(desc=title, total=total, unit="B", unit_scale=True, delay=2, leave=False) as bar:
        yield bar.update


def share_of(files: Mapping[str, RecordedFile], rank: int, ranks: int) -> dict[str, RecordedFile]:
    """What one of `ranks` reads so that together they read every file once, of about equal numbers of bytes."""
    loads = [0] * ranks
    share: dict[str, RecordedFile] = {}
    for name in sorted(files, key=lambda name: (-files[name].size, name)):
        reader = loads.index(min(loads))
        loads[reader] += files[name].size
        if reader == rank:
            share[name] = files[name]
    return share


def fingerprint(checkpoint: Path) -> str:
    """One hash for all files of a checkpoint, from the record and therefore at no cost.

    Without a record: from names and sizes of all files, the content of those below 16 MiB and samples of the others,
    so it tells models, their configurations and their trained weights apart, but not every single byte.
    """
    digest = hashlib.new(ALGORITHM)
    for line in _lines(checkpoint):
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


_SMALL = 1 << 24
_SAMPLES, _SAMPLE = 64, 1 << 16


def _hash_samples(path: Path, size: int) -> str:
    """Of 64 pieces of 64 KiB, evenly spaced from the first bytes to the last."""
    digest = hashlib.new(ALGORITHM, str(size).encode())
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _lines(checkpoint: Path) -> Iterator[str]:
    record = read_record(checkpoint)
    if record is not None:
        yield from (f"{recorded.sha256}  {name}" for name, recorded in sorted(record.items()))
        return
    for name, size in sorted(list_files(checkpoint).items()):
        path = checkpoint / name
        yield f"{_hash_samples(path, size) if size >= _SMALL else _hash_file(path, _ignore)}  {name}"
