"""What the page says of the pairs behind a run: the stages' counts, the shards' spreads, and a page of samples."""

import dataclasses
import json
import re
import shutil

import pytest
from support import small_shards
from support.report_pages import Tags, steps, table_rows, write_run
from support.small_shards import make_record
from support.tiny_models import save_tiny
from support.told_shards import Told, Turn, write_told

from nemo_longpo.checkpoints import run_inputs
from nemo_longpo.data_tools.model import load_chat
from nemo_longpo.report import pages, shard_data

pytestmark = pytest.mark.usefixtures("undrawn")

FILTER = {"most_words": 40}


def given(run, *shards, start=None):
    """Record on what a run was trained."""
    inputs = run_inputs.RunInputs(
        start=start and run_inputs.Given(str(start), "s"),
        shards=tuple(run_inputs.Given(str(path), "f") for path in shards),
        loss={},
    )
    run_inputs.write_inputs(run / "longpo" / "inputs", inputs)
    return run


def stage(folder, name, settings, report):
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({"stage": name, "settings": settings}))
    (folder / "report.json").write_text(json.dumps(report))


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Three documents, and beside them the stage that they say they come from, and one that they do not."""
    monkeypatch.setattr(
        small_shards,
        "PROVENANCE",
        dataclasses.replace(small_shards.PROVENANCE, generation={"chunk": {}, "filter": FILTER}),
    )
    small_shards.write(tmp_path / "data" / "shards", *map(make_record, range(3)))
    counts = {"documents_in": 7, "documents_out": 3, "turns_in": 20, "turns_out": 6, "dropped_refusal": 2}
    stage(
        tmp_path / "data" / "filter", "filter", FILTER, counts | {"dropped_identical": 12, "documents_without_turns": 4}
    )
    stage(tmp_path / "data" / "filter2", "filter", {"most_words": 41}, {"documents_in": 999})
    stage(tmp_path / "data" / "chunk", "chunk", {}, {"documents_in": 7, "documents_out": 7, "turns_out": 20})
    return tmp_path / "data" / "shards"


def report(tmp_path, *runs):
    _, notes = pages.write_report([str(run) for run in runs], tmp_path / "out")
    return (tmp_path / "out" / "training.html").read_text(encoding="utf-8"), notes


def test_counts_of_stages_and_spreads_of_shards(tmp_path, shards):
    page, _ = report(tmp_path, given(write_run(tmp_path / "run", steps()), shards))
    stages = table_rows(page, "Stages")
    assert list(stages) == ["chunk", "filter"], "in the order in which they were run"
    assert stages["filter"] == {"documents in": "7", "documents out": "3", "turns in": "20", "turns out": "6"}
    assert stages["chunk"]["turns in"] == "–"
    assert "999" not in page
    dropped = table_rows(page, "Dropped, by reason")
    assert list(dropped) == ["identical", "refusal"]
    assert dropped["identical"] == {"stage": "filter", "turns": "12", "of its turns": "60.0 %"}
    spreads = table_rows(page, "Shards")
    lengths = spreads["tokens of a sequence: document, instruction, longer answers"]
    assert (lengths["min"], lengths["median"], lengths["max"]) == ("12", "13", "14")
    assert spreads["tokens of a chosen answer"]["mean"] == "2.50"
    assert spreads["reference log p per token, rejected"]["min"] == "−2.50"
    # Log-probs of the six turns, chosen and rejected: −1 and −1.5 three times, then 0, −3, −6 and −5.
    assert (
        "3 documents with 6 turns. The reference, which read the short context, prefers the chosen answer in 83.3 %"
        in page
    )


def test_samples_are_a_page_beside(tmp_path):
    model = save_tiny(tmp_path / "start" / "context" / "hf", "qwen2")
    turn = Turn("Who waits?", "the keeper", "the boat", -0.1, -2.0)
    folder = tmp_path / "data" / "shards"
    write_told(folder, load_chat(model), Told("<b>doc</b>", "The keeper waits for a boat.", [turn]))
    run = given(write_run(tmp_path / "run", steps()), folder, start=tmp_path / "start")
    page, _ = report(tmp_path, run)
    links = [link for link in Tags(page).links if link and not link.startswith("#")]
    assert links == ["shards-1.html"]
    samples = (tmp_path / "out" / "shards-1.html").read_text(encoding="utf-8")
    assert "keeper waits" in Tags(samples).text
    assert "&lt;b&gt;doc" in samples
    assert "token ids" not in page
    (tmp_path / "out" / "shards-9.html").write_text("of an earlier report")
    shutil.rmtree(tmp_path / "start")
    page, _ = report(tmp_path, run)
    assert "Samples are shown as token ids: no tokenizer of these shards was found." in page
    assert "keeper waits" not in Tags((tmp_path / "out" / "shards-1.html").read_text(encoding="utf-8")).text
    assert not (tmp_path / "out" / "shards-9.html").exists()


def test_large_shards_are_measured_in_part_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_data, "MEASURED", 2)
    shards = tmp_path / "shards"
    small_shards.write(shards, *map(make_record, range(5)))
    page, _ = report(tmp_path, given(write_run(tmp_path / "run", steps()), shards))
    assert "5 documents with 10 turns. The spreads are those of 2 of them, evenly spaced." in page
    lengths = table_rows(page, "Shards")["tokens of a sequence: document, instruction, longer answers"]
    assert (lengths["min"], lengths["max"]) == ("12", "14")
    samples = (tmp_path / "out" / "shards-1.html").read_text(encoding="utf-8")
    assert "Of 2 evenly spaced documents of 5." in samples
    assert set(re.findall(r"<bdi>(document \d)</bdi>", samples)) == {"document 0", "document 2"}


def test_shards_of_several_runs_stand_once(tmp_path, shards):
    first = given(write_run(tmp_path / "first", steps()), shards)
    page, _ = report(tmp_path, first, given(write_run(tmp_path / "second", steps()), shards))
    assert page.count("<h3>Stages</h3>") == 1
    assert f"first, second: {shards}" in page


def test_what_is_not_known_is_said(tmp_path, shards):
    page, _ = report(tmp_path, write_run(tmp_path / "old", steps()))
    assert "No record says on which shards this run was trained." in page
    gone = given(write_run(tmp_path / "gone", steps()), tmp_path / "nowhere")
    page, _ = report(tmp_path, gone)
    assert "These shards are not there any more" in page
    moved = given(write_run(tmp_path / "training", steps()), tmp_path / "nowhere" / "shards")
    assert "3 documents with 6 turns" in report(tmp_path, moved)[0], "a round that was moved has them beside it"
    (shards.parent / "filter" / "report.json").write_text("{")
    assert "report.json is not readable JSON" in report(tmp_path, moved)[0]
    for file in shards.glob("*.arrow"):
        file.write_bytes(b"no shards")
    page, _ = report(tmp_path, moved)
    assert "shard-00000.arrow" in page
    assert "<h3>Shards</h3>" not in page
    assert not (tmp_path / "out" / "shards-1.html").exists()
