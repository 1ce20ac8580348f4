"""The policy's RoPE settings reach every angle and score, and stay with its checkpoints: steps equal Hugging Face's.

YaRN is set for 64 original positions, so that short pairs feel it: most frequencies are divided by up to 4, and every
attention score is multiplied by 1.3.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import tiny_models as tiny, training_pairs as pairs
from support.jobs import nemo_jobs
from support.parity import TOLERANCE, assert_equal_gradients, train_one_step

from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.objective import METRICS

pytestmark = pytest.mark.distributed

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
CASES = {"mistral": {"rope_theta": 1e7}, "qwen2": {"rope_scaling": YARN}}
ONE, CP2 = (1, 1, 1, 1, {}), (2, 1, 1, 1, {})


def saved_by_training(workbench, workers, directory: Path) -> Path:
    """The checkpoint after one step that moves the weights."""
    overrides = {
        "data.paths": str(workbench.shards),
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(directory),
        "log.ckpt.every_n_train_steps": 1,
        "optim.config.lr": 1e-2,
        "trainer.max_steps": 1,
    }
    workers.run(nemo_jobs.finetune, 1, overrides=overrides, checkpoints=True)
    (last,) = (directory / "longpo" / "checkpoints").glob("*last")
    return last


@pytest.fixture(scope="module")
def workbench(request, workers, tmp_path_factory) -> SimpleNamespace:
    """As the common one, but the policy has RoPE settings of its own: set by the import, and saved with `hf`.

    The next iteration starts from a checkpoint that training saved, and `hf` is that checkpoint's export.
    """
    family, next_iteration = request.param
    root = tmp_path_factory.mktemp(f"rope-{family}")
    plain, hf = tiny.save_tiny(root / "plain", family), tiny.save_tiny(root / "hf", family, **CASES[family])
    tokenizer = tiny.tiny_tokenizer(tiny.DEFAULT_STYLE[family])
    vocab_size = json.loads((hf / "config.json").read_text())["vocab_size"]
    records = pairs.uneven_records(vocab_size)
    shards = pairs.write_shards(root / "shards", records, tokenizer, vocab_size)
    checkpoint = import_checkpoint(plain, root / "nemo", **CASES[family])
    first = SimpleNamespace(hf=hf, checkpoint=checkpoint, shards=shards, records=records)
    if not next_iteration:
        return first
    trained = saved_by_training(first, workers, root / "run")
    exported = export_checkpoint(trained, root / "exported")
    assert (exported / "config.json").read_bytes() == (checkpoint / "context" / "hf" / "config.json").read_bytes()
    return SimpleNamespace(hf=exported, checkpoint=trained, shards=shards, records=records)


@pytest.mark.parametrize(
    ("workbench", "case"),
    [
        pytest.param(("mistral", False), CP2, id="mistral, base 1e7, cp 2"),
        pytest.param(("qwen2", False), ONE, id="qwen2, YaRN, one process"),
        pytest.param(("qwen2", True), CP2, id="qwen2, YaRN, next iteration, cp 2"),
    ],
    indirect=["workbench"],
)
def test_step_equals_hugging_face(workbench, reference, workers, tmp_path, case):
    step, gradients, _ = train_one_step(workbench, workers, tmp_path, case)
    expected_metrics, expected_gradients = reference
    for name in METRICS:
        assert step[name] == pytest.approx(expected_metrics[name], rel=TOLERANCE), name
    assert_equal_gradients(gradients, expected_gradients)
