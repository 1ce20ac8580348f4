"""All ranks hold a job's files to their sizes and hashes: checkpoints before they are loaded, shards before step 1."""

import socket
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
from nemo.utils import logging
from tqdm import tqdm

from nemo_longpo.checkpoints import integrity
from nemo_longpo.checkpoints.completeness import require_complete
from nemo_longpo.errors import InputError, one_line
from nemo_longpo.shards.manifest import Known, ShardFile, State, is_known, read_known, state_of, write_known
from nemo_longpo.shards.reader import ShardReader

from .together import gather_from_all, raise_first, raise_on_all

CHECKED_SHARDS = "checked_shards.json"


def check_checkpoint(checkpoint: Path, *, hashes: bool) -> None:
    """Called by every rank of the job; the files must lie where all of them see them.

    Rank 0 looks at names and sizes. With `hashes` every file is read by one rank, which costs 0.6 s of a core per GB,
    divided by the number of ranks as far as the number of files allows.

    Raises:
        InputError: on all ranks the same, if any of them found a file that is missing or damaged.
    """
    rank = dist.get_rank()

    def check_names_and_sizes() -> None:
        require_complete(checkpoint)
        integrity.check(checkpoint, hashes=False)

    def check_share() -> None:
        record = integrity.read_record(checkpoint) or {}
        share = integrity.share_of(record, rank, dist.get_world_size())
        title = f"hashes of {checkpoint.name}, first rank's share"
        with integrity.show_progress(title, share, shown=rank == 0) as progress:
            integrity.check_contents(checkpoint, share, progress)

    raise_on_all(check_names_and_sizes, here=rank == 0)
    if hashes:
        raise_on_all(check_share)


def check_shards(readers: Sequence[ShardReader], directory: Path | None, *, local_rank: int, first: bool) -> None:
    """Called by every rank of the job: the first of every machine reads all files, the others wait.

    A file in `directory`, which all machines see, says what was read before. `first`, one rank of the job, shows a bar
    and writes that file.

    Raises:
        InputError: on all ranks the same, if any machine found a file that is not as it was written.
    """
    memory = None if directory is None else directory / CHECKED_SHARDS
    known = read_known(memory) if memory is not None else {}
    problem, found = _read(readers, known, first) if local_rank == 0 else (None, {})
    results = gather_from_all((problem, socket.gethostname(), found))
    if first and memory is not None and any(files for _, _, files in results):
        try:
            write_known(memory, known, {machine: files for _, machine, files in results if files})
        except (OSError, InputError) as error:
            logging.warning(f"A restart reads all shards again: {one_line(error)}")
    raise_first(problem for problem, _, _ in results)


def _read(readers: Sequence[ShardReader], known: Known, shown: bool) -> tuple[str | None, dict[str, State]]:
    """Return the first problem, if any, and the files that were found right before it."""
    machine = socket.gethostname()

    def is_new(reader: ShardReader, file: ShardFile) -> bool:
        return not is_known(known, machine, reader.directory / file.name, file.sha256)

    unread = [
        (reader, {file.name: file for file in reader.manifest.files if is_new(reader, file)}) for reader in readers
    ]
    found: dict[str, State] = {}
    total = sum(file.bytes for _, files in unread for file in files.values())
    with tqdm(desc="hashes of shards", total=total, unit="B", unit_scale=True, delay=2, disable=not shown) as bar:
        for reader, files in unread:
            # Before the bytes, so that a file that changes meanwhile is another one next time.
            states = {name: state_of(reader.directory / name, file.sha256) for name, file in files.items()}
            sizes = {name: file.bytes for name, file in files.items()}
            try:
                reader.check_hashes(integrity.hash_files(reader.directory, sizes, bar.update))
            except InputError as error:
                return str(error), found
            except OSError as error:
                return f"{error.filename or reader.directory} cannot be read: {error.strerror}; copy it again", found
            found |= {str((reader.directory / name).absolute()): state for name, state in states.items()}
    return None, found
