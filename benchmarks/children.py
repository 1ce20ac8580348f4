"""Measurements in fresh processes, each alone on the machine."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

THREADS = 2


def measured_steps(python: str, script: str, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Run `script` of this folder on a job; returns the JSON of its last line, one object per training step.

    Raises:
        SystemExit: the script failed; with the end of what it wrote.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory(prefix="job_") as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job | {"folder": folder}))
        command = [python, str(Path(__file__).with_name(script)), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])
