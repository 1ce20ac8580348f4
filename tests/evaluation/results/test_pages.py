"""Markdown, page and plot: numbers in their places, what models wrote as text and nothing else, the paper's rows."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from support.eval_scores import SETTINGS, model_scores
from support.report_pages import Tags

from nemo_longpo.evaluation.results import pages, plot
from nemo_longpo.evaluation.results.paper_layout import paper_tables, read_paper
from nemo_longpo.evaluation.results.summary import summarise
from nemo_longpo.evaluation.results.tables import terminal_table, tokens
from nemo_longpo.evaluation.results.verdict import verdict
from nemo_longpo.evaluation.suites import SUITES

GOLDEN = Path(__file__).parent / "golden_report.md"
HOSTILE = "<script>alert(1)</script> & \x1b[31m\u202eabc\u2066 \"'"


def small(second="after"):
    before = {
        ("facts", 64): [1, 0, 1, 0],
        ("facts", 128): [0, 0, 0, 1],
        **{(name, None): [1, 0, 0, 1] for name in SUITES["short"]},
        ("rated", None): [0.5, 0.7],
    }
    after = {**before, ("facts", 64): [1, 1, 1], ("mmlu", None): [1, 0, 0, 0], ("rated", None): [0.6, 0.9]}
    models = [model_scores("before", before, dropped=1), model_scores(second, after)]
    return summarise(models, SETTINGS, {"nemo_longpo": "1.0", "lm_eval": "0.4"})


def page_of(summary):
    return pages.page(summary, verdict(summary))


def test_markdown_is_as_reviewed():
    found = small()
    assert pages.markdown(found, verdict(found)) == GOLDEN.read_text(encoding="utf-8")


def test_terminal_table():
    assert terminal_table(small()).splitlines() == [
        "                 before        after  after − before",
        "facts       37.5 ± 37.4  62.5 ± 24.5    +16.7 ± 32.7",
        "  64        50.0 ± 56.6  100.0 ± 0.0    +33.3 ± 65.3",
        "  128       25.0 ± 49.0  25.0 ± 49.0      +0.0 ± 0.0",
        "MMLU        50.0 ± 56.6  25.0 ± 49.0    −25.0 ± 49.0",
        "ARC-C       50.0 ± 56.6  50.0 ± 56.6      +0.0 ± 0.0",
        "HellaSwag   50.0 ± 56.6  50.0 ± 56.6      +0.0 ± 0.0",
        "Winogrande  50.0 ± 56.6  50.0 ± 56.6      +0.0 ± 0.0",
        "Rated       6.00 ± 1.96  7.50 ± 2.94    +1.50 ± 0.98",
        "before: 7 questions that did not fit were dropped",
    ]


def test_hostile_text_stays_text():
    label = f"m {HOSTILE}"
    found = small(label)
    for model in found.models:
        for task in model.tasks:
            for sample in task.samples:
                object.__setattr__(sample, "answer", f"wrote {HOSTILE}")
                object.__setattr__(sample, "expected", [f"right {HOSTILE}"])
                object.__setattr__(sample, "id", f"{sample.id} {HOSTILE}")
    page = page_of(found)
    shown = "<script>alert(1)</script> & ⟨U+001B⟩[31m⟨U+202E⟩abc⟨U+2066⟩ \"'"
    read = Tags(page)
    assert "script" not in read.tags
    assert not read.open
    assert all(link.startswith("#") for link in read.links)
    for text in (f"m {shown}", f"wrote {shown}", f"right {shown}", f"q0 {shown}"):
        assert text in read.text
    assert not re.search("[\x1b\u202e\u2066]", page)
    drawing = pages.svg(found)
    assert drawing is not None
    assert not re.search("[\x1b\u202e\u2066]", drawing)
    labels = [text.text for text in ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]
    assert f"m {shown}" in labels
    written = pages.markdown(found, verdict(found))
    assert "\x1b" not in written
    assert "\u202e" not in written
    assert r"m \<script\>alert(1)\</script\> \& \\x1b\[31m\\u202eabc\\u2066" in written


def test_the_page_loads_nothing():
    page = page_of(small())
    assert "default-src 'none'" in page
    assert re.search(r"url\(|@import|<script|<img|<link", page) is None


def test_the_page_shows_questions_that_changed():
    """facts at 64: q1 went from wrong to right, the others stayed; MMLU: q3 from right to wrong."""
    page = page_of(small())
    sections = re.findall(r'<section class="asked">.*?</section>', page, flags=re.S)
    names = [re.findall(r"<bdi>(.*?)</bdi>", section)[:2] for section in sections]
    assert names == [["facts 64", "q1"], ["MMLU", "q3"], ["Rated", "q0"], ["Rated", "q1"]]
    assert "<bdi>before</bdi>: 0 of 100" in sections[0]
    assert "<bdi>after</bdi>: 6 of 10" in sections[2]


def test_the_plot_stands_where_the_numbers_are():
    drawn = plot.draw(small())
    assert drawn is not None
    (panel,) = drawn.panels
    assert [label for _, label in panel.across] == ["64", "128"]
    levels = {label: y for y, label in panel.up}
    before, after = panel.lines
    height = levels["0"] - levels["100"]
    assert [point.y for point in before.points] == [
        pytest.approx(levels["50"], abs=0.1),
        pytest.approx(levels["25"], abs=0.1),
    ]
    assert after.points[0].y == levels["100"]
    assert before.points[0].bar == (levels["0"], levels["100"])  # 50 ± 56.6 is drawn as far as there are scores
    assert before.points[1].bar == (levels["0"], pytest.approx(levels["0"] - 0.74 * height, abs=0.2))
    assert before.points[0].x < panel.across[0][0] < after.points[0].x


def test_without_lengths_there_is_no_plot():
    found = summarise([model_scores("m", {("mmlu", None): [1, 0]})], SETTINGS, {})
    assert pages.svg(found) is None
    assert "<svg" not in page_of(found)


def test_averages_of_the_paper_follow_from_its_numbers():
    """A digit that was copied wrong would show."""
    checked = 0
    for model in read_paper().models:
        own = model.scores
        if "∞Bench" in own and model.name != "Mistral-7B DPO":  # published so
            mean = sum(own[name] for name in ("En.Sum", "En.QA", "En.MC")) / 3
            assert own["∞Bench"] == pytest.approx(mean, abs=0.011), model.name
            checked += 1
        if "RULER" in own:
            parts = {"RULER NIAH": 8, "RULER VT": 1, "RULER AGG": 2, "RULER QA": 2}
            mean = sum(count * own[name] for name, count in parts.items()) / 13
            assert own["RULER"] == pytest.approx(mean, abs=0.07), model.name
            checked += 1
        if "Short" in own:
            mean = sum(own[name] for name in ("MMLU", "ARC-C", "Hellaswag", "Winogrande")) / 4
            assert own["Short"] == pytest.approx(mean, abs=0.011), model.name
            checked += 1
    assert checked > 20


def test_a_part_of_the_paper_s_tasks_is_no_number_of_the_paper():
    found = summarise([model_scores("m", {("ruler_vt", 256): [1, 0], ("mmlu", None): [1, 0]})], SETTINGS, {})
    long, short = paper_tables(found)
    assert "RULER is the mean of 1 of 13 tasks: not the paper's number." in long.notes
    assert "RULER here is the mean over 256 tokens." in long.notes
    assert "short is the mean of 1 of 4 tasks: not the paper's number." in short.notes
    assert dict(zip(long.columns, long.rows[0].cells, strict=True))["VT"] == "50.0 ± 98.0"


def test_ruler_in_other_words_does_not_stand_beside_the_paper():
    scores = [model_scores("m", {("ruler_vt", 256): [1, 0]})]
    assert not paper_tables(summarise(scores, {**SETTINGS, "wording": "sha256 of a file"}, {}))
    assert paper_tables(summarise(scores, {**SETTINGS, "wording": None}, {}))


def test_lengths_read_as_people_say_them():
    assert [tokens(length) for length in (64, 1000, 1024, 4096, 131072, 1048576)] == [
        "64", "1,000", "1K", "4K", "128K", "1M",
    ]  # fmt: skip
