"""Whether a checkpoint's files are those that were written: their sizes and hashes, in a record beside them.

`Recorder` writes the records of a run's checkpoints while training goes on.

Names in the record are relative to the checkpoint, so it stays true when the directory is moved or copied. A checkpoint
without a record (stock NeMo's, an older one, one whose run was killed before the record) is not checked here.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nemo_longpo import atomic, typed_fields
from nemo_longpo.errors import InputError

RECORD = "integrity.json"
"""In the checkpoint's directory; of a NeMo one beside `weights` and `context`."""

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


@dataclass(frozen=True)
class _Record:
    files: dict[str, RecordedFile]


def list_files(checkpoint: Path) -> dict[str, int]:
    """Return the size by relative name of every file that belongs to a checkpoint.

    Links, locks, hidden files (except `.metadata` beside the tensors) and the record itself do not.
    """
    found: dict[str, int] = {}
    for folder, folders, names in os.walk(checkpoint):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            relative = path.relative_to(checkpoint).as_posix()
            hidden = name.startswith(".") and relative not in (".metadata", "weights/.metadata")
            if relative != RECORD and not hidden and not name.endswith(".lock") and not path.is_symlink():
                found[relative] = path.stat().st_size
    return found


def hash_files(checkpoint: Path, names: Mapping[str, int], progress: Progress = _ignore) -> dict[str, str]:
    """Return the hash of each file, a few at a time. Reading and hashing let other threads run. Raises OSError."""
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
    """Hash all files of a complete checkpoint and write the record. Raises InputError if the disk is full."""
    sizes = list_files(checkpoint)
    hashes = hash_files(checkpoint, sizes, progress)
    content = {"version": _VERSION, "files": {name: {"size": sizes[name], ALGORITHM: hashes[name]} for name in sizes}}
    atomic.write_file(
        checkpoint / RECORD, json.dumps(content, indent=1) + "\n", kept="the checkpoint itself is complete"
    )


def read_record(checkpoint: Path) -> dict[str, RecordedFile] | None:
    """Return the recorded files by relative name; None if there is no record.

    Raises InputError if the record is not readable, or names a file outside the checkpoint.
    """
    path = checkpoint / RECORD
    if not path.exists():
        return None
    files = typed_fields.read_versioned(path, _Record, _VERSION, COPY_AGAIN).files
    for name in files:
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or "\0" in name:
            raise InputError(f"{path} names a file outside the checkpoint, {name!r}; {COPY_AGAIN}")
    return files


def check_sizes(checkpoint: Path, record: Mapping[str, RecordedFile]) -> None:
    """Raises InputError if a recorded file is missing or has another size."""
    for name, recorded in record.items():
        path = checkpoint / name
        if not path.is_file():
            raise InputError(f"{path} is missing; {COPY_AGAIN}")
        size = path.stat().st_size
        if size != recorded.size:
            raise InputError(f"{path} has {size} bytes and was written with {recorded.size}; {_ON_PURPOSE}")


def check_contents(checkpoint: Path, files: Mapping[str, RecordedFile], progress: Progress = _ignore) -> None:
    """Raises InputError, naming the first one, if some of these files are not those that were written."""
    try:
        hashes = hash_files(checkpoint, {name: recorded.size for name, recorded in files.items()}, progress)
    except OSError as error:
        raise InputError(f"{error.filename or checkpoint} cannot be read: {error.strerror}; {COPY_AGAIN}") from error
    for name, recorded in sorted(files.items()):
        if hashes[name] != recorded.sha256:
            raise InputError(
                f"{checkpoint / name} is damaged: its {ALGORITHM} is {hashes[name][:12]}… and was written as "
                f"{recorded.sha256[:12]}…; {_ON_PURPOSE}"
            )


