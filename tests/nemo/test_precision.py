"""In bf16 the shared prefix costs no precision: it is as near to the fp32 truth as two full sequences are.

Both layouts round the same weights, so these are representable in bf16; what is left is the rounding of activations and
gradients on the way. The statistic is a root mean square, relative to the truth's: over all gradients of one batch, and
over the log-probs of all its tokens.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_models as tiny, training_pairs as pairs
from support.jobs import nemo_jobs
from torch import Tensor

from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.importer import import_checkpoint

pytestmark = pytest.mark.distributed

MARGIN = 1.1
PAIRS = 8
BF16 = {"trainer.plugins.precision": "bf16-mixed", "optim.config.bf16": True}
RUNS = {
    "truth": {"model.pair_layout": "concatenated"},
    "concatenated": {"model.pair_layout": "concatenated", **BF16},
    "shared_prefix": BF16,
    "shared_prefix, cp 2": {**BF16, "trainer.strategy.context_parallel_size": 2, "trainer.devices": 2},
}


@pytest.fixture(scope="module")
def runs(workers, tmp_path_factory) -> dict[str, tuple[Tensor, np.ndarray]]:
    """Of every run, the gradients of a batch, and from one process the log-probs of its tokens."""
    root = tmp_path_factory.mktemp("precision")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8}
    hf = tiny.save_tiny(root / "hf", "mistral", initializer_range=0.05, **sizes)
    weights = load_file(hf / "model.safetensors")
    rounded = {name: weight.bfloat16().float() for name, weight in weights.items()}
    save_file(rounded, hf / "model.safetensors", metadata={"format": "pt"})
    checkpoint = import_checkpoint(hf, root / "nemo")

    tokenizer, vocab_size = tiny.tiny_tokenizer(tiny.DEFAULT_STYLE["mistral"]), len(weights["lm_head.weight"])
    rng = np.random.default_rng(3)
    records = [pairs.random_record(rng, vocab_size, 100 + 25 * i, 3, f"doc-{i}") for i in range(PAIRS)]
    shards = pairs.write_shards(root / "shards", records, tokenizer, vocab_size)

    def train(directory: Path, settings: dict) -> tuple[Tensor, np.ndarray]:
        overrides = {
            "data.paths": str(shards),
            "data.global_batch_size": PAIRS,
            "resume.restore_config.path": str(checkpoint),
            "log.log_dir": str(directory / "run"),
            "trainer.max_steps": 1,
            **settings,
        }
        gradients, logprobs = directory / "gradients", directory / "logprobs.npy"
        files = {"gradients": str(gradients / "weights"), "logprobs": str(logprobs)}
        directory.mkdir()
        workers.run(nemo_jobs.finetune, settings.get("trainer.devices", 1), overrides=overrides, **files)
        shutil.copytree(checkpoint / "context", gradients / "context")
        found = load_file(export_checkpoint(gradients, directory / "hf") / "model.safetensors")
        return torch.cat([found[name].flatten() for name in sorted(found)]), np.load(logprobs)

    return {name: train(root / name.replace(", ", "_"), settings) for name, settings in RUNS.items()}


def relative_rms(found, truth) -> float:
    return float((((found - truth) ** 2).mean() / (truth**2).mean()) ** 0.5)


@pytest.mark.parametrize("name", ["shared_prefix", "shared_prefix, cp 2"])
def test_gradients_are_as_exact_as_full_sequences(runs, name):
    (truth, _), (plain, _), (ours, _) = runs["truth"], runs["concatenated"], runs[name]
    assert relative_rms(plain, truth) > 1e-3, "the plain run is no bf16 run"
    assert relative_rms(ours, truth) <= MARGIN * relative_rms(plain, truth)


def test_logprobs_are_as_exact_as_full_sequences(runs):
    (_, truth), (_, plain), (_, ours) = runs["truth"], runs["concatenated"], runs["shared_prefix"]
    assert len(truth) > PAIRS * 100
    assert relative_rms(plain, truth) > 1e-4, "the plain run is no bf16 run"
    assert relative_rms(ours, truth) <= MARGIN * relative_rms(plain, truth)
