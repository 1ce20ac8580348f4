"""A new run's policy, in its training layout, is held against the reference log-probs in the shards."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from support import tiny_models as tiny, training_pairs as pairs
from support.jobs import nemo_jobs
from support.scored_pairs import scored_records

from nemo_longpo.checkpoints.run_directory import read_metrics
from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.shards.fingerprint import model_fingerprint
from nemo_longpo.shards.reader import ShardReader
from nemo_longpo.shards.reference_check import samples

pytestmark = pytest.mark.distributed
MISTRAL = pytest.mark.parametrize("workbench", ["mistral"], indirect=True)


def make_shards(workbench, directory: Path, family: str = "mistral", records=None, **scoring) -> Path:
    """Shards that the workbench's model has scored."""
    records = records or scored_records(workbench.hf, **{"ref_context": "short"} | scoring)
    tokenizer = tiny.tiny_tokenizer(tiny.DEFAULT_STYLE[family])
    return pairs.write_shards(
        directory, records, tokenizer, len(tokenizer), reference=model_fingerprint(workbench.hf, dtype="float32")
    )


def settings(workbench, shards: Path, run: Path, sizes=(1, 1, 1, 1), **overrides) -> dict:
    cp, tp, pp, dp = sizes
    return {
        "data.paths": str(shards),
        "data.global_batch_size": 2,
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(run),
        "trainer.max_steps": 1,
        "trainer.devices": cp * tp * pp * dp,
        "trainer.strategy.context_parallel_size": cp,
        "trainer.strategy.tensor_model_parallel_size": tp,
        "trainer.strategy.pipeline_model_parallel_size": pp,
        **{name.replace("__", "."): value for name, value in overrides.items()},
    }


def log_of(run: Path) -> str:
    return "".join(path.read_text() for path in (run / "longpo").rglob("nemo_log*.txt"))


def train(workers, given: dict, **job) -> str:
    workers.run(nemo_jobs.finetune, given["trainer.devices"], overrides=given, **job)
    return log_of(Path(given["log.log_dir"]))


def figures(log: str) -> list[tuple[float, float]]:
    """(mean, maximum) of each comparison."""
    found = re.findall(r"differ from the reference's over .* by (\S+) on average and (\S+) at most", log)
    return [(float(mean), float(most)) for mean, most in found]


CASES = {
    "one process": ("mistral", (1, 1, 1, 1), {}),
    "cp 2, dp 2": ("mistral", (2, 1, 1, 2), {}),
    "tp 2, sequence parallel": ("qwen2", (1, 2, 1, 1), {"trainer__strategy__sequence_parallel": True}),
    "pp 2, cp 2": ("qwen3", (2, 1, 2, 1), {}),
    "RoPE scaling, concatenated": ("llama", (2, 1, 1, 1), {"model__pair_layout": "concatenated"}),
    "whole documents": ("mistral", (2, 1, 1, 1), {"model__objective__loss_type": "dpo"}),
}


