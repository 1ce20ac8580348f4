"""The page and the PNGs of training runs: numbers are those of metrics.jsonl, text is text, damage is one sentence."""

import json
import math
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from support.report_pages import Tags, steps, table_rows, write_run

from nemo_longpo import cli
from nemo_longpo.checkpoints import run_directory, run_inputs
from nemo_longpo.errors import InputError
from nemo_longpo.line_plot import curves
from nemo_longpo.report import charts, pages
from nemo_longpo.report.runs import find_places, read_runs

HOSTILE = "<script>alert(1)</script> & \x1b[31m\u202e \"'"
SHOWN = "<script>alert(1)</script> & ⟨U+001B⟩[31m⟨U+202E⟩ \"'"


def read(*given):
    return read_runs(find_places(list(map(str, given))))


def page_of(*given, evaluations=()):
    runs = read(*given)
    return pages.page(runs, charts.graphs(runs), evaluations)


def drawings(page):
    """Every SVG of a page by its title."""
    found = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, flags=re.S)]
    return {drawing.find(".//{*}text[@class='title']").text: drawing for drawing in found}


def places(drawing):
    """The points of each line as (x, y) in the units of the axes, which are read off the labels."""
    level = [float(line.get("y1")) for line in drawing.iterfind(".//{*}line[@class='level']")]

    def labels(kind):
        texts = [text for text in drawing.iterfind(f".//{{*}}text[@class='{kind}']") if text.text != "step"]
        return [(float(text.get("x")), number(text.text)) for text in texts]

    ups = list(zip(level, (label for _, label in labels("end")), strict=True))
    acrosses = labels("middle")

    def read(marks, place):
        (begin, low), (end, high) = marks[0], marks[-1]
        return low + (place - begin) * (high - low) / (end - begin)

    lines = [line.get("points").split() for line in drawing.iterfind(".//{*}polyline")]
    points = [[tuple(map(float, point.split(","))) for point in line] for line in lines]
    title = float(drawing.find(".//{*}text[@class='title']").get("y"))
    _, _, width, height = map(float, drawing.get("viewBox").split())
    assert all(0 <= x <= width and 0 <= y <= height for line in points for x, y in line)
    assert title < min(level) < max(level) < height - 40
    return [[(read(acrosses, x), read(ups, y)) for x, y in line] for line in points if line[0][1] > title]


def number(text):
    return float(text.replace("−", "-").replace(",", ""))


def test_numbers_on_the_page_are_those_of_the_metrics(tmp_path):
    lines = steps()
    page = page_of(f"demo={write_run(tmp_path / 'run', lines)}")
    rows = table_rows(page, "demo")
    assert list(rows) == [name for name in lines[0] if name != "step"]
    for name, cells in rows.items():
        values = [line[name] for line in lines]
        expected = {"first": values[0], "last": values[-1], "lowest": min(values), "highest": max(values)}
        for column, value in expected.items():
            assert number(cells[column]) == pytest.approx(value, rel=1e-5), (name, column)
        assert number(cells["mean of the last tenth"]) == pytest.approx(values[-1], rel=1e-3)
    overview = table_rows(page, "Runs")["demo"]
    assert overview["steps"] == "6"
    assert number(overview["hours"]) == pytest.approx(0.06)
    assert number(overview["MFU"]) == pytest.approx(0.435)


def test_lines_and_hover_texts_stand_where_the_numbers_are(tmp_path):
    lines = steps()
    drawn = drawings(page_of(f"demo={write_run(tmp_path / 'run', lines)}"))
    title = next(title for title in drawn if title.startswith("Rewards"))
    drawn_lines = places(drawn[title])
    for curve, name in zip(drawn_lines, ("chosen", "rejected", "margins"), strict=True):
        expected = [(line["step"], line[f"rewards/{name}"]) for line in lines]
        assert curve == [(pytest.approx(step, abs=0.02), pytest.approx(value, abs=0.02)) for step, value in expected]
    notes = [strip.text for strip in drawn["Gradient norm"].iterfind(".//{*}rect/{*}title")]
    assert notes[:2] == ["step 1: 13.607", "step 2: 6.80351"]
    assert len(notes) == 6


def test_a_long_run_is_drawn_by_means_and_its_numbers_are_not(tmp_path):
    lines = steps(1000)
    page = page_of(f"demo={write_run(tmp_path / 'run', lines)}")
    notes = [strip.text for strip in drawings(page)["Gradient norm"].iterfind(".//{*}rect/{*}title")]
    mean = math.fsum(line["grad_norm"] for line in lines[:5]) / 5
    assert len(notes) == 200
    assert notes[0] == f"mean of steps 1 to 5: {mean:.6g}"
    assert number(table_rows(page, "demo")["grad_norm"]["first"]) == pytest.approx(lines[0]["grad_norm"], rel=1e-5)
    assert "mean of consecutive steps" in page


