"""Every file of the shards is held to its hash once on every machine of a job, before the first step."""

import socket
from collections.abc import Sequence
from pathlib import Path

from nemo.utils import logging
from tqdm import tqdm

from nemo_longpo.checkpoints.integrity import hash_files
from nemo_longpo.errors import InputError, one_line
from nemo_longpo.shards.known_hashes import HashedFile, Known, is_known, read_known, write_known
from nemo_longpo.shards.manifest import ShardFile
from nemo_longpo.shards.reader import ShardReader

from .together import gather_from_all, raise_first

CHECKED_SHARDS = "checked_shards.json"


def check_hashes(readers: Sequence[ShardReader], memory: Path | None, *, local_rank: int, first: bool) -> None:
    """All ranks call it: the first of every machine reads, the others wait.

    `memory`, a file that all machines see, says what was read before. `first`, one rank of the job, shows a bar and
    writes the memory.

    Raises:
        InputError: on all ranks the same, if any machine found a file that is not as it was written.
    """
    known = read_known(memory) if memory is not None else {}
    problem, found = _read(readers, known, first) if local_rank == 0 else (None, {})
    results = gather_from_all((problem, socket.gethostname(), found))
    if first and memory is not None and any(files for _, _, files in results):
        try:
            write_known(memory, known, {machine: files for _, machine, files in results if files})
        except (OSError, InputError) as error:
            logging.warning(f"A restart reads all shards again: {one_line(error)}")
    raise_first([problem for problem, _, _ in results])


def _read(readers: Sequence[ShardReader], known: Known, shown: bool) -> tuple[str | None, dict[str, HashedFile]]:
    """The first problem, if any, and what was found right before it."""
    machine = socket.gethostname()
    found: dict[str, HashedFile] = {}
    unread = [
        (reader, {file.name: file for file in reader.manifest.files if not _knows(known, machine, reader, file)})
        for reader in readers
    ]
    total = sum(file.bytes for _, files in unread for file in files.values())
    with tqdm(desc="hashes of shards", total=total, unit="B", unit_scale=True, delay=2, disable=not shown) as bar:
        for reader, files in unread:
            # Before the bytes, so that a file that changes meanwhile is another one next time.
            states = {name: HashedFile.of(reader.directory / name, file.sha256) for name, file in files.items()}
            try:
                hashes = hash_files(reader.directory, {name: file.bytes for name, file in files.items()}, bar.update)
                reader.check_hashes(hashes)
            except InputError as error:
                return str(error), found
            except OSError as error:
                return f"{error.filename or reader.directory} cannot be read: {error.strerror}; copy it again", found
            found |= {str((reader.directory / name).absolute()): state for name, state in states.items()}
    return None, found


def _knows(known: Known, machine: str, reader: ShardReader, file: ShardFile) -> bool:
    return is_known(known, machine, reader.directory / file.name, file.sha256)