def check(checkpoint: Path, *, hashes: bool, below: str = "") -> None:
    """Hold a checkpoint to its record, if it has one: sizes, and hashes if they are asked for.

    `below` limits this to the files under a directory ("context/"). Raises InputError if a file is missing, or not the
    one that was written.
    """
    record = {name: file for name, file in (read_record(checkpoint) or {}).items() if name.startswith(below)}
    check_sizes(checkpoint, record)
    if hashes:
        with show_progress(f"hashes of {checkpoint.name}", record) as progress:
            check_contents(checkpoint, record, progress)


@contextmanager
def show_progress(title: str, files: Mapping[str, RecordedFile], *, shown: bool = True) -> Iterator[Progress]:
    """Show a bar over the bytes of the files, for what takes longer than two seconds."""
    from tqdm import tqdm

    total = sum(recorded.size for recorded in files.values())
    with tqdm(desc=title, total=total, unit="B", unit_scale=True, delay=2, leave=False, disable=not shown) as bar:
        yield bar.update


def share_of(files: Mapping[str, RecordedFile], rank: int, ranks: int) -> dict[str, RecordedFile]:
    """Return the files that one of `ranks` reads. Together they read every file once, about equally many bytes each."""
    loads = [0] * ranks
    share: dict[str, RecordedFile] = {}
    for name in sorted(files, key=lambda name: (-files[name].size, name)):
        reader = loads.index(min(loads))
        loads[reader] += files[name].size
        if reader == rank:
            share[name] = files[name]
    return share


def fingerprint(checkpoint: Path) -> str:
    """Return one hash for all files of a checkpoint, from the record and therefore at no cost.

    Without a record it is made of names and sizes of all files, the content of those below 16 MiB and samples of the
    others. It tells models, their configurations and their trained weights apart, but not every single byte.
    """
    record = read_record(checkpoint)
    if record is not None:
        hashes = {name: recorded.sha256 for name, recorded in record.items()}
    else:
        sizes = list_files(checkpoint)
        small = {name: size for name, size in sizes.items() if size < _SMALL}
        samples = {name: _hash_samples(checkpoint / name, sizes[name]) for name in sizes.keys() - small.keys()}
        hashes = hash_files(checkpoint, small) | samples
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.new(ALGORITHM, lines.encode()).hexdigest()


_SMALL = 1 << 24
_SAMPLES, _SAMPLE = 64, 1 << 16


def _hash_samples(path: Path, size: int) -> str:
    """Hash 64 pieces of 64 KiB, evenly spaced from the first bytes to the last."""
    digest = hashlib.new(ALGORITHM, str(size).encode())
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


class _Stopped(Exception):
    """The record is not wanted any more."""


class Recorder:
    """Writes the records of the checkpoints it is given, one after the other, in a thread of its own.

    Reading and hashing let other threads run. A checkpoint that is to be removed must be forgotten first: a file that
    appears in a directory while it is being removed would stay, and the directory with it.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-record")
        self._work: dict[Path, tuple[Future[None], threading.Event]] = {}

    def record(self, checkpoint: Path) -> None:
        """Begin the record of a complete checkpoint."""
        stop = threading.Event()

        def continue_unless_stopped(size: int) -> None:
            if stop.is_set():
                raise _Stopped

        self._work[checkpoint] = self._pool.submit(write_record, checkpoint, continue_unless_stopped), stop

    def forget(self, checkpoint: Path) -> None:
        """Stop the record; return when nothing is read or written in the checkpoint any more."""
        if checkpoint in self._work:
            future, stop = self._work.pop(checkpoint)
            stop.set()
            if not future.cancel():
                future.exception()  # waits

    def forget_all(self) -> None:
        for checkpoint in [*self._work]:
            self.forget(checkpoint)

    @property
    def unfinished(self) -> list[Path]:
        return [checkpoint for checkpoint, (future, _) in self._work.items() if not future.done()]

    def collect(self, *, wait: bool) -> None:
        """Drop the records that are finished; with `wait`, finish and drop all of them.

        Raises InputError if one could not be written because the disk is full.
        """
        for checkpoint, (future, _) in [*self._work.items()]:
            if wait or future.done():
                del self._work[checkpoint]
                future.result()
