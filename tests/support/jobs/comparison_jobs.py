"""Jobs of a `WorkerPool` worker that compute logits, to avoid another import of NeMo."""

from support.jobs.nemo_jobs import leave_process_group

from nemo_longpo.conversion.comparison.logits_jobs import Job, run_job
from nemo_longpo.errors import InputError


def run_all(jobs: list[Job]) -> str | None:
    """Returns the sentence of a refusal."""
    try:
        for job in jobs:
            run_job(job)
    except InputError as error:
        return str(error)
    finally:
        leave_process_group()
    return None
