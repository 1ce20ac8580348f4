"""The page parsed as a browser does, without a browser: its content, its omissions, and that it loads nothing."""

import base64
import hashlib
import re
import shutil
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support.tiny_models import save_tiny
from support.told_shards import Told, Turn

from nemo_longpo.data_tools.inspection.drawings import scatter, signed
from nemo_longpo.data_tools.inspection.inspect_shards import environment, inspect_shards, pick
from nemo_longpo.data_tools.inspection.sample_view import CHUNK_END, CONTEXT_END, MOST_TURNS
from nemo_longpo.shards.reader import ShardReader

ROOT = Path(__file__).resolve().parents[3]
VOID = {"meta", "input"}
HOSTILE = "</span><script>alert(1)</script><img src=x onerror=alert(2)>\u202e"


@dataclass
class Node:
    name: str
    attributes: dict[str, str | None]
    children: list["Node | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, name: str, class_: str | None = None) -> list["Node"]:
        """Descendants in order, by element name and one of their classes."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                classes = (child.attributes.get("class") or "").split()
                found += [child] if child.name == name and (class_ is None or class_ in classes) else []
                found += child.all(name, class_)
        return found


class Tree(HTMLParser):
    """Builds nodes; every element must be closed by its own end tag."""

    def __init__(self, page: str):
        super().__init__()
        self.open = [Node("page", {})]
        self.feed(page)
        self.close()
        assert [node.name for node in self.open] == ["page"]

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs)
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag):
        assert self.open.pop().name == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


@pytest.fixture
def read(model, tmp_path):
    """Write the page of a shard directory and read it back: (the tree, the summary)."""

    def write_and_read(shards: Path, *, samples: int = 5, model: Path | None = model) -> tuple[Node, dict]:
        page = tmp_path / "page.html"
        summary = inspect_shards(shards, model=model, page=page, samples=samples)
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
        return Tree(page.read_text(encoding="utf-8")).open[0], summary

    return write_and_read


def tell(index: int, *turns: Turn) -> Told:
    return Told(f"document {index}", "The river crosses the quiet village. " * 5, list(turns))


def simple(margin: float) -> Turn:
    """Answers of equal length, three tokens or so; the margin has the sign of `margin`."""
    return Turn("Who?", "the boat", "the boat", -5 + margin, -5)


def logps_in(answer: Node) -> list[tuple[int, str]]:
    """(token id, log-prob as written) of every token of an answer, in order."""
    lines = [line for token in answer.all("i") for line in (token.attributes["title"] or "").split("\n")]
    found = [re.fullmatch(r"token (\d+): log p (.+), p .+", line) for line in lines]
    assert all(found)
    return [(int(match[1]), match[2]) for match in found]


def test_tokens_are_shown_with_log_probs(write, read):
    turns = [
        Turn("Who?", "naïve 灯塔🙂", "One letter\n\n  مرحبا", -0.4, -2.0),
        Turn("Why?", "12 lamps!", "x", -1.0, -3.0),
    ]
    shards = write(tell(0, *turns))
    tree, _ = read(shards)
    record = ShardReader(shards)[0]
    for name, ids, spans, logps in (
        ("chosen", record.chosen_ids, record.chosen_spans, record.ref_chosen_logps),
        ("rejected", record.rejected_ids, record.rejected_spans, record.ref_rejected_logps),
    ):
        answers = tree.all("div", name)
        assert len(answers) == 2
        for answer, (start, end), values, turn in zip(answers, spans, logps, turns, strict=True):
            written = [
                (token, f"{value:.4f}".replace("-", "−")) for token, value in zip(ids[start:end], values, strict=True)
            ]
            assert logps_in(answer) == written
            shown = answer.text.replace("↵", "").replace("·", " ")
            assert shown == f"{getattr(turn, name)}<|im_end|>"


def test_sums_shades_and_differences(write, read):
    turn = Turn("Who?", "The old clock follows the north gate?", "The old clock answers the north gate?", -0.001, -7.0)
    tree, summary = read(write(tell(0, turn)))
    chosen, rejected = tree.all("div", "chosen")[0], tree.all("div", "rejected")[0]
    margins = summary["distributions"]["margin_per_document"]
    facts = tree.all("section", "sample")[0].all("p", "facts")[0].text
    assert facts.startswith(f"margin {signed(margins['min'])} · turns 1")
    count = len(logps_in(chosen))
    assert f"{count} tokens · Σ log p {signed(-0.001 * count)} · mean −0.001" in chosen.attributes["aria-label"]
    assert {token.attributes["class"].split()[0] for token in chosen.all("i")} == {"q0"}
    assert rejected.all("i")[-1].attributes["class"] == "q6 s"
    for answer, word in ((chosen, "follows"), (rejected, "answers")):
        assert "".join(token.text for token in answer.all("i", "d")).strip() == word


def test_page_numbers_match_the_summary(write, read):
    tree, summary = read(write(*(tell(index, simple(index - 1.5), simple(0.5)) for index in range(4))))
    rows = tree.all("tbody")[0].all("tr")
    columns = [head.text for head in tree.all("thead")[0].all("th")[1:]]
    assert len(rows) == len(summary["distributions"])
    for row, spread in zip(rows, summary["distributions"].values(), strict=True):
        assert [cell.text for cell in row.all("td")] == [signed(spread[column]) for column in columns]
    cards = {card.all("dt")[0].text: card.all("dd")[0].text for card in tree.all("dl", "cards")[0].all("div")}
    assert (cards["documents"], cards["turns"]) == ("4", "8")
    assert cards["reference prefers chosen, turns"] == "75.0 %"
    bars = [int(bar.text.split(": ")[1]) for bar in tree.all("figure")[0].all("rect")]
    assert bars == summary["histograms"]["margin_per_document"]["counts"]
    assert len(tree.all("path")) == 4


def test_template_values_are_escaped():
    made = environment().from_string('<i title="{{ text }}">{{ text }}</i>{{ joined }}')
    assert made.render(text='say "a & <b>"', joined="a\u202eb\u200bc\x00\x1b\ud800") == (
        '<i title="say &#34;a &amp; &lt;b&gt;&#34;">say &#34;a &amp; &lt;b&gt;&#34;</i>'
        "a⟨U+202E⟩b⟨U+200B⟩c⟨U+0000⟩⟨U+001B⟩⟨U+D800⟩"
    )
    needed = "line\n\ttab می\u200cخواهم 👩\u200d🚀"
    assert made.render(text="", joined=needed) == f'<i title=""></i>{needed}'


def test_hostile_text_stays_text(write, read):
    told = Told(f"id {HOSTILE}", f"{HOSTILE} " * 3, [Turn(HOSTILE, f"a {HOSTILE}", f"b {HOSTILE}", -1.0, -2.0)])
    tree, _ = read(write(told))
    assert len(tree.all("script")) == 1
    assert tree.all("img") == []
    assert tree.all("section", "sample")[0].all("h3")[0].text.startswith("id </span><script>alert(1)")
    assert "<b>{instruction}</b>" in tree.all("details")[0].text
    assert HOSTILE.replace("\u202e", "⟨U+202E⟩") in tree.all("div", "chosen")[0].text.replace("·", " ")
    assert "\u202e" not in tree.text


def test_the_page_needs_nothing_from_elsewhere(write, read, tmp_path):
    tree, _ = read(write(tell(0, simple(1))))

    def check(node: Node) -> None:
        assert node.name not in ("link", "iframe", "object", "embed", "img", "base", "form")
        for name, value in node.attributes.items():
            assert name not in ("src", "srcset", "action", "style")
            assert not name.startswith("on")
            assert name != "href" or value.startswith("#")
        for child in node.children:
            if isinstance(child, Node):
                check(child)

    check(tree)
    page = (tmp_path / "page.html").read_text()
    assert re.search(r"https?:|//[a-z]|url\(|@import", page) is None
    (script,) = tree.all("script")
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    policy = next(node.attributes["content"] for node in tree.all("meta") if "http-equiv" in node.attributes)
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    targets = {link.attributes["href"][1:] for link in tree.all("a")}
    assert targets <= {node.attributes.get("id") for name in ("h2", "section") for node in tree.all(name)}


def test_long_texts_are_elided(write, read):
    long = " ".join(f"{number} lamps" for number in range(400))
    shards = write(Told("long", "A small boat. " * 500, [Turn("Who?", long, "short", -0.5, -1.0)] * (MOST_TURNS + 2)))
    tree, _ = read(shards)
    record = ShardReader(shards)[0]
    assert len(tree.all("div", "turn")) == MOST_TURNS
    (start, end), logps = record.chosen_spans[0], record.ref_chosen_logps[0]
    answer = tree.all("div", "chosen")[0]
    written = logps_in(answer)
    assert [token for token, _ in written] == [
        *record.chosen_ids[start : start + 384],
        *record.chosen_ids[end - 128 : end],
    ]
    (note,) = answer.all("span", "elided")
    missing = len(logps) - 512
    assert note.text == f"… {missing:,} tokens, Σ log p {signed(float(logps[384:-128].sum()))}, not shown …"
    (note,) = tree.all("div", "passage")[0].all("span", "elided")
    assert note.text == f"… {len(record.trunk_ids) - 2 * CONTEXT_END:,} tokens not shown …"
    assert tree.all("section", "sample")[0].children[-1].text == "… 2 more turns not shown …"


def test_turn_shows_the_chunk_of_chosen(write, read):
    document = " ".join(f"The river crosses village {number}." for number in range(60))
    chunks = [document[35:300].strip(), "This is no part of it.", document[700:1500].strip()]
    turns = [Turn("Who?", "the boat", "a boat", -1.0, -2.0, chunk) for chunk in chunks]
    shards = write(Told("chunks", document, turns), Told("none", document, [Turn("Who?", "x", "y", -1.0, -2.0)]))
    tree, _ = read(shards)
    with_chunks, without = sorted(tree.all("section", "sample"), key=lambda section: len(section.all("div", "turn")))[
        ::-1
    ]
    assert without.all("details", "chunk") == []
    first, second, third = with_chunks.all("div", "turn")
    for turn, chunk, (start, end) in zip(
        (first, third), chunks[::2], ShardReader(shards)[0].chunk_spans[::2], strict=True
    ):
        (unfolded,) = turn.all("details", "chunk")
        assert "open" not in unfolded.attributes
        assert f"{end - start} tokens, from token {start + 1} of the context" in unfolded.all("summary")[0].text
        text = unfolded.all("div", "passage")[0].text
        assert chunk in text
        assert len(text) < len(chunk) + 20
    assert second.all("details", "chunk") == []
    assert "no stretch of the context" in second.text


def test_turn_shows_the_short_prompt_where_the_chunk_is_no_stretch_of_the_context(write, read, chat):
    document = " ".join(f"The river crosses village {number}." for number in range(60))
    chunks = [document[35:300].strip(), "This is no part of it."]
    turns = [Turn("Who?", "the boat", "a boat", -1.0, -2.0, chunk) for chunk in chunks]
    shards = write(Told("prompts", document, turns, short_prompts=True))
    tree, summary = read(shards)
    first, second = tree.all("div", "turn")
    assert first.all("details", "prompt") == []
    (unfolded,) = second.all("details", "prompt")
    ids = chat.prompt(f"{chunks[1]}\n\nWho?")
    assert f"{len(ids)} tokens" in unfolded.all("summary")[0].text
    assert f"{chunks[1]}\n\nWho?" in unfolded.all("div", "passage")[0].text
    assert summary["distributions"]["prompt_tokens_per_turn"]["min"] == len(ids)


def test_a_long_chunk_is_elided(write, read):
    document = "A small boat. " * 900
    shards = write(Told("long", document, [Turn("Who?", "x", "y", -0.5, -1.0, document.strip())]))
    (chunk,) = read(shards)[0].all("details", "chunk")
    ((start, end),) = ShardReader(shards)[0].chunk_spans
    assert chunk.all("span", "elided")[0].text == f"… {end - start - 2 * CHUNK_END:,} tokens not shown …"


@pytest.mark.slow
def test_elision_cuts_no_character(write, read):
    """For all cuts in characters of several tokens, and in signs of several characters."""
    for lead in range(12):
        document = "x" * lead + "灯塔👍🏽é" * 150
        shards = write(Told("cut", document, [Turn("Who?", document, "y", -0.5, -1.0, document)]))
        tree, _ = read(shards)
        passages = [*tree.all("div", "passage"), *tree.all("div", "answer")]
        assert len([note for passage in passages for note in passage.all("span", "elided")]) >= 2
        assert "\ufffd" not in tree.text
        for passage in tree.all("div", "passage")[:1] + tree.all("div", "chosen"):
            pieces = re.split("…[^…]+…", passage.text)
            assert all(
                re.fullmatch(r"[^灯塔👍🏽é\u0301]*(灯|塔|👍🏽|é)*[^灯塔👍🏽é\u0301]*", piece) for piece in pieces
            )
        shutil.rmtree(shards)


def test_cells_name_their_column(write, read):
    tree, _ = read(write(tell(0, simple(1))))
    columns = [head.text for head in tree.all("thead")[0].all("th")[1:]]
    for row in tree.all("tbody")[0].all("tr"):
        assert [cell.attributes["data-column"] for cell in row.all("td")] == columns


def test_samples_are_ordered_by_margin(write, read):
    tree, _ = read(write(*(tell(index, simple(margin)) for index, margin in enumerate((3, -4, 1, 2, -1)))), samples=3)
    entries = [entry.text for entry in tree.all("ol", "contents")[0].all("li")]
    assert [entry.split(",")[0] for entry in entries] == [
        "document 1: lowest margin",
        "document 2: median margin",
        "document 0: highest margin",
    ]


def test_pick_is_spread_over_ranks():
    margins = np.array([5.0, 1, 4, 2, 3, 0])
    assert [index for _, index in pick(margins, 6)] == [5, 1, 3, 4, 2, 0]
    assert pick(margins, 1) == [("lowest margin", 5)]
    assert pick(np.array([7.0]), 5) == [("lowest margin", 0)]
    assert pick(np.zeros(4), 2) == [("lowest margin", 0), ("highest margin", 3)]
    assert [name for name, _ in pick(np.arange(9.0), 5)][1] == "25 % of margins are lower"


def test_answers_with_only_an_end_of_turn(write, read):
    tree, summary = read(write(tell(0, Turn("Who?", "", "", -1.0, -1.0), Turn("Why?", "", "x", -1.0, -1.0))))
    assert [len(logps_in(answer)) for answer in tree.all("div", "answer")] == [1, 1, 1, 2]
    assert summary["distributions"]["similarity_per_turn"]["max"] == 1


def test_without_a_model_the_page_shows_ids(write, read):
    shards = write(tell(0, simple(1)))
    tree, _ = read(shards, model=None)
    record = ShardReader(shards)[0]
    assert tree.all("div", "chosen")[0].text.split() == [str(token) for token in record.chosen_ids]


def test_another_tokenizer_is_refused(longpo, write, tmp_path):
    shards, page = write(tell(0, simple(1))), tmp_path / "page.html"
    page.write_text("before")
    other = save_tiny(tmp_path / "other", "mistral")
    status, _, error = longpo("inspect", shards, "--html", page, "--model", other)
    stored = ShardReader(shards).manifest.tokenizer_fingerprint
    assert status == 2
    assert re.search(f"{stored}, but .*other has [0-9a-f]{{64}}; give the model that made", error)
    assert page.read_text() == "before"


def test_unwritable_page_is_refused_first(longpo, write, tmp_path):
    shards = write(tell(0, simple(1)))
    assert "is a directory" in longpo("inspect", shards, "--html", tmp_path)[2]
    assert "does not exist" in longpo("inspect", shards, "--html", tmp_path / "no" / "page.html")[2]
    for samples in (0, 101):
        assert "between 1 and 100" in longpo("inspect", shards, "--html", tmp_path / "x.html", "--samples", samples)[2]
    assert not (tmp_path / "x.html").exists()


def test_number_of_points_is_bounded():
    xs = np.arange(5000.0)
    marks = scatter("title", "axis", xs, -xs).marks
    assert len(marks) == 2000
    assert {mark.kind for mark in marks[1:]} == {"rejected"}


def test_style_and_script_are_installed():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = ROOT / "data_tools" / "inspection"
    extra = [path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".py"]
    assert sorted(extra) == ["page.css", "page.html", "page.js"]
    wanted = patterns["nemo_longpo.data_tools.inspection"]
    assert all(any(fnmatch(name, pattern) for pattern in wanted) for name in extra)
