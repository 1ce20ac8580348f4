"""Training through Megatron-Bridge's own loop: held to Hugging Face models with torch's Adam, and to itself."""

import json
import math
import os
import re
import signal
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from support import reference, tiny_models as tiny, training_pairs
from support.bridge_runs import Inputs, checkpoints_of, records_for
from support.checkpoint_tensors import checkpoint_tensors
from support.held_lock import hold
from support.jobs import bridge_jobs
from support.scored_pairs import scored_records
from support.waiting import wait_until

from nemo_longpo.checkpoints import forms, run_directory
from nemo_longpo.errors import InputError
from nemo_longpo.report import runs
from nemo_longpo.shards import fingerprint
from nemo_longpo.shards.reader import ShardReader

pytestmark = pytest.mark.slow
FAST = ("optimizer.lr=0.01", "checkpoint.save_interval=2")


def expected_curve(inputs, steps, rate, warmup=0):
    """Loss, margin and gradient norm of each step: written for Hugging Face's model, in the order of the shards."""
    model = transformers.AutoModelForCausalLM.from_pretrained(inputs.model, dtype=torch.float32)
    model.config._attn_implementation = "eager"
    adam = torch.optim.Adam(model.parameters(), betas=(0.9, 0.95), eps=1e-8)
    records = [training_pairs.plain_record(record) for record in ShardReader(inputs.shards)]
    curve = []
    for step in range(steps):
        adam.zero_grad()
        metrics = reference.longpo_step(model, records, 0.1, 0.01)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if step < warmup:
            adam.param_groups[0]["lr"] = rate * (step + 1) / (warmup + 1)
        else:
            part = (step - warmup) / (steps - warmup)
            adam.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * part)) / 2
        lr = adam.param_groups[0]["lr"]
        adam.step()
        curve.append([metrics["loss"], metrics["rewards/margins"], float(norm), lr])
    return curve


def curve_of(lines):
    return [[line["loss"], line["rewards/margins"], line["grad_norm"], line["lr"]] for line in lines]


@pytest.mark.parametrize(
    ("family", "settings", "warmup"),
    [("mistral", {}, 0), ("qwen2", {"attention_dropout": 0.1}, 2), ("qwen3", {}, 0), ("llama", {}, 0)],
)
def test_curve_is_that_of_the_reference(tmp_path, family, settings, warmup):
    """The weights come from the Hugging Face directory; four steps with Adam, clipping, warm-up and cosine."""
    inputs = Inputs.write(tmp_path, family, **settings)
    lines = inputs.train(tmp_path / "run", *FAST, "train.train_iters=4", f"scheduler.lr_warmup_fraction={warmup / 4}")
    expected = expected_curve(inputs, 4, 0.01, warmup)
    np.testing.assert_allclose(curve_of(lines), expected, rtol=2e-5, atol=1e-7)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


