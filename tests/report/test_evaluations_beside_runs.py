"""Results of `longpo eval` on the page of training runs, and in an evolution those of each round."""

import json

import pytest
from support.eval_scores import SETTINGS, model_scores
from support.report_pages import steps, table_rows, write_run

from nemo_longpo.errors import InputError
from nemo_longpo.evaluation.results import paper_layout, report as results_report, tables
from nemo_longpo.evaluation.results.results_json import FORMAT, as_json, read_summary
from nemo_longpo.evaluation.results.summary import summarise
from nemo_longpo.evaluation.results.verdict import verdict
from nemo_longpo.report import charts, pages
from nemo_longpo.report.runs import find_places, read_runs


def evaluated(tmp_path):
    before = {("facts", 64): [1, 0, 1, 0], ("ruler_vt", 256): [1, 0], ("mmlu", None): [1, 0, 0, 1]}
    after = {**before, ("facts", 64): [1, 1, 1], ("mt_bench", None): [0.5, 0.75]}
    found = summarise([model_scores("before", before), model_scores("after", after)], SETTINGS, {"torch": "2"})
    path = tmp_path / "results.json"
    path.write_text(results_report.to_text(as_json(found, verdict(found))), encoding="utf-8")
    return found, path


def test_results_read_back_make_the_same_tables(tmp_path):
    found, path = evaluated(tmp_path)
    back, line = read_summary(path)
    assert line == verdict(found)
    assert tables.length_tables(back) == tables.length_tables(found)
    assert paper_layout.paper_tables(back) == paper_layout.paper_tables(found)
    assert {group.title for group in back.groups} == {group.title for group in found.groups}


def test_evaluation_results_stand_beside(tmp_path, undrawn):
    _, path = evaluated(tmp_path)
    run = write_run(tmp_path / "run", steps())
    pages.write_report([str(run)], tmp_path / "out", [tmp_path])
    page = (tmp_path / "out" / "training.html").read_text(encoding="utf-8")
    assert table_rows(page, "facts by length")["after"] == {"64": "100.0 ± 0.0"}
    assert ">facts</text>" in page
    assert '<a href="#evaluation">' in page
    for content, said in (
        ("{}", "is not of this version of longpo eval"),
        ("{", "is not readable JSON"),
        (json.dumps({"format": FORMAT, "verdict": "", "tasks": [{"name": "x"}]}), "is damaged: "),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=said):
            pages.write_report([str(run)], tmp_path / "other", [path])
    assert not (tmp_path / "other").exists()


def scored(after, more=()):
    base = {("facts", 64): [1, 0, 1, 0], **dict(more)}
    models = [model_scores("before", base), model_scores("after", {key: [after] * 4 for key in base})]
    return summarise(models, SETTINGS, {})


def test_scores_stand_by_length_and_round():
    longer = {("facts", 256): [0, 0, 0, 1]}
    (table,) = charts.lengths_by_round([("round 1", scored(1)), ("round 2", scored(0, longer))])
    assert table.columns == ("64", "256")
    cells = {row.name: [cell.split(" ")[0] for cell in row.cells] for row in table.rows}
    assert cells == {"before": ["50.0", "25.0"], "round 1: after": ["100.0", "–"], "round 2: after": ["0.0", "0.0"]}
    other = scored(1)
    assert charts.lengths_by_round([("alone", other)]) == []
    base_differs = summarise([model_scores("before", {("facts", 64): [1, 1, 1, 0]})], SETTINGS, {})
    (table,) = charts.lengths_by_round([("round 1", other), ("round 2", base_differs)])
    assert [row.name for row in table.rows] == ["round 1: before", "round 1: after", "round 2: before"]


def test_every_round_of_an_evolution_is_a_run_with_its_evaluation(tmp_path, undrawn):
    evolution = tmp_path / "evolved"
    for number, margin in ((2, 2.0), (10, 10.0)):
        write_run(evolution / f"round-{number}" / "training", steps(**{"rewards/margins": lambda _, m=margin: m}))
    write_run(evolution / "round-11" / "training", [])  # it starts
    (evolution / "round-12").mkdir()  # its data is made
    (evolution / "round-10" / "evaluation").mkdir()
    _, results = evaluated(tmp_path)
    results.rename(evolution / "round-10" / "evaluation" / "results.json")
    pages.write_report([str(evolution)], tmp_path / "out")
    page = (tmp_path / "out" / "training.html").read_text(encoding="utf-8")
    rows = table_rows(page, "Runs")
    assert {name: cells["margin"] for name, cells in rows.items()} == {
        "evolved, round 2": "2",
        "evolved, round 10": "10",
    }
    assert list(rows) == ["evolved, round 2", "evolved, round 10"]
    assert page.count("<h3>evolved, round 10</h3>") == 2  # its numbers and its evaluation
    assert page.count("<h3>evolved, round 2</h3>") == 1
    (alone,) = read_runs(find_places([f"last={evolution / 'round-10'}"]))
    assert alone.label == "last"
    (tmp_path / "none" / "round-1").mkdir(parents=True)
    with pytest.raises(InputError, match="has trained a step yet; wait until one has"):
        read_runs(find_places([str(tmp_path / "none")]))
