"""The CPU backend does nothing beside an accelerator, works without one, and has no unnecessary part.

It is tried with the trainer that the environment holds: NeMo, or in that of `make test-bridge` Megatron-Bridge.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from support.jobs import cpu_jobs
from support.prepared_process import PreparedProcess
from support.worker_pool import WorkerPool

from nemo_longpo.backends import bridge_import, cpu

TRAINER = cpu.installed_trainer()

needs_no_accelerator = pytest.mark.skipif(
    torch.cuda.is_available(), reason="an accelerator is present, and the CPU backend stays off beside one"
)
# Values, not functions: a save reads from the queue, adapters look at the others.
READ_NOT_CALLED = {
    "megatron.core.dist_checkpointing.strategies.filesystem_async._results_queue",
    "nemo.collections.llm.peft.lora.te",
    "nemo.collections.llm.peft.utils.HAVE_TE",
}


def test_does_nothing_beside_an_accelerator(monkeypatch):
    def redirections(trainer):
        raise AssertionError("asked what to replace")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cpu, "_mode", None)
    monkeypatch.setattr(cpu, "redirections_of", redirections)
    assert not cpu.activate("megatron")
    assert not cpu.is_active()


def test_cuda_only_kernels_are_switched_off():
    class Config:
        apply_rope_fusion = True
        use_cpu_initialization = False
        hidden_size = 8

    config = Config()
    assert cpu.without_cuda_kernels(config) is config
    assert (config.apply_rope_fusion, config.use_cpu_initialization, config.hidden_size) == (False, True, 8)


@dataclass(frozen=True)
class Findings:
    """What a process saw, before and after it activated the backend; `called` is the union over two of them."""

    met_before: set[str]
    redirected: list[str]
    met_after: set[str]
    called: set[str]
    dropout: tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def not_redirected(request):
    """A process that has imported the trainer, and whose forks are not redirected yet."""
    if TRAINER == "nemo":
        yield request.getfixturevalue("nemo_process")
        return
    process = PreparedProcess(bridge_import.import_bridge)
    yield process
    process.close()


@pytest.fixture(scope="module")
def findings(not_redirected, tmp_path_factory) -> Findings:
    pool, directory = WorkerPool(not_redirected, 2), str(tmp_path_factory.mktemp("training"))
    try:
        (met_before,) = pool.run(cpu_jobs.met_needs, 1, trainer=TRAINER)
        redirected, _ = pool.run(cpu_jobs.activate_twice, 2, trainer=TRAINER)
        pool.run(cpu_jobs.ordinary_calls_stay, 1)
        pool.run(cpu_jobs.prepare_training, 1, trainer=TRAINER, directory=directory)
        called = pool.run(cpu_jobs.names_called_by_training, 2, trainer=TRAINER, directory=directory)
        (met_after,) = pool.run(cpu_jobs.met_needs, 1, trainer=TRAINER)
        (dropout,) = pool.run(cpu_jobs.recomputed_dropout, 1)
    finally:
        pool.close()
    return Findings(met_before, redirected, met_after, set.union(*called), dropout)


@pytest.mark.distributed
@needs_no_accelerator
class TestWithoutAccelerator:
    def test_every_redirection_is_documented(self, findings):
        assert sorted(findings.redirected) == sorted(cpu_jobs.NEEDS[TRAINER])

    def test_no_redirected_call_works_without_us(self, findings):
        """If one does, upstream no longer needs it: delete the redirection."""
        assert findings.met_before == set()

    def test_every_redirected_call_works_with_us(self, findings):
        assert findings.met_after == {*cpu_jobs.NEEDS[TRAINER], *cpu_jobs.MODE_NEEDS}

    def test_training_calls_every_redirection(self, findings):
        """Delete a redirection that is never called."""
        assert findings.called == set(findings.redirected) - READ_NOT_CALLED

    def test_recompute_draws_the_same_dropout(self, findings):
        forward, backward = findings.dropout
        assert 300 < (forward == 0).sum() < 700
        np.testing.assert_array_equal(forward, backward)
