"""Hidden states and logits of a model, asked of a process of its own.

The memory of one model is gone before the next one's is needed, and what the CPU backend redirects for Megatron stays
there. GPUs are hidden from that process: Transformer Engine multiplies fp32 matrices in TF32, with three digits.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nemo_longpo.attention.rope import RopeSettings
from nemo_longpo.attention.rope_config import parse_scaling, scaling_settings
from nemo_longpo.errors import InputError

from ..model_on_disk import NOTHING_ELSE, Access


@dataclass(frozen=True)
class Job:
    """A model, and the token sequences it answers; answer i goes to `output/i.safetensors`.

    `rope` takes the place of the model's own settings. Weights are rounded to `round_to` first (a dtype's name).
    """

    model: Path
    output: Path
    sequences: Sequence[Sequence[int]]
    access: Access = NOTHING_ELSE
    rope: RopeSettings | None = None
    round_to: str | None = None

    def to_json(self) -> dict[str, Any]:
        access = self.access
        return {
            "model": str(self.model.resolve()),
            "output": str(self.output.resolve()),
            "sequences": [list(ids) for ids in self.sequences],
            "access": [str(path.resolve()) if path else None for path in (access.base, access.base_checkpoint)],
            "allow_pickle": access.allow_pickle,
            "trust_checkpoint": access.trust_checkpoint,
            "rope": [self.rope.theta, scaling_settings(self.rope.scaling)] if self.rope else None,
            "round_to": self.round_to,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Job":
        rope = value["rope"] and RopeSettings(value["rope"][0], parse_scaling(value["rope"][1], "rope"))
        base, base_checkpoint = (path and Path(path) for path in value["access"])
        access = Access(base, base_checkpoint, value["allow_pickle"], trust_checkpoint=value["trust_checkpoint"])
        return cls(Path(value["model"]), Path(value["output"]), value["sequences"], access, rope, value["round_to"])


def compute(jobs: Sequence[Job]) -> None:
    """Do the jobs one after the other in a fresh process.

    Raises InputError with the sentence with which that process refused a model, or because it was killed.
    """
    with TemporaryDirectory() as scratch:
        request, refusal = Path(scratch) / "jobs.json", Path(scratch) / "refusal"
        request.write_text(json.dumps([job.to_json() for job in jobs]))
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