def same_tensors(one, other):
    """Compare the tensors of two checkpoints, of the optimizer too, bit for bit."""
    left, right = checkpoint_tensors(one), checkpoint_tensors(other)
    assert left.keys() == right.keys()
    assert any("exp_avg" in name for name in left)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_killed_run_goes_on_bit_for_bit(tmp_path, mistral, bridge_programs):
    """`kill -9` at any moment, also in a save: steps, weights and optimizer are those of a run that was left alone."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    often = (*FAST, "checkpoint.save_interval=1", "train.train_iters=6")
    expected = mistral.train(straight, *often)
    command = [bridge_programs / "python", "-m", "nemo_longpo.bridge.train", "--recipe", "tiny_longpo"]
    command += ["--log-dir", killed, *mistral.overrides(*often)]

    def steps():
        return len(run_directory.read_metrics(killed))

    for seen in (2, 4):
        with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            wait_until(lambda process=process, seen=seen: steps() >= seen or process.poll() is not None)
            process.kill()
        assert steps() < 6, (tmp_path / "log").read_text()[-2000:]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "Starting training loop at iteration 0" not in ended.stdout
    (run,) = runs.read_runs([runs.Place("", killed)])
    assert run.settings["--recipe"] == "tiny_longpo", "the report says what the last command set"
    assert run.settings["optimizer.lr"] == "0.01"
    assert "megatron-bridge" in run.versions
    exact = ("step", "loss", "grad_norm", "lr", "rewards/margins")
    lines = run_directory.read_metrics(killed)
    assert [[line[name] for name in exact] for line in lines] == [[line[name] for name in exact] for line in expected]
    (last,), (left_alone,) = checkpoints_of(killed), checkpoints_of(straight)
    same_tensors(last, left_alone)


@pytest.mark.distributed
def test_run_goes_on_in_another_layout(tmp_path, mistral, workers):
    """One process, then two with the pair split, then two with the weights split: one curve."""
    layouts = (
        (1, {}),
        (2, {"model.context_parallel_size": 2}),
        (2, {"model.tensor_model_parallel_size": 2, "model.sequence_parallel": True}),
    )
    given = {
        "checkpoint.pretrained_checkpoint": str(mistral.model),
        "dataset.paths": [str(mistral.shards)],
        "checkpoint.save_interval": 2,
        "optimizer.lr": 0.01,
        "scheduler.max_steps": 6,
    }
    for turn, (ranks, sizes) in enumerate(layouts):
        overrides = given | sizes | {"train.train_iters": 2 * turn + 2}
        workers.run(bridge_jobs.pretrain, ranks, overrides=overrides, log_dir=str(tmp_path / "run"))
    lines = run_directory.read_metrics(tmp_path / "run")
    np.testing.assert_allclose(curve_of(lines), expected_curve(mistral, 6, 0.01), rtol=1e-4, atol=1e-7)


def test_unfinished_checkpoint_never_counts(tmp_path, mistral):
    """A mark stands beside it from its first byte to its last: the run goes on from the one before."""
    run = tmp_path / "run"
    keep = "checkpoint.most_recent_k=2"
    first = mistral.train(run, *FAST, keep, "train.train_iters=4")
    two, four = checkpoints_of(run)
    run_directory.mark(four).touch()
    assert checkpoints_of(run) == [two]
    again = mistral.train(run, *FAST, keep, "train.train_iters=4")
    assert curve_of(again) == curve_of(first)
    assert checkpoints_of(run) == [two, four]
    assert not list(two.parent.glob("*-unfinished"))
    run_directory.mark(four).touch()
    with hold(run / "longpo" / "inputs" / "lock", 600) as other:
        assert other.stdout.readline()
        with pytest.raises(InputError, match=f"another run writes into {run}/longpo"):
            mistral.train(run, *FAST, keep, "train.train_iters=6")
        other.kill()
    assert run_directory.mark(four).exists(), "the other run is at work on it"
    run_directory.mark(four).unlink()
    assert (four / "integrity.json").is_file()
    assert (four / "hf" / "config.json").read_bytes() == (mistral.model / "config.json").read_bytes()


def test_runs_share_nothing_that_share_a_parent(tmp_path, mistral):
    """Whoever sets `checkpoint.save` alone gets the other files of the run with it."""
    for name in ("one", "two"):
        mistral.train(tmp_path, *FAST, "train.train_iters=2", f"checkpoint.save={tmp_path / name}")
    for name in ("one", "two"):
        run = tmp_path / name
        assert [line["step"] for line in run_directory.read_metrics(run)] == [1, 2]
        assert (run / "inputs" / "given.json").is_file()
        assert [path.name for path in checkpoints_of(run)] == ["iter_0000002"]
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def test_damaged_checkpoint_is_refused(tmp_path, mistral):
    run = tmp_path / "run"
    mistral.train(run, *FAST, "train.train_iters=2")
    (checkpoint,) = checkpoints_of(run)
    (tensors,) = checkpoint.glob("*.distcp")
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(InputError, match=rf"{tensors.name} is damaged"):
        mistral.train(run, *FAST, "train.train_iters=4")


def test_finished_run_takes_more_steps_on_the_new_curve(tmp_path, mistral):
    """Here from one object, which a run leaves as it was."""
    from nemo_longpo.bridge import train

    overrides = mistral.overrides(*FAST, "train.train_iters=2", "scheduler.lr_warmup_fraction=0.5")
    config = train.build("tiny_longpo", overrides, str(tmp_path))
    for steps in (2, 4):
        config.train.train_iters = steps
        train.train(config)
    lines = run_directory.read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["lr"] for line in lines] == pytest.approx([0.005, 0.01, 0.01, 0.005])


def test_run_that_a_signal_ends_says_so(tmp_path, mistral):
    """Bridge saves and would end with status 0, which a job that depends on the run takes for its end."""
    from nemo_longpo.bridge import train

    class Signal(train.bridge_callbacks.Callback):
        def on_train_step_end(self, context):
            os.kill(os.getpid(), signal.SIGTERM)

    overrides = mistral.overrides("train.exit_signal_handler=true", "train.train_iters=9")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        train.train(train.build("tiny_longpo", overrides, str(tmp_path)), [Signal()])
    signal.signal(signal.SIGTERM, before)
    assert left.value.code == 128 + signal.SIGTERM
    assert run_directory.newest_step(tmp_path) == 1


def test_next_run_starts_from_a_run(tmp_path, mistral):
    """From its weights alone, with its architecture and its RoPE, and with a base of its own."""
    mistral.train(tmp_path / "one", *FAST, "train.train_iters=2", "model.rotary_base=20000")
    (trained,) = checkpoints_of(tmp_path / "one")
    start = replace(mistral, model=tmp_path / "one")
    kept = start.train(tmp_path / "two", *FAST, "train.train_iters=1")
    raised = start.train(tmp_path / "three", *FAST, "train.train_iters=1", "model.rotary_base=40000")
    assert kept[0]["step"] == raised[0]["step"] == 1
    assert kept[0]["loss"] != raised[0]["loss"]
    for log_dir, base in ((tmp_path / "two", 20000), (tmp_path / "three", 40000)):
        (checkpoint,) = checkpoints_of(log_dir)
        assert f"rotary_base: {base}" in (checkpoint / forms.RUN_CONFIG).read_text()
    assert trained.name == "iter_0000002"


def test_documents_come_in_the_order_of_the_seed(tmp_path, mistral, monkeypatch):
    """That of NeMo's line: the same records in the same steps, also after a resume; another order is refused."""
    from nemo_longpo.megatron import finite_steps
    from nemo_longpo.parallel import sampling

    shards = training_pairs.write_tiny_shards(tmp_path / "shards", records_for(97, 3))
    inputs = replace(mistral, shards=shards)
    seen = []
    add = finite_steps.FiniteSteps.add_document
    monkeypatch.setattr(
        finite_steps.FiniteSteps, "add_document", lambda self, name: (seen.append(name), add(self, name))
    )
    inputs.train(tmp_path / "run", *FAST, "train.train_iters=2", "dataset.seed=7")
    inputs.train(tmp_path / "run", *FAST, "train.train_iters=4", "dataset.seed=7")
    reader = ShardReader(shards)
    order = sampling.RecordOrder(costs_N=np.ones(len(reader)), seed=7, batch_size=4, window=1, dp_size=1)
    ordered = [reader[order[place]].doc_id for place in range(16)]
    batches = range(0, 16, 4)  # within one, the order follows from what a pair costs
    assert [sorted(seen[at : at + 4]) for at in batches] == [sorted(ordered[at : at + 4]) for at in batches]
    assert len({*seen[:12]}) == 12
    with pytest.raises(InputError, match=r"trained with dataset\.seed=7, and dataset\.seed=8 now"):
        inputs.train(tmp_path / "run", *FAST, "train.train_iters=6", "dataset.seed=8")


