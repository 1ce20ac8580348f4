"""Hidden states and logits of a model, computed in a process of their own.

The memory of one model is free before the next one's is needed, and what the CPU backend redirects for Megatron stays
there. GPUs are hidden from that process: Transformer Engine multiplies fp32 matrices in TF32, with three digits.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.rope_settings import RopeSettings

from ..model_on_disk import NOTHING_ELSE, Access


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model and token sequences; states and logits of sequence i go to `output/i.safetensors`.

    `rope` replaces the model's own settings. Weights are rounded to `round_to` first (a dtype's name).
    """

    model: Path
    output: Path
    sequences: Sequence[Sequence[int]]
    access: Access = NOTHING_ELSE
    rope: RopeSettings | None = None
    round_to: str | None = None

    def absolute(self) -> "Job":
        """The job for a process that runs in another directory."""
        access = self.access
        base, base_checkpoint = (path and path.resolve() for path in (access.base, access.base_checkpoint))
        access = replace(access, base=base, base_checkpoint=base_checkpoint)
        return replace(self, model=self.model.resolve(), output=self.output.resolve(), access=access)


def compute(jobs: Sequence[Job]) -> None:
    """Do the jobs one after the other in a fresh process.

    Raises InputError with the sentence with which that process refused a model, or because it was killed.
    """
    with TemporaryDirectory() as scratch:
        request, refusal = Path(scratch) / "jobs", Path(scratch) / "refusal"
        request.write_bytes(pickle.dumps([job.absolute() for job in jobs]))
        child = subprocess.run(
            [sys.executable, "-m", "nemo_longpo.conversion.comparison.logits_process", request, refusal],
            cwd=scratch,  # NeMo leaves log files where it runs
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if refusal.exists():
            raise InputError(refusal.read_text())
    names = " and ".join(str(job.model) for job in jobs)
    if child.returncode < 0:
        raise InputError(
            f"the process that computed the logits of {names} was killed by signal {-child.returncode}, which is what "
            "happens when memory runs out: it holds one model in fp32; pass --no-logits or take a larger machine"
        )
    if child.returncode:
        raise RuntimeError(f"computing the logits of {names} failed:\n{child.stderr}")