def test_several_runs_share_each_chart(tmp_path):
    first = write_run(tmp_path / "first", steps())
    second = write_run(tmp_path / "second", steps(4, mfu=None), command="nemo --factory longpo optim.config.lr=1e-6")
    page = page_of(first, f"other={second}")
    drawn = drawings(page)
    assert "Rewards, chosen: β · (log p − reference log p)" in drawn
    notes = [strip.text for strip in drawn["Gradient norm"].iterfind(".//{*}rect/{*}title")]
    assert notes[0] == "step 1: first 13.607, other 13.607"
    assert notes[5] == "step 6: first 2.26784"
    mfu = drawn["MFU: share of the device's bf16 peak"]
    assert [text.text for text in mfu.iterfind(".//{*}text[@class='label']")] == ["first", "other"]
    assert table_rows(page, "Runs")["other"]["MFU"] == "–"
    settings = table_rows(page, "Settings")
    assert next(iter(settings)) == "optim.config.lr"  # what differs comes first
    assert settings["optim.config.lr"] == {"first": "5e-7", "other": "1e-6"}


def test_a_run_without_some_metrics_has_no_charts_of_them(tmp_path):
    old = write_run(tmp_path / "run", steps(mfu=None, **{"rewards/chosen": None}))
    drawn = drawings(page_of(old))
    assert not [title for title in drawn if title.startswith(("MFU", "Memory"))]
    (rewards,) = [drawing for title, drawing in drawn.items() if title.startswith("Rewards")]
    notes = [strip.text for strip in rewards.iterfind(".//{*}rect/{*}title")]
    assert "chosen" not in notes[0]
    with_memory = write_run(tmp_path / "new", steps(memory_gib=lambda step: 61.5))
    assert "Memory: peak of the first GPU, GiB" in drawings(page_of(with_memory))
    assert "Not recorded: Log-probs, MFU, Speed, Memory. " in page_of(old)
    both = page_of(old, with_memory)
    assert "Not recorded: Log-probs, Speed; MFU, Memory by run. " in both
    assert table_rows(both, "Runs")["run"]["MFU"] == "–"


def test_what_was_never_finite_is_not_drawn(tmp_path):
    run = write_run(tmp_path / "run", steps(grad_norm=lambda step: math.nan))
    assert "Gradient norm" not in drawings(page_of(run))
    assert "Not recorded: Log-probs, Gradient norm, Speed, Memory. " in page_of(run)


def test_what_is_not_finite_breaks_the_line_and_is_counted(tmp_path):
    lines = steps(grad_norm=lambda step: math.nan if step == 3 else float(step))
    page = page_of(f"demo={write_run(tmp_path / 'run', lines)}")
    drawn_lines = places(drawings(page)["Gradient norm"])
    assert [len(curve) for curve in drawn_lines] == [2, 3]
    assert table_rows(page, "demo")["grad_norm"]["not finite"] == "1"
    assert "step 3: nan" in page


def test_one_step_is_a_dot(tmp_path):
    drawing = drawings(page_of(write_run(tmp_path / "run", steps(1))))["Gradient norm"]
    assert len(drawing.findall(".//{*}circle")) == 1


@pytest.mark.parametrize(
    "value",
    [
        lambda step: 5e-7,
        lambda step: 2.0 + step * 4e-16,
        lambda step: 0.0,
        lambda step: step * 5e-324,
        lambda step: (-1) ** step * 1e300,
        lambda step: math.inf if step == 2 else -1e-12,
    ],
    ids=["constant", "rounding", "zero", "denormal", "huge", "infinite"],
)
def test_any_number_can_be_drawn(tmp_path, value):
    page = page_of(write_run(tmp_path / "run", steps(grad_norm=value)))
    drawing = drawings(page)["Gradient norm"]
    places(drawing)
    labels = [text.text for text in drawing.iterfind(".//{*}text[@class='end']")]
    assert len(set(labels)) == len(labels) >= 2


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (-5.4, 11.3, [-10, -5, 0, 5, 10, 15]),
        (0, 5e-7, [0, 1e-7, 2e-7, 3e-7, 4e-7, 5e-7]),
        (3, 3, [2.6, 2.8, 3, 3.2, 3.4]),
        (2, 2 + 4e-16, [1.8, 1.9, 2, 2.1, 2.2]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, expected):
    assert curves.ticks(low, high) == expected


def test_passwords_in_settings_are_not_shown(tmp_path):
    run = write_run(tmp_path / "run", steps(), command="nemo a.proxy=http://me:secret@host:1/ b.c=1")
    page = page_of(run)
    assert "secret" not in page
    assert "http://***@host:1/" in page


def test_pngs_of_an_earlier_report_go(tmp_path, undrawn):
    pytest.importorskip("matplotlib")
    run, output = write_run(tmp_path / "run", steps()), tmp_path / "out"
    files, _ = pages.write_report([f"a={run}", f"b={run}"], output)
    assert {file.stem for file in files} - {"training"} <= charts.names()
    (output / "mine.png").write_text("mine")
    files, _ = pages.write_report([str(run)], output)
    assert {file.name for file in output.iterdir()} == {"mine.png", *(file.name for file in files)}