def test_other_shards_are_refused_at_a_resume(tmp_path, mistral):
    mistral.train(tmp_path / "run", *FAST, "train.train_iters=2")
    other = replace(mistral, shards=training_pairs.write_tiny_shards(tmp_path / "shards", records_for(97, 2)))
    with pytest.raises(InputError, match=r"dataset\.paths holds shards .* checkpoint\.accept_changes=True"):
        other.train(tmp_path / "run", *FAST, "train.train_iters=4")
    with pytest.raises(InputError, match=r"dataset\.paths holds shards .* checkpoint\.accept_changes=True"):
        other.train(tmp_path / "elsewhere", *FAST, "train.train_iters=4", f"checkpoint.load={tmp_path / 'run'}")
    other.train(tmp_path / "run", *FAST, "train.train_iters=3", "checkpoint.accept_changes=True")


def with_infinite_reference(record):
    return replace(record, ref_chosen_logps=tuple(turn * np.float32(np.inf) for turn in record.ref_chosen_logps))


def test_step_that_is_not_finite(tmp_path, mistral, monkeypatch):
    """It ends the run, or is left out: then weights stay as they are, and the learning rate goes on."""
    from nemo_longpo.megatron import loss

    call, calls = loss.PairLoss.__call__, []

    def spoiled(self, rows, logprobs, cp_group):
        calls.append(rows.doc_id)
        value, metrics = call(self, rows, logprobs, cp_group)
        return (value * math.nan if 5 <= len(calls) <= 8 else value), metrics

    monkeypatch.setattr(loss.PairLoss, "__call__", spoiled)
    with pytest.raises(InputError, match=r"Step 2: the loss of .* train\.non_finite_steps=skip"):
        mistral.train(tmp_path / "error", *FAST, "train.train_iters=3")
    calls.clear()
    lines = mistral.train(tmp_path / "skip", *FAST, "train.train_iters=3", "train.non_finite_steps=skip")
    assert [line.get("skipped") for line in lines] == [None, 1, None]
    assert [line["lr"] for line in lines] == pytest.approx([0.01, 0.0075, 0.0025])
    assert lines[1]["loss"] == pytest.approx(lines[2]["loss"], rel=1e-6)


