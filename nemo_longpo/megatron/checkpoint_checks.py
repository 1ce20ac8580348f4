"""All ranks hold a checkpoint to the record of its files: each reads its share, and all hear what any of them found."""

from pathlib import Path

import torch.distributed as dist

from nemo_longpo.checkpoints.completeness import require_complete
from nemo_longpo.checkpoints.integrity import check_sizes, find_changed, read_record, share_of, show_progress
from nemo_longpo.errors import InputError

from .together import gather_from_all, raise_first


def checkpoint_of(path: str | Path) -> Path:
    """The checkpoint's directory, of a path as NeMo hands them on: that itself, or the `weights` in it."""
    return Path(path).parent if Path(path).name == "weights" else Path(path)


def check_together(checkpoint: Path, *, hashes: bool) -> None:
    """Called by every rank of the job; the files lie where all of them see them.

    Rank 0 looks at names and sizes. With `hashes` every file is read by one rank, which costs 0.6 s of a core per GB,
    divided by the number of ranks as far as the number of files allows.

    Raises:
        InputError: on all ranks the same, if any of them found a file that is missing or damaged.
    """
    raise_first(gather_from_all(_find_missing(checkpoint) if dist.get_rank() == 0 else None))
    if hashes:
        raise_first(gather_from_all(_find_changed_of_share(checkpoint)))


def _find_missing(checkpoint: Path) -> str | None:
    try:
        require_complete(checkpoint)
        check_sizes(checkpoint, read_record(checkpoint) or {})
    except InputError as error:
        return str(error)
    return None


def _find_changed_of_share(checkpoint: Path) -> str | None:
    rank = dist.get_rank()
    share = share_of(read_record(checkpoint) or {}, rank, dist.get_world_size())
    if rank:
        return find_changed(checkpoint, share)
    with show_progress(f"hashes of {checkpoint.name}, first rank's share", share) as progress:
        return find_changed(checkpoint, share, progress)
