"""Parallel sizes do not matter: one import trains under any, and exports do not depend on them.

That one import computes the same losses and gradients under every kind of sizes is `tests/nemo/test_parity.py`.
"""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from support import tiny_models as tiny, training_pairs as pairs
from support.conversion_cases import CASES, files, read_config
from support.jobs import nemo_jobs

from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.torch_dist import DistCheckpoint

pytestmark = pytest.mark.distributed

TP_PP = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
TP_CP = {"tensor_model_parallel_size": 2, "context_parallel_size": 2, "sequence_parallel": True}
DP: dict[str, int] = {}
RANKS = 4
MOVED_ALIKE = 1e-4
"""Norm of the difference between two trained weights, in parts of how far training moved them."""


@pytest.fixture(scope="module")
def shards(hf_models, tmp_path_factory) -> dict[str, Path]:
    """Pairs for the plain Mistral (untied) and Qwen2 (tied) of odd vocabulary."""
    root = tmp_path_factory.mktemp("shards")
    written = {}
    for case in ("mistral", "qwen2"):
        rows = read_config(hf_models[case])["vocab_size"]
        assert rows % 2, "the vocabulary must not divide by the tensor-parallel size"
        tokenizer = tiny.tiny_tokenizer(tiny.DEFAULT_STYLE[CASES[case]["family"]])
        written[case] = pairs.write_shards(root / case, pairs.uneven_records(rows), tokenizer, rows)
    return written


def train(
    workers, checkpoint: Path, shards: Path, run: Path, ranks: int, sizes: dict, *, steps: int, lr: float
) -> Path:
    """The checkpoint of weights and optimizer state that the recipe saves after its last step."""
    overrides = {
        "data.paths": str(shards),
        "resume.restore_config.path": str(checkpoint),
        "log.log_dir": str(run),
        "log.ckpt.every_n_train_steps": steps,
        "log.ckpt.save_optim_on_train_end": True,
        "optim.config.lr": lr,
        "trainer.devices": ranks,
        "trainer.max_steps": steps,
        **{f"trainer.strategy.{name}": value for name, value in sizes.items()},
    }
    workers.run(nemo_jobs.finetune, ranks, overrides=overrides, checkpoints=True)
    (last,) = (run / "longpo" / "checkpoints").glob("*last")
    return last


@pytest.mark.parametrize(
    ("case", "sizes"),
    [
        pytest.param("mistral", TP_PP, id="untied, tp 2, pp 2"),
        pytest.param("qwen2", TP_PP, id="tied, tp 2, pp 2"),
        pytest.param("qwen2", TP_CP, id="tied, tp 2, cp 2, sequence parallel"),
        pytest.param("mistral", DP, id="untied, dp 4"),
    ],
)
def test_loading_and_saving_changes_no_bit(case, sizes, shards, hf_models, nemo_checkpoints, workers, tmp_path):
    """A whole step at learning rate 0, so that all goes through the optimizer; the export is the model imported."""
    trained = train(workers, nemo_checkpoints[case], shards[case], tmp_path / "run", RANKS, sizes, steps=1, lr=0.0)
    saved, imported = (DistCheckpoint(path / "weights") for path in (trained, nemo_checkpoints[case]))
    assert any(name.startswith("optimizer.") for name in saved.tensor_names())
    embedding = "module.embedding.word_embeddings.weight"
    assert saved.shape(embedding)[0] - imported.shape(embedding)[0] == (
        1 if "tensor_model_parallel_size" in sizes else 0
    )
    assert files(export_checkpoint(trained, tmp_path / "back")) == files(hf_models[case])


def test_two_steps_under_two_sizes(shards, hf_models, nemo_checkpoints, workers, tmp_path):
    """Not bit for bit: under tensor parallelism the sums over rows and columns of matrices have another order."""
    trained = []
    for name, ranks, sizes in (("one", 1, {}), ("several", RANKS, TP_PP)):
        run = tmp_path / name
        last = train(workers, nemo_checkpoints["qwen2"], shards["qwen2"], run, ranks, sizes, steps=2, lr=1e-3)
        trained.append(export_checkpoint(last, run / "hf"))
    before, one, several = (load_file(path / "model.safetensors") for path in (hf_models["qwen2"], *trained))
    for name, weight in before.items():
        moved = (one[name] - weight).norm()
        assert moved > 0
        assert (one[name] - several[name]).norm() < MOVED_ALIKE * moved, name
    small = [{name: content for name, content in files(path).items() if "safetensors" not in name} for path in trained]
    assert small[0] == small[1]