@pytest.mark.parametrize(
    ("workbench", "sizes", "more"), CASES.values(), ids=CASES, indirect=["workbench"], scope="function"
)
def test_difference_is_the_one_to_hugging_face(request, workbench, workers, tmp_path, sizes, more):
    """Stored log-probs that are off by a known amount: the run tells mean and maximum of exactly that."""
    context = "long" if "model__objective__loss_type" in more else "short"
    family = request.node.callspec.params["workbench"]
    shards = make_shards(workbench, tmp_path / "shards", family, ref_context=context, shift=0.5)
    compared = samples(ShardReader(shards), 2, 1 << 15)
    counts = [len(logps) for pair in compared for logps in (*pair.ref_chosen_logps, *pair.ref_rejected_logps)]
    mean = 0.5 * sum((count + 1) // 2 for count in counts) / sum(counts)
    given = settings(workbench, shards, tmp_path / "run", sizes, **more)
    messages = workers.run(nemo_jobs.refusal, given["trainer.devices"], overrides=given)
    assert len(set(messages)) == 1, "all ranks say the same"
    ((found, most),) = figures(messages[0])
    assert (found, most) == (pytest.approx(mean, rel=0.02), pytest.approx(0.5, rel=0.02))
    assert f"{sum(counts)} answer tokens of 2 document(s)" in messages[0]
    assert read_metrics(tmp_path / "run") == []


@MISTRAL
def test_the_run_is_the_same_as_without(workers, workbench, tmp_path):
    """What the comparison touches on its way: parameters that are gathered over ranks, recompute, modules' modes."""
    shards, metrics = make_shards(workbench, tmp_path / "shards"), []
    for choice in ("error", "off"):
        recompute = {"trainer__strategy__recompute_granularity": "full", "data__check_reference": choice}
        train(workers, settings(workbench, shards, tmp_path / choice, (1, 1, 1, 2), trainer__max_steps=3, **recompute))
        timed = ("tokens_per_second", "tflops_per_device", "step_seconds")
        metrics.append([{k: v for k, v in m.items() if k not in timed} for m in read_metrics(tmp_path / choice)])
    assert metrics[0] == metrics[1]
    assert len(metrics[0]) == 3


@MISTRAL
def test_equal_models_match_and_a_resumed_run_is_not_compared(workers, workbench, tmp_path):
    """After a step the policy is another, so that a comparison at the resume would refuse the run."""
    shards, run = make_shards(workbench, tmp_path / "shards"), tmp_path / "run"
    given = settings(workbench, shards, run, optim__config__lr=0.1, log__ckpt__every_n_train_steps=1)
    ((mean, most),) = figures(train(workers, given, checkpoints=True))
    assert mean <= most < 1e-5
    log = train(workers, given | {"trainer.max_steps": 2}, checkpoints=True)
    assert len(read_metrics(run)) == 2
    assert len(figures(log)) == 1


@MISTRAL
def test_other_weights_are_refused(workers, workbench, tmp_path):
    shards = make_shards(workbench, tmp_path / "shards")
    other = import_checkpoint(tiny.save_tiny(tmp_path / "hf", "mistral", seed=5), tmp_path / "other")
    given = settings(workbench, shards, tmp_path / "run", resume__restore_config__path=str(other))
    (message,) = workers.run(nemo_jobs.refusal, 1, overrides=given)
    assert message.startswith(f"{shards}: the policy's log-probs differ from the reference's over ")
    assert f"check {other}: its weights are " in message
    assert "scored the shards; import the model that scored the pairs" in message
    assert message.endswith("or set data.check_reference=warn or off if you want this.")
    assert "\n" not in message
    assert read_metrics(tmp_path / "run") == []
    for choice, said in (("warn", 1), ("off", 0)):
        log = train(workers, given | {"log.log_dir": str(tmp_path / choice), "data.check_reference": choice})
        assert log.count("The run goes on because of data.check_reference=warn") == said
        assert len(figures(log)) == said


@MISTRAL
def test_other_prompts_are_refused(workers, workbench, tmp_path):
    """As another chat template would give."""
    records = [
        replace(record, short_prompt_ids=tuple(ids[1:] for ids in record.short_prompt_ids))
        for record in scored_records(workbench.hf, "short")
    ]
    given = settings(workbench, make_shards(workbench, tmp_path / "shards", records=records), tmp_path / "run")
    (message,) = workers.run(nemo_jobs.refusal, 1, overrides=given)
    assert "its weights scored the shards, so tokenizer, chat template or precision may differ" in message


@MISTRAL
def test_raised_rope_base_is_left_aside(workers, workbench, tmp_path):
    """As every LongPO round raises it: the same weights match, and others are refused as without; training has the
    raised base."""
    shards = make_shards(workbench, tmp_path / "shards")
    raised = import_checkpoint(workbench.hf, tmp_path / "raised", rope_theta=1e7)
    steps = {}
    for choice in ("error", "off"):
        given = settings(
            workbench, shards, tmp_path / choice, resume__restore_config__path=str(raised), data__check_reference=choice
        )
        log = train(workers, given)
        steps[choice] = [line["loss"] for line in read_metrics(tmp_path / choice)]
        for mean, most in figures(log):
            assert mean <= most < 1e-5
            assert "turned by the reference's RoPE (base 10000), the policy's log-probs differ" in log
    assert steps["error"] == steps["off"] != []
    hf = tiny.save_tiny(tmp_path / "hf", "mistral", seed=5)
    other = import_checkpoint(hf, tmp_path / "other", rope_theta=1e7)
    given = settings(workbench, shards, tmp_path / "refused", resume__restore_config__path=str(other))
    (message,) = workers.run(nemo_jobs.refusal, 1, overrides=given)
    assert f"check {other}: its weights are " in message


@MISTRAL
def test_what_cannot_be_compared_is_said(workers, workbench, tmp_path):
    records = [replace(record, short_prompt_ids=None) for record in scored_records(workbench.hf, "short")]
    shards = make_shards(workbench, tmp_path / "shards", records=records)
    log = train(workers, settings(workbench, shards, tmp_path / "run"))
    assert f"{shards}: the policy was not compared with the reference's log-probs, because no stored pair has" in log
    given = settings(workbench, shards, tmp_path / "sft", model__objective__loss_type="sft_chosen")
    assert "was not compared" not in train(workers, given)


@MISTRAL
def test_rounding_of_bfloat16_is_allowed(workers, workbench, tmp_path):
    shards = make_shards(workbench, tmp_path / "shards")
    bf16 = {"trainer__plugins__precision": "bf16-mixed", "optim__config__bf16": True}
    log = train(workers, settings(workbench, shards, tmp_path / "run", **bf16))
    ((mean, _),) = figures(log)
    assert 1e-5 < mean < 0.05
    assert "0.1 on average is allowed in float32/bfloat16" in log
