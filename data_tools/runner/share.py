"""Which of how many processes this one is, from the command line or from what started it."""

import os
from collections.abc import Mapping
from dataclasses import replace

from nemo_longpo.errors import InputError

from ..settings import WorkShare

# (rank, number of processes): torchrun and Kubeflow, Slurm, Open MPI, other MPIs, a Kubernetes indexed job.
_VARIABLES = (
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("JOB_COMPLETION_INDEX", None),
)


def resolve_share(share: WorkShare, environment: Mapping[str, str] = os.environ) -> WorkShare:
    """The share with the rank and world size of the environment, if it asks for them.

    A Kubernetes indexed job does not tell its size, so `world_size` stays as given. Raises InputError if no process
    manager has left its variables, or the rank is not below the world size.
    """
    if share.rank_from_environment:
        rank_name, size_name = next((pair for pair in _VARIABLES if pair[0] in environment), (None, None))
        if rank_name is None:
            names = ", ".join(name for name, _ in _VARIABLES)
            raise InputError(f"rank_from_environment finds none of {names}; give rank and world_size instead")
        size = share.world_size if size_name is None else _number(environment, size_name)
        share = replace(share, rank=_number(environment, rank_name), world_size=size)
    if share.rank >= share.world_size:
        raise InputError(f"rank {share.rank} must be below world_size {share.world_size}")
    return share


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise InputError(f"the environment variable {name} must be a number, not {text!r}")
    return int(text)