def scored(inputs, directory):
    """Shards that the inputs' model has scored."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(inputs.model)
    name = fingerprint.model_fingerprint(inputs.model, dtype="float32")
    records = scored_records(inputs.model, "short")
    return replace(
        inputs, shards=training_pairs.write_shards(directory, records, tokenizer, len(tokenizer), reference=name)
    )


def test_policy_is_compared_with_its_reference(tmp_path, mistral, capsys):
    """The weights that scored the shards, a raised base, other weights: as with NeMo, on what Bridge has loaded."""
    inputs = scored(mistral, tmp_path / "shards")
    inputs.train(tmp_path / "same", *FAST, "train.train_iters=1")
    (mean,) = re.findall(r"differ from the reference's over .* by (\S+) on average", capsys.readouterr().err)
    assert float(mean) < 1e-5
    inputs.train(tmp_path / "raised", *FAST, "train.train_iters=1", "model.rotary_base=1e6")
    said = capsys.readouterr().err
    (mean,) = re.findall(r"RoPE \(base 10000\), the policy's log-probs differ .* by (\S+) on average", said)
    assert float(mean) < 1e-5
    assert "Training starts from other weights" not in said
    other = replace(inputs, model=tiny.save_tiny(tmp_path / "other", "mistral", seed=5))
    with pytest.raises(
        InputError, match=r"its weights are .* scored the shards; start from the model .*dataset\.check_"
    ):
        other.train(tmp_path / "refused", *FAST, "train.train_iters=1")
    assert "Training starts from other weights" in capsys.readouterr().err
    assert run_directory.read_metrics(tmp_path / "refused") == []
    other.train(tmp_path / "warned", *FAST, "train.train_iters=1", "dataset.check_reference=warn")
    assert "The run goes on because of dataset.check_reference=warn" in capsys.readouterr().err


def test_bf16(tmp_path, mistral):
    """Weights in bf16, beside those in fp32 that the optimizer moves."""
    from nemo_longpo.bridge import train

    overrides = mistral.overrides(*FAST, "train.train_iters=2")
    train.train(train.build("tiny_longpo", overrides, str(tmp_path / "run"), "bf16-mixed"))
    one, two = run_directory.read_metrics(tmp_path / "run")
    expected = expected_curve(mistral, 1, 0.01)[0][0]
    assert one["loss"] == pytest.approx(expected, rel=2e-2)
    assert two["loss"] < one["loss"]
    tensors = checkpoint_tensors(*checkpoints_of(tmp_path / "run"))
    held = {name: tensor.dtype for name, tensor in tensors.items()}
    assert held["output_layer.weight"] == torch.bfloat16
    assert held["optimizer.state.fp32_param.output_layer.weight"] == torch.float32
