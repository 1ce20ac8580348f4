import pytest

from nemo_longpo.data_tools.runner.claims import resolve_share
from nemo_longpo.data_tools.settings import WorkShare
from nemo_longpo.errors import InputError

FROM_ENVIRONMENT = WorkShare(rank_from_environment=True)


def place(share, **environment):
    found = resolve_share(share, environment)
    return found.rank, found.world_size


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "3", "WORLD_SIZE": "8"},
        {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"},
        {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"},
        {"PMI_RANK": "3", "PMI_SIZE": "8"},
    ],
)
def test_every_process_manager_is_understood(environment):
    assert place(FROM_ENVIRONMENT, **environment) == (3, 8)
    assert place(WorkShare(rank=1, world_size=2), **environment) == (1, 2)


def test_kubernetes_job_gives_only_its_index():
    assert place(WorkShare(world_size=4, rank_from_environment=True), JOB_COMPLETION_INDEX="3") == (3, 4)


def test_torchrun_comes_before_slurm():
    assert place(FROM_ENVIRONMENT, RANK="1", WORLD_SIZE="2", SLURM_PROCID="0", SLURM_NTASKS="1") == (1, 2)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "finds none of RANK, SLURM_PROCID"),
        ({"RANK": "0"}, "WORLD_SIZE must be a number, not ''"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK must be a number, not 'x'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank 2 must be below world_size 2"),
    ],
)
def test_bad_environments(environment, message):
    with pytest.raises(InputError, match=message):
        place(FROM_ENVIRONMENT, **environment)
