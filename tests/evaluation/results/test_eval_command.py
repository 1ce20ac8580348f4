"""`longpo eval` from the command line to its files, on small models that know nothing."""

import json

import pytest
from support.tiny_models import save_tiny

from nemo_longpo.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Two models of different weights, and questions of which any answer with an `e` in it is half right."""
    folder = tmp_path_factory.mktemp("eval")
    for seed, name in enumerate(("before", "after")):
        save_tiny(folder / name, "llama", seed=seed)
    rows = [
        {"prompt": f"Who rows boat {number}?", "answers": [letter, "no such name"], "length": length}
        for length in (64, 128)
        for number, letter in enumerate("aeiou")
    ]
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = [f"{name}={folder / name}" for name in ("before", "after")]
    return ["eval", *models, "--suite", str(folder / "facts.jsonl")]


def files(directory):
    """All but the file that says when the run was at work."""
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != "status.json"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def test_runs_and_what_they_print(arguments, tmp_path, capsys):
    assert main([*arguments, "--output", str(tmp_path / "one")]) == 0
    printed = capsys.readouterr().out
    once = files(tmp_path / "one")
    content = json.loads(once["results.json"])
    assert printed.splitlines()[-1] == content["verdict"]
    assert [(task["length"], task["models"]["before"]["n"]) for task in content["tasks"]] == [(64, 5), (128, 5)]
    assert content["models"][0]["identity"]["model"] != content["models"][1]["identity"]["model"]
    assert content["settings"]["benchmarks"]["facts"]["chat_template"] is True
    assert {"nemo_longpo", "lm_eval", "transformers", "torch"} <= set(content["versions"])

    assert main([*arguments, "--output", str(tmp_path / "one"), "--json"]) == 0  # all answers are there
    assert capsys.readouterr().out.encode() == once["results.json"]
    assert main([*arguments, "--output", str(tmp_path / "two")]) == 0
    assert files(tmp_path / "one") == files(tmp_path / "two") == once


def test_settings_of_questions_reach_the_results(arguments, tmp_path, capsys):
    told = ["--seed", "7", "--chat-template", "never", "--too-long", "drop", "--system-prompt", "Answer.", "--json"]
    assert main([*arguments, "--output", str(tmp_path / "out"), *told]) == 0
    found = json.loads(capsys.readouterr().out)["settings"]
    assert (found["seed"], found["too_long"], found["system_prompt"]) == (7, "drop", "Answer.")
    assert found["benchmarks"]["facts"]["chat_template"] is False


def test_conditions_decide_the_exit_code(arguments, tmp_path, capsys):
    output = ["--output", str(tmp_path / "out")]
    assert main([*arguments, *output, "--fail-if", "long<-100.1", "--fail-if", "facts>100.1"]) == 0
    assert "holds" not in capsys.readouterr().err
    assert main([*arguments, *output, "--fail-if", "long<-100.1", "--fail-if", "facts<100.1"]) == 1
    assert "longpo: facts<100.1 holds: facts is " in capsys.readouterr().err


@pytest.mark.parametrize("condition", ["short<-1.0", "long", "long<much"])
def test_refused_before_any_work(arguments, tmp_path, capsys, condition):
    assert main([*arguments, "--output", str(tmp_path / "out"), "--fail-if", condition]) == 2
    assert "longpo: error: --fail-if" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ruler", "mmlu", "chat", "facts"])
def test_a_file_of_questions_has_a_name_of_its_own(arguments, tmp_path, capsys, name):
    *models, own = arguments
    (tmp_path / f"{name}.jsonl").write_text('{"prompt": "Who?", "answers": ["a"]}\n')
    command = [*models, f"{own},{tmp_path / name}.jsonl", "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert f"something else is called {name} here" in capsys.readouterr().err


def test_another_model_in_the_same_directory_asks_only_what_is_new(arguments, tmp_path, capsys, monkeypatch):
    from nemo_longpo.data_tools.engines.engine_options import EngineOptions

    loaded, load = [], EngineOptions.load
    monkeypatch.setattr(
        EngineOptions, "load", lambda self, model, **kw: loaded.append(model) or load(self, model, **kw)
    )
    command, before, after, *suite = arguments
    output = ["--output", str(tmp_path / "out")]
    assert main([command, before, *suite, *output]) == 0
    assert main([command, before, after, *suite, *output]) == 0
    assert [str(path).rpartition("/")[2] for path in loaded] == ["before", "after"]
    capsys.readouterr()
    assert main([command, after, *suite, *output]) == 0
    assert len(loaded) == 2
    assert [path.name for path in (tmp_path / "out/samples").iterdir()] == ["after"]