def test_hostile_text_stays_text_and_the_page_loads_nothing(tmp_path):
    command = f"nemo llm finetune data.paths={HOSTILE.replace(' ', '')}"
    lines = steps(**{HOSTILE: float})
    run = write_run(tmp_path / "run", lines, command=command)
    (tmp_path / "run" / "longpo" / "inputs").mkdir()
    (tmp_path / "run" / "longpo" / "inputs" / run_inputs.VERSIONS_FILE).write_text(json.dumps({"torch": HOSTILE}))
    named = f"{HOSTILE.replace('/', '')}={run}"
    page = page_of(named, f"b={run}")
    tags = Tags(page)
    assert "script" not in tags.tags
    assert not tags.open
    assert all(link.startswith("#") for link in tags.links)
    assert tags.text.count(SHOWN) >= 3  # a metric of both runs, a version
    assert f"Training: {SHOWN.replace('/', '')}, b" in tags.text
    assert not re.search("[\x1b\u202e]", page)
    assert "default-src 'none'" in page
    assert re.search(r"url\(|@import|<script|<img|<link", page) is None


def test_the_same_runs_make_the_same_bytes(tmp_path):
    pytest.importorskip("matplotlib")
    undrawn = dict.fromkeys(("loss", "loss/longpo", "rewards/chosen", "rewards/accuracies", "lr", "mfu", "grad_norm"))
    run = write_run(tmp_path / "run", steps(**undrawn))
    written = []
    for name in ("one", "two"):
        files, notes = pages.write_report([f"$a_1$={run}", f"_b={run}"], tmp_path / name)
        assert not notes
        written.append({file.name: file.read_bytes() for file in files})
    assert written[0] == written[1]
    assert {"training.html", "rewards-margin.png", "loss-nll.png", "tokens.png"} <= set(written[0])
    assert all(content.startswith(b"\x89PNG") for name, content in written[0].items() if name.endswith("png"))


def test_without_matplotlib_there_is_a_page_and_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(pages.importlib.util, "find_spec", lambda name: None)
    run = write_run(tmp_path / "run", steps())
    assert cli.main(["report", str(run), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert said.out.split() == [str(tmp_path / "out" / "training.html")]
    assert "without matplotlib" in said.err


def test_a_torn_last_line_is_left_out_with_a_sentence(tmp_path):
    run = write_run(tmp_path / "run", steps(4))
    whole = page_of(run)
    path = run_directory.metrics_file(run)
    path.write_bytes(path.read_bytes() + b'{"step": 5, "lo')
    torn = page_of(run)
    assert torn.replace("\n", "") != whole.replace("\n", "")
    assert "left out 1 line that cannot be read" in torn
    assert table_rows(torn, "run") == table_rows(whole, "run")


def damaged(tmp_path, content):
    run = write_run(tmp_path / "run", steps(2))
    run_directory.metrics_file(run).write_bytes(content)
    return run


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty: the run has finished no step"),
        (b"\0" * 300 + b"\n", "holds no line of metrics that can be read"),
        (b'{"step": 1, "loss": "2.5"}\n', "'loss' of step 1 should be a number, not '2.5'"),
        (b'{"step": 1, "loss": true}\n', "should be a number, not True"),
        (b'{"step": 1, "loss": null}\n', "should be a number, not None"),
        (b'{"step": 1, "loss": 1' + b"0" * 400 + b"}\n", "should be a number, not 1000"),
        (b'{"step": 2, "loss": 1}\n{"step": 2, "loss": 1}\n', "step 2 stands behind step 2"),
        (b'{"step": -3, "loss": 1}\n', "step -3 stands behind step 0"),
    ],
)
def test_damaged_metrics_are_one_sentence(tmp_path, capsys, content, said):
    run = damaged(tmp_path, content)
    output = tmp_path / "out"
    assert cli.main(["report", str(run), "--output", str(output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert "metrics.jsonl" in line
    assert not output.exists()


def test_where_a_run_is_found(tmp_path):
    run = write_run(tmp_path / "run", steps())
    metrics = run_directory.metrics_file(run)
    for given in (run, run / "longpo", metrics, metrics.parent):
        (found,) = read(given)
        assert (found.label, found.home, len(found.steps)) == ("run", run / "longpo", 6), given
    with pytest.raises(InputError, match="two runs are called 'run'; name them"):
        read(run, run)
    write_run(run, steps(), name="second")
    with pytest.raises(InputError, match=r"holds several runs \(longpo, second\)"):
        read(run)
    assert read(run / "second")[0].label == "second"
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no tb_logs/NAME/metrics\.jsonl"):
        read(tmp_path)


def test_pages_of_others_are_not_replaced(tmp_path):
    run = write_run(tmp_path / "run", steps())
    (tmp_path / "training.html").write_text("mine")
    with pytest.raises(InputError, match="is not of longpo report"):
        pages.write_report([str(run)], tmp_path)
    assert (tmp_path / "training.html").read_text() == "mine"
