"""Each bad file of `longpo evolve` is refused with one sentence before anything starts; what rounds inherit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import small_evolution

from nemo_longpo.cli import main


def setter(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(told: Any) -> None:
        for name in path[:-1]:
            told = told[name]
        told[path[-1]] = to

    return change


def remover(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(told: Any) -> None:
        for name in path[:-1]:
            told = told[name]
        del told[path[-1]]

    return change


# X is the folder of the test.
BAD = {
    "unknown key": (setter("epochs", to=1), "X/evolve.yaml: unknown key 'epochs'; the keys are base, output,"),
    "misspelt key": (setter("gate", "most_lots", to=1), "X/evolve.yaml: gate: unknown key 'most_lots'; did you mean"),
    "misspelt in a round": (setter("rounds", 1, "rope", to=1), "X/evolve.yaml: round 2: unknown key 'rope'; "),
    "no base": (remover("base"), "X/evolve.yaml: field 'base' is missing; see examples/evolve.yaml"),
    "base that is none": (
        setter("base", to="/nowhere"),
        "X/evolve.yaml: base: /nowhere is not a Hugging Face model directory: it holds no config.json",
    ),
    "a text for a number": (
        setter("rounds", 0, "rope_theta", to="1e7"),
        "X/evolve.yaml: round 1: field 'rope_theta' should be a number from 0 to 1e300, not '1e7'",
    ),
    "no round": (setter("rounds", to=[]), "X/evolve.yaml: 'rounds' is empty; give at least one round"),
    "lengths that fall": (
        setter("rounds", 1, "length", to=200),
        "X/evolve.yaml: round 2: its length of 200 tokens is not above 256, that of the round before; give",
    ),
    "a length beyond the base": (
        remover("rounds", 0, "rope_theta"),
        "X/evolve.yaml: round 1: the base model reaches 256 positions with its RoPE base 1000, and the round needs 256 "
        "with 64 for answers; give a higher rope_theta, a rope_scaling, or a shorter length",
    ),
    "a falling RoPE base": (
        setter("rounds", 1, "rope_theta", to=5e3),
        "X/evolve.yaml: round 2: rope_theta 5000 is below 10000, that of the model it starts from; raise it",
    ),
    "a length beyond the RoPE base of its round": (
        setter("rounds", 1, "length", to=9_000_000),
        "X/evolve.yaml: round 2: 9,000,000 tokens with 64 for answers cannot be told apart: with RoPE base 100000 even "
        "the slowest rotation repeats after 438,459 positions; give a rope_theta of 2.3e+06 or more or a length of at",
    ),
    "a scaling that is no JSON": (
        setter("rounds", 0, "rope_scaling", to="yarn"),
        "X/evolve.yaml: round 1: rope_scaling is 'yarn'; give keep, none, or a scaling without rope_theta as JSON",
    ),
    "a scaling of no known type": (
        setter("rounds", 0, "rope_scaling", to='{"rope_type": "spiral"}'),
        "X/evolve.yaml: round 1: rope_scaling: rope scaling of type spiral is not supported; choose linear, yarn",
    ),
    "questions longer than the base reads": (
        setter("rounds", 1, "evaluate", to={"lengths": [64, 1024]}),
        "X/evolve.yaml: round 2: evaluate: lengths go up to 1,024 tokens, and the base has 256 positions; leave out "
        "what is longer, or ask with engine: vllm and max_model_len, which may be larger than a model's positions",
    ),
    "questions longer than vLLM reads": (
        setter("evaluate", to={"suite": ["ruler_vt"], "lengths": [64, 512], "engine": "vllm", "max_model_len": 500}),
        "X/evolve.yaml: round 1: evaluate: lengths go up to 512 tokens, and max_model_len says 500 positions; leave",
    ),
    "chunks longer than the base reads": (
        setter("data", "chunk", "chunk_tokens", to=256),
        "X/evolve.yaml: round 1: data.chunk: chunk_tokens 256 leaves no room in the 256 positions of X/base; make it",
    ),
    "chunks longer than the model of round 1 reads": (
        setter("rounds", 1, "data", "chunk", "chunk_tokens", to=320),
        "X/evolve.yaml: round 2: data.chunk: chunk_tokens 320 leaves no room in the 320 positions of X/out/round-1",
    ),
    "documents longer than the round": (
        setter("data", "chunk", "max_document_tokens", to=512),
        "X/evolve.yaml: round 1: data.chunk: max_document_tokens is 512, and the round has a length of 256; leave",
    ),
    "documents without an end": (
        setter("data", "chunk", "max_document_tokens", to=None),
        "X/evolve.yaml: round 1: data.chunk: max_document_tokens is None, and the round has a length of 256; leave it",
    ),
    "documents longer than vLLM reads": (
        setter("data", "respond", "max_model_len", to=256),
        "X/evolve.yaml: round 1: data.respond: max_model_len is 256, and documents have up to 256 tokens; leave it out",
    ),
    "steps as a text": (
        setter("train", "settings", "trainer.max_steps", to="4"),
        "X/evolve.yaml: round 1: train: trainer.max_steps is '4', not a whole number of optimizer steps; give it",
    ),
    "unknown trainer": (
        setter("train", "trainer", to="trl"),
        "X/evolve.yaml: round 1: train: trainer is 'trl'; choose one of nemo, bridge",
    ),
    "NeMo's name of the steps for Bridge": (
        setter("train", "trainer", to="bridge"),
        "X/evolve.yaml: round 1: train: settings lack train.train_iters, a whole number of optimizer steps; give it",
    ),
    "processes for NeMo": (
        setter("train", "processes", to=2),
        "X/evolve.yaml: round 1: train: processes are those that torchrun starts on this machine for trainer bridge; "
        "remove it, and set trainer.devices",
    ),
    "no directory for the output": (setter("output", to=" "), "X/evolve.yaml: 'output' is empty; give a directory"),
    "an output within a file": (
        setter("output", to="/dev/null/out"),
        "X/evolve.yaml: output: /dev/null is a file; give a directory",
    ),
    "missing environment": (
        setter("environments", "train", to="nowhere/bin"),
        "/nowhere/bin/longpo does not exist; give as 'train' the bin directory of an environment in which nemo_longpo",
    ),
    "no documents": (remover("input"), "X/evolve.yaml: round 1: it has no documents; give 'input', here or for all"),
    "documents that are not there": (
        setter("rounds", 1, "input", to=["books"]),
        "/books does not exist; correct it in 'input' or 'prompts'",
    ),
    "prompts that are not there": (setter("prompts", to="words.json"), "words.json does not exist; correct it in"),
    "unknown GPU": (setter("hardware", to={"gpu": "h1000", "gpus": 8}), "h1000"),
    "settings of training as a list": (
        setter("rounds", 1, "train", to={"settings": ["trainer.max_steps"]}),
        "X/evolve.yaml: round 2: train: 'settings' must be a mapping of settings, not ['trainer.max_steps']",
    ),
    "a nested setting of training": (
        setter("train", "settings", "optim", to={"config": {"lr": 1}}),
        "X/evolve.yaml: round 1: train: settings.optim must be a text, a number, true, false or a list under its whole",
    ),
    "a stage that is no mapping": (
        setter("data", "filter", to=1),
        "X/evolve.yaml: round 1: data.filter must be a mapping of settings, not 1",
    ),
    "a zero byte": (
        setter("train", "launcher", to=["srun", "a\0"]),
        "X/evolve.yaml: train: launcher: 'a\\x00' holds a zero byte, which no path and no setting can; remove it",
    ),
    "a variable without a name": (
        setter("env", 1, to="x"),
        "X/evolve.yaml: env: 1 is no name of a variable; put it in quotes if it is",
    ),
    "a variable of training": (
        setter("train", "env", to={"A=B": "x"}),
        "X/evolve.yaml: round 1: train: env: 'A=B' is no name of a variable",
    ),
    "unknown executor": (
        setter("train", "executor", to="gpus"),
        "X/evolve.yaml: round 1: train: executor 'gpus' is not among local",
    ),
    "unknown executor of evaluation": (
        setter("evaluate", "executor", to="gpus"),
        "X/evolve.yaml: round 1: evaluate: executor 'gpus' is not among local",
    ),
    "executor without a type": (
        setter("executors", to={"gpus": {"account": "team"}}),
        "X/evolve.yaml: round 1: data: executors.gpus must be a mapping with a 'type', such as LocalExecutor",
    ),
    "missing stage": (remover("data", "score"), "X/evolve.yaml: round 1: data.score is missing; name the stage"),
    "wrong setting of a stage": (
        setter("rounds", 1, "data", "chunk", "chunk_tokens", to=0),
        "X/evolve.yaml: round 2: data: stages.chunk: chunk_tokens 0 must be at least 1",
    ),
    "unknown setting of a stage": (
        setter("data", "respond", "temprature", to=0),
        "X/evolve.yaml: round 1: data: stages.respond: unknown key 'temprature'; did you mean 'temperature'?",
    ),
    "no steps": (
        remover("train", "settings", "trainer.max_steps"),
        "X/evolve.yaml: round 1: train: settings lack trainer.max_steps, a whole number of optimizer steps; give it",
    ),
    "own path of data": (
        setter("rounds", 1, "train", to={"settings": {"data.paths": "elsewhere"}}),
        "X/evolve.yaml: round 2: train: data.paths is set by the rounds themselves; remove it from 'settings'",
    ),
    "unknown benchmark": (
        setter("evaluate", "suite", to=["papers"]),
        "X/evolve.yaml: round 1: evaluate: --suite papers is not known; choose among",
    ),
    "benchmarks without data": (
        setter("evaluate", "suite", to=["short"]),
        "X/evolve.yaml: round 1: evaluate: these benchmarks read mmlu/",
    ),
    "own questions that are not there": (
        setter("evaluate", "suite", to=["other.jsonl"]),
        "other.jsonl does not exist; correct it",
    ),
    "no short length": (
        setter("evaluate", "lengths", to=[256]),
        "X/evolve.yaml: round 1: evaluate: the gate watches lengths up to 128 tokens, and none of 'lengths' is;",
    ),
    "no short benchmark": (
        remover("gate", "short_tokens"),
        "X/evolve.yaml: round 1: evaluate: the gate watches short accuracy, and the suite has no short benchmark; add",
    ),
    "a password": (
        setter("evaluate", "base_url", to=["http://user:secret@host/v1"]),
        "X/evolve.yaml: round 1: evaluate: base_url holds a user name or password, which would be kept in the files",
    ),
    "no setting of eval": (
        setter("evaluate", "sample", to=1),
        "X/evolve.yaml: round 1: evaluate: unknown key 'sample'; did you mean 'samples'?",
    ),
}


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    small_evolution.programs(tmp_path)
    return small_evolution.content(tmp_path)


def refusal(folder: Path, told: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    """What `longpo evolve` says to a file that it refuses; nothing is run and nothing written."""
    assert main(["evolve", str(small_evolution.write(folder, told))]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert not (folder / "out").exists()
    assert not (folder / "calls").exists()
    return sentence.replace(str(folder), "X")


@pytest.mark.parametrize("case", BAD)
def test_bad_file_gets_one_sentence(tmp_path, told, capsys, case):
    change, message = BAD[case]
    change(told)
    assert message in refusal(tmp_path, told, capsys)


def test_judge_needs_an_address(tmp_path, told, capsys):
    data = tmp_path / "benchmarks"
    (data / "mt_bench/reference_answer").mkdir(parents=True)
    told["evaluate"] |= {"suite": ["mt_bench", *told["evaluate"]["suite"]], "data": str(data)}
    for name in ("mt_bench/question.jsonl", "judge_prompts.jsonl", "mt_bench/reference_answer/gpt-4.jsonl"):
        (data / name).touch()
    sentence = (
        "evaluate: the suite has answers that a judge rates; give judge_url, the address of its server, and judge"
    )
    assert sentence in refusal(tmp_path, told, capsys)
    told["evaluate"]["judge_url"] = "http://127.0.0.1:9/v1"
    assert sentence in refusal(tmp_path, told, capsys)
    told["evaluate"]["judge_model"] = "judge"
    asked = small_evolution.load(tmp_path, told).rounds[0]
    assert asked.asked[-4:] == ("--judge-model", "judge", "--judge-url", "http://127.0.0.1:9/v1")
    assert asked.asked_settings["judge_model"] == "judge"


def test_window_hides_what_is_far(tmp_path, told, capsys):
    config = tmp_path / "base/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "mistral", "sliding_window": 64}))
    assert "limits attention to a window of 64 tokens" in refusal(tmp_path, told, capsys)
    told["full_attention"] = True
    rounds = small_evolution.load(tmp_path, told).rounds
    assert [own.full_attention for own in rounds] == [True, False]


def test_vllm_reads_further_than_the_positions_of_the_base(tmp_path, told):
    told["evaluate"] |= {"lengths": [64, 1024], "engine": "vllm", "max_model_len": 1024}
    assert len(small_evolution.load(tmp_path, told).rounds) == 2


def test_scaling_reaches_further_without_another_base(tmp_path, told):
    for own in told["rounds"]:
        del own["rope_theta"]
    told["rounds"][0]["rope_scaling"] = '{"rope_type": "linear", "factor": 16.0}'
    assert [own.rope_scaling is None for own in small_evolution.load(tmp_path, told).rounds] == [False, True]


def test_scaling_of_another_base_needs_a_decision(tmp_path, told, capsys):
    config = tmp_path / "base/config.json"
    scaling = {"rope_type": "linear", "factor": 2.0}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_scaling": scaling}))
    assert "round 1: the scaling of the model it starts from was made for RoPE base 1000, not 10000; give" in refusal(
        tmp_path, told, capsys
    )
    for own in told["rounds"]:
        own["rope_scaling"] = "keep"
    assert len(small_evolution.load(tmp_path, told).rounds) == 2


def test_rounds_inherit_and_change(tmp_path, told):
    told["rounds"][1]["train"] = {"settings": {"trainer.max_steps": 8}}
    told["rounds"][1]["evaluate"] = {"lengths": [64, 128]}
    first, second = small_evolution.load(tmp_path, told).rounds
    assert first.train.settings == {"trainer.max_steps": 4, "trainer.devices": 2}
    assert (second.train.factory, second.train.settings) == (
        "tiny_longpo",
        {"trainer.max_steps": 8, "trainer.devices": 2},
    )
    assert (second.asked_settings["lengths"], second.asked_settings["samples"]) == ((64, 128), 8)
