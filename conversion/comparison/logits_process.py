"""The process that computes hidden states and logits in fp32: `python -m … JOBS REFUSAL` (see `logits_jobs`)."""

import gc
import pickle
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from nemo_longpo.errors import InputError

from ..model_on_disk import open_model
from .logits_jobs import Job


def run_job(job: Job) -> None:
    """Do a job in this process."""
    source = open_model(job.model, job.access)
    if source.side == "nemo":
        from .megatron_model import load
    else:
        from .transformers_model import load
    model, forward = load(source, job.rope)
    if job.round_to is not None:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, job.round_to)).float()
    for number, ids in enumerate(job.sequences):
        with torch.no_grad():
            states, logits = forward(torch.tensor(ids))
        save_file({"states": states, "logits": logits}, job.output / f"{number}.safetensors")


def main(request: Path, refusal: Path) -> int:
    try:
        for job in pickle.loads(request.read_bytes()):
            run_job(job)
            gc.collect()  # modules refer to each other; the next model needs their memory
    except InputError as error:
        refusal.write_text(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
