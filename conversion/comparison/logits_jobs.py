"""Hidden states and logits of a model in fp32, computed in a process of their own: `python -m … JOBS REFUSAL`.

The memory of one model is free before the next one's is needed, and what the CPU backend redirects for Megatron stays
there. GPUs are hidden from that process: Transformer Engine multiplies fp32 matrices in TF32, with three digits.
"""

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from nemo_longpo.attention.rope import inverse_frequencies
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.rope_settings import RopeSettings, scaling_settings

from ..model_on_disk import NOTHING_ELSE, Access, ModelOnDisk, open_model
from .logits import Forward


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

    Raises InputError if that process refuses a model (with its message), or is killed.
    """
    with TemporaryDirectory() as scratch:
        request, refusal = Path(scratch) / "jobs", Path(scratch) / "refusal"
        request.write_bytes(pickle.dumps([job.absolute() for job in jobs]))
        child = subprocess.run(
            [sys.executable, "-m", "nemo_longpo.conversion.comparison.logits_jobs", request, refusal],
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


def run_job(job: Job) -> None:
    """Do a job in this process."""
    source = open_model(job.model, job.access)
    if source.kind != "huggingface":
        from .megatron_model import load_megatron

        model, forward = load_megatron(source, job.rope)
    else:
        model, forward = load_transformers(source, job.rope)
    if job.round_to is not None:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, job.round_to)).float()
    for number, ids in enumerate(job.sequences):
        with torch.no_grad():
            states, logits = forward(torch.tensor(ids))
        save_file({"states": states, "logits": logits}, job.output / f"{number}.safetensors")


def load_transformers(source: ModelOnDisk, rope: RopeSettings | None) -> tuple[torch.nn.Module, Forward]:
    """A Hugging Face directory as a model of `transformers`, and its forward function.

    `rope` takes the place of the settings in `config.json`. They are given to `transformers` as its version wants them:
    version 4 silently overlooks those in a file of version 5. No code of the directory runs, and a pickle is read only
    where that is allowed, for tensors alone.
    """
    import transformers

    rope = rope or source.config.rope
    config = transformers.AutoConfig.from_pretrained(source.path, trust_remote_code=False)
    scaling = scaling_settings(rope.scaling)
    if int(transformers.__version__.split(".")[0]) < 5:
        config.rope_theta, config.rope_scaling = rope.theta, scaling
    else:
        config.rope_parameters = {"rope_type": "default", "rope_theta": rope.theta, **(scaling or {})}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source.path,
        config=config,
        dtype=torch.float32,
        use_safetensors=None if source.access.allow_pickle else True,
        trust_remote_code=False,
    ).eval()
    computed = model.model.rotary_emb.inv_freq
    expected = inverse_frequencies(rope, source.model_shape.head_size)
    assert torch.allclose(computed, expected), f"transformers {transformers.__version__} has other rotary angles"

    def forward(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = model(ids[None], output_hidden_states=True, use_cache=False)
        return torch.cat(output.hidden_states), output.logits[0]

    return model, forward


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
