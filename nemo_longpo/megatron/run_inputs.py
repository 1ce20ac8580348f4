"""Check a run's inputs against their manifests and against what the run started with; all ranks fail alike.

Sizes and hashes of checkpoints are checked before they are loaded, those of shards before step 1. A new run logs at
its start whether the weights that it starts from scored its shards.
"""

import socket
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from nemo_longpo.checkpoints import completeness, integrity, run_directory
from nemo_longpo.checkpoints.run_inputs import Given, RunInputs, read_inputs, read_origin, write_inputs, write_versions
from nemo_longpo.errors import InputError, one_line
from nemo_longpo.objective import Objective
from nemo_longpo.run_log import LOG
from nemo_longpo.shards.fingerprint import weights_fingerprint
from nemo_longpo.shards.manifest import Known, ShardFile, State, is_known, read_known, state_of, write_known
from nemo_longpo.shards.reader import ShardReader

from .topology import gather_from_all, raise_first, raise_on_all


def loss_settings(objective: Objective) -> dict[str, Any]:
    """Return every setting of the loss under the name by which it is set."""
    return {f"model.objective.{name}": value for name, value in asdict(objective).items()}


def hold_inputs(
    directory: Path,
    start: Path | None,
    readers: Sequence[ShardReader],
    objective: Objective,
    *,
    resumed: Path | None,
    accept_changes: bool,
) -> None:
    """Record in `directory` what a run was given, or hold it to what it began with when it goes on from a checkpoint.

    That is recorded beside the checkpoint `resumed`, which may be of a run in another directory. A run without a
    checkpoint starts again and accepts any inputs. A changed loss is only logged. One rank calls this.

    Raises InputError if start checkpoint or shards changed, unless `accept_changes`, or if they cannot be recorded.
    """
    found = RunInputs(
        None if start is None else Given(str(start), integrity.fingerprint(start)),
        tuple(Given(str(reader.directory), reader.manifest.fingerprint) for reader in readers),
        loss_settings(objective),
    )
    begun = None
    if resumed is not None:
        begun = read_inputs(run_directory.beside_checkpoints(resumed.parent).inputs) or read_inputs(directory)
    if begun is not None:
        # A run that began before a setting existed began with its default.
        begun = replace(begun, loss=loss_settings(Objective()) | begun.loss)
        for change in found.loss_changes_from(begun):
            LOG.warning(f"This run continues with {change}")
        _refuse(list(found.changes_from(begun)), accept_changes)
    elif resumed is None and start and objective.ref_context:
        warn_of_other_reference(start, readers)
    write_inputs(directory, found)
    write_versions(directory, torch.cuda.get_device_name() if torch.cuda.is_available() else None)


def _refuse(changes: list[str], accept_changes: bool) -> None:
    if not changes:
        return
    if not accept_changes:
        raise InputError(
            f"{'; '.join(changes)}. Give what the run began with, begin another run in a new log.log_dir, or set "
            "resume.accept_changes=True if you want this change."
        )
    for change in changes:
        LOG.warning(f"{change}; accepted because of resume.accept_changes=True")


def warn_of_other_reference(start: Path, readers: Sequence[ShardReader]) -> None:
    """Log a line if the weights that training starts from did not score the shards, or if that is unknown."""
    weights = original_weights(start)
    if weights is None:
        LOG.info(f"{start} does not record its original weights; whether they scored the shards is unknown")
        return
    others = [reader for reader in readers if reader.manifest.reference.weights_sha256 != weights]
    if others:
        scored = ", ".join(
            f"{reader.directory} by {reader.manifest.reference.weights_sha256[:12]}…" for reader in others
        )
        LOG.warning(
            f"Training starts from other weights than those that scored the shards: {start} was made from "
            f"{weights[:12]}…; scored were {scored}. Import the model that scored them, unless you want this."
        )


def original_weights(start: Path) -> str | None:
    """Return the name that shards have for the weights of a checkpoint, or of a Hugging Face directory; None if that
    is unknown."""
    is_model = (start / "config.json").is_file() and any(start.glob("*.safetensors"))
    return weights_fingerprint(start) if is_model else read_origin(start)


CHECKED_SHARDS = "checked_shards.json"


def check_checkpoint(checkpoint: Path, *, hashes: bool) -> None:
    """Check a checkpoint's files. All ranks of the job must call this, and all must see the files.

    Rank 0 checks names and sizes. With `hashes` every file is read by one rank; this costs 0.6 s of a core per GB,
    divided by the number of ranks as far as the number of files allows.

    Raises InputError, the same on all ranks, if any of them finds a file that is missing or damaged.
    """
    rank = dist.get_rank()

    def check_names_and_sizes() -> None:
        completeness.require_complete(checkpoint)
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
    """Check the shards' files. All ranks of the job must call this: the first of every machine reads all files.

    A file in `directory`, shared by all machines, records what was read before. `first`, one rank of the job, shows a
    progress bar and writes that file.

    Raises InputError, the same on all ranks, if any machine finds a file that is not as it was written.
    """
    memory = None if directory is None else directory / CHECKED_SHARDS
    known = read_known(memory) if memory is not None else {}
    problem, found = _read(readers, known, first) if local_rank == 0 else (None, {})
    results = gather_from_all((problem, socket.gethostname(), found))
    if first and memory is not None and any(files for _, _, files in results):
        try:
            write_known(memory, known, {machine: files for _, machine, files in results if files})
        except (OSError, InputError) as error:
            LOG.warning(f"A restart reads all shards again: {one_line(error)}")
    raise_first(problem for problem, _, _ in results)


def _read(readers: Sequence[ShardReader], known: Known, shown: bool) -> tuple[str | None, dict[str, State]]:
    """Return the first problem, if any, and the files that were found intact before it."""
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
            # Taken before reading, so that a file that changes meanwhile is read again next time.
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
