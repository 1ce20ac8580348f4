"""What a worker of `WorkerPool` runs to compute logits, instead of a process that imports NeMo anew."""

from typing import Any

from support.jobs.megatron_jobs import leave_process_group

from nemo_longpo.conversion.comparison.logits_jobs import Job
from nemo_longpo.conversion.comparison.logits_process import answer
from nemo_longpo.errors import InputError


def answer_all(jobs: list[dict[str, Any]]) -> str | None:
    """Returns the sentence of a refusal."""
    try:
        for job in jobs:
            answer(Job.from_json(job))
    except InputError as error:
        return str(error)
    finally:
        leave_process_group()
    return None
