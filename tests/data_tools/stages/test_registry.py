"""The command line and the pipeline of a stage follow from its row."""

import argparse
import re
import sys
from dataclasses import dataclass
from pkgutil import resolve_name

import pytest

from nemo_longpo.cli import build_parser, main
from nemo_longpo.data_tools.cli import register
from nemo_longpo.data_tools.options import Settings, setting
from nemo_longpo.data_tools.pipeline.config import load_pipeline
from nemo_longpo.data_tools.stages.registry import STAGES, StageCall, StageSpec

COUNT = """
def run_count(call):
    lines = call.input.read_text().splitlines()
    return {"lines": len(lines), "weight": call.values["weight"]}
"""


@dataclass(frozen=True)
class CountSettings(Settings):
    weight: int = setting(2, "what a line weighs", minimum=1)


@pytest.fixture
def count(tmp_path, monkeypatch):
    """One more stage: a row and a file."""
    (tmp_path / "counting.py").write_text(COUNT)
    monkeypatch.syspath_prepend(tmp_path)
    row = StageSpec(
        name="count",
        summary="count the lines of pairs",
        example="longpo data count --pairs work/pairs --output work/count",
        settings=(CountSettings,),
        run="counting:run_count",
        input_help="output of `longpo data filter`",
        follows=("filter",),
        input_flag="--pairs",
        needs_model=False,
    )
    monkeypatch.setitem(STAGES, "count", row)
    build_parser.cache_clear()
    yield row
    build_parser.cache_clear()
    sys.modules.pop("counting", None)


def help_of(capsys, *words):
    with pytest.raises(SystemExit):
        main(["data", *words, "--help"])
    return re.sub(r"\s+", " ", capsys.readouterr().out)


def test_a_new_row_is_on_the_command_line(count, tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("{}\n{}\n")
    assert main(["data", "count", "--pairs", str(pairs), "--output", str(tmp_path / "out"), "--weight", "3"]) == 0
    assert "count: lines 2, weight 3; written to" in capsys.readouterr().out


def test_a_new_row_is_in_the_help(count, capsys):
    assert "count count the lines of pairs" in help_of(capsys)
    text = help_of(capsys, "count")
    assert "--weight INT what a line weighs (default: 2)" in text
    assert "--pairs PATH output of `longpo data filter`" in text
    assert count.example in text


def test_a_new_row_is_in_the_file_of_a_run(count, tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("input: a\nmodel: M\noutput: w\nstages: {respond: , count: {weight: 5}, filter: }\n")
    respond, _, counting = load_pipeline(path).stages
    assert respond.call.inputs == ("a",)
    assert counting.call.words() == ["data", "count", "--pairs", "w/filter", "--output", "w/count", "--weight", "5"]


@pytest.mark.parametrize("row", STAGES.values(), ids=STAGES)
def test_every_row_names_a_function_and_earlier_stages(row):
    assert callable(resolve_name(row.run))
    names = list(STAGES)
    assert all(names.index(before) < names.index(row.name) for before in row.follows)


@pytest.mark.parametrize("name", STAGES)
def test_call_words_parse_back(name, tmp_path):
    row = STAGES[name]
    some = {"rank": 1, "world_size": 2, "base_url": ("a", "b"), "check_requests": False, "dry_run": True, "seed": 3}
    values = {key: value for key, value in some.items() if key in row.setting_names()}
    prompts = "p.json" if row.takes_prompts else None
    call = StageCall(
        stage=name, inputs=("in",), output=tmp_path, model_given=tmp_path / "model", prompts=prompts, values=values
    )
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    read = parser.parse_args(call.words())
    assert (tuple(read.inputs), read.output, read.model) == (call.inputs, call.output, call.model)
    assert read.prompts == prompts
    for kind in row.settings:
        assert call.settings(kind) == StageCall(stage=name, inputs=(), output=tmp_path, values=vars(read)).settings(
            kind
        )
