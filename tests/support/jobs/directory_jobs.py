"""Jobs of a `WorkerPool` worker that share a directory, or believe so."""

from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from nemo_longpo.errors import InputError


def refusal(directories: Sequence[str]) -> str:
    """Hold the directory of this rank for a job; returns why it could not be held, or "". Nobody waits for a disk."""
    import torch.distributed as dist

    from nemo_longpo.megatron import held_directory

    dist.init_process_group("gloo")
    try:
        with (
            mock.patch.object(held_directory, "_PATIENCE", 0.0),
            held_directory.held(Path(directories[dist.get_rank()]), first=dist.get_rank() == 0),
        ):
            return ""
    except InputError as error:
        return str(error)
    finally:
        dist.destroy_process_group()
