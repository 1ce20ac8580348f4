"""A chat template that prints today's date, as Llama 3.2's does: one date per output, whatever the calendar says."""

import json
from datetime import date, datetime

import pytest
from support.small_corpus import save_reciting_model
from support.tiny_models import TEMPLATES

from nemo_longpo.data_tools.model import load_chat
from nemo_longpo.errors import InputError
from nemo_longpo.shards.reader import ShardReader

SYSTEM = "You are a helpful assistant."
DATED = TEMPLATES["qwen2.5"].replace(f"{SYSTEM}<|im_end|>\n'", "Today is ' + strftime_now('%d %b %Y') + '<|im_end|>\n'")
TURN = {"chunk": "A small boat.", "instruction": "Who?", "chosen": "The old clock", "rejected": "One letter"}


def pairs(count=2):
    return [{"doc_id": f"d{n}", "document": f"A small boat {n}. The river.", "turns": [TURN]} for n in range(count)]


@pytest.fixture
def today(monkeypatch):
    """Set the clocks of transformers and of the data tools."""

    def set_day(day):
        class Clock(datetime):
            @classmethod
            def now(cls, zone=None):
                return cls.fromisoformat(f"{day}T23:59:00")

        class Calendar(date):
            @classmethod
            def today(cls):
                return cls.fromisoformat(day)

        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
        for module in ("chat.format", "stages.model_stage"):
            monkeypatch.setattr(f"nemo_longpo.data_tools.{module}.date", Calendar, raising=False)

    set_day("2026-03-31")
    return set_day


@pytest.fixture
def model(tmp_path):
    return with_template(save_reciting_model(tmp_path / "model", "qwen2", ["Ċ", "a", "B", "<|im_end|>"]), DATED)


def with_template(model, template):
    (model / "chat_template.jinja").write_text(template)
    return model


@pytest.fixture
def run(longpo, tmp_path):
    def run_stage(stage, source, output, model, *words):
        flag = "--pairs" if stage in ("score", "pack") else "--input"
        status, _, err = longpo(stage, flag, tmp_path / source, "--model", model, "--output", tmp_path / output, *words)
        return (status, err)

    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs()))
    return run_stage


def settings(directory):
    return json.loads((directory / "settings.json").read_text())["settings"]


def trunk(shards, model):
    return load_chat(model).tokenizer.decode(ShardReader(shards)[0].trunk_ids)


def test_stages_of_several_days_use_one_date(run, today, model, tmp_path):
    assert run("respond", "pairs.jsonl", "responded", model, "--max-new-tokens", 4)[0] == 0
    today("2026-04-01")
    assert run("score", "responded", "scored", model)[0] == 0
    today("2026-04-02")
    assert run("pack", "scored", "shards", model)[0] == 0
    assert settings(tmp_path / "responded")["chat_date"] == settings(tmp_path / "scored")["chat_date"] == "2026-03-31"
    assert trunk(tmp_path / "shards", model).startswith("<|im_start|>system\nToday is 31 Mar 2026<|im_end|>")
    assert run("pack", "scored", "again", model)[0] == 0
    for file in (tmp_path / "shards").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_resumed_output_keeps_its_date(run, today, model, tmp_path):
    words = ("pairs.jsonl", "scored", model, "--part-size", 1)
    assert run("score", *words)[0] == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / "scored").glob("*-0*")}
    for lost in ("part-00001.jsonl", "counts-00001.json", "report.json"):
        (tmp_path / "scored" / lost).unlink()
    today("2026-04-01")
    assert run("score", *words)[0] == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "scored").glob("*-0*")} == made
    assert settings(tmp_path / "scored")["chat_date"] == "2026-03-31"


def test_the_date_is_a_setting(run, today, model, tmp_path):
    assert run("score", "pairs.jsonl", "scored", model, "--chat-date", "2024-07-26")[0] == 0
    assert run("pack", "scored", "shards", model)[0] == 0
    assert "Today is 26 Jul 2024" in trunk(tmp_path / "shards", model)
    status, err = run("score", "pairs.jsonl", "scored", model, "--chat-date", "2024-07-27")
    assert status == 2
    assert 'settings.chat_date was "2024-07-26", now "2024-07-27"' in err
    assert run("score", "pairs.jsonl", "scored", model, "--chat-date", "July")[1] == (
        "chat_date 'July' must be a date such as 2026-03-31"
    )


def test_template_without_date_refuses_a_date(run, today, model, tmp_path):
    with_template(model, TEMPLATES["qwen2.5"])
    assert run("score", "pairs.jsonl", "scored", model)[0] == 0
    assert "chat_date" not in settings(tmp_path / "scored")
    status, err = run("score", "pairs.jsonl", "other", model, "--chat-date", "2024-07-26")
    assert (status, "prints no date; leave out chat_date" in err) == (2, True)
    today("2026-04-01")
    assert run("score", "pairs.jsonl", "scored", model)[0] == 0


@pytest.mark.parametrize("shown", ["%Y", "%B", "%A", "%-d", "%j", "day %d"])
def test_any_part_of_a_date_is_noticed(model, shown):
    with_template(model, DATED.replace("%d %b %Y", shown))
    for day in (date(1987, 1, 9), date(1994, 6, 15), date(2026, 3, 31)):
        assert load_chat(model, day).printed_day == day


def test_pack_compares_rendered_pieces(run, model, tmp_path):
    """The same template and tokenizer with another rendering, as another version of transformers may have it."""
    assert run("score", "pairs.jsonl", "scored", model, "--chat-date", "2024-07-26")[0] == 0
    path = tmp_path / "scored" / "settings.json"
    content = json.loads(path.read_text())
    content["settings"]["chat_date"] = "2024-07-27"
    path.write_text(json.dumps(content))
    status, err = run("pack", "scored", "shards", model)
    assert status == 2
    assert "the pairs were scored with text around the messages " in err
    assert not (tmp_path / "shards").exists()


def test_random_template_is_refused(model):
    with_template(model, DATED.replace("strftime_now('%d %b %Y')", "(range(99999) | random | string)"))
    with pytest.raises(InputError, match="says something else each time"):
        load_chat(model)
