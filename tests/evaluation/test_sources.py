"""Files of benchmarks: every one has a source, is fetched whole or not at all, and is told apart from a changed one."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nemo_longpo import cli
from nemo_longpo.errors import InputError
from nemo_longpo.evaluation import sources, suites
from nemo_longpo.evaluation.benchmarks import Benchmark
from nemo_longpo.evaluation.ruler import wording

ESSAYS = b'{"text": "It was a quiet year."}'


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def reading(*files: str) -> list[Benchmark]:
    return [Benchmark(name="x", title="X", ability="long", build="a:b", metric="m", files=files)]


def source(*places: str, sha256: str | None = None) -> sources.Source:
    return sources.Source(
        what="a text",
        places=list(places),
        licence="MIT",
        page="https://example.org/about",
        columns=["text"],
        sha256=sha256,
    )


@pytest.fixture
def known(monkeypatch):
    """The sources of a test, by name."""
    entries: dict[str, sources.Source] = {}
    monkeypatch.setattr(sources, "known", lambda: entries)
    return entries


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A directory of wheels instead of an index: `essays 1.0` holds two files."""
    directory = tmp_path / "wheels"
    directory.mkdir()
    info = "essays-1.0.dist-info"
    with zipfile.ZipFile(directory / "essays-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("essays/text.json", ESSAYS)
        wheel.writestr("essays/more.json", b"[]")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: essays\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


class Pages(BaseHTTPRequestHandler):
    """Serves `pages`, path -> content, as the hub does; a path that ends in "cut" stops in the middle."""

    def __init__(self, *arguments, pages, asked):
        self.pages, self.asked = pages, asked
        super().__init__(*arguments)

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body: bool):
        self.asked.append(self.path)
        content = self.pages.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", (re.findall("[0-9a-f]{40}", self.path) or [""])[0])
        self.send_header("ETag", f'"{sha256(content or b"")}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if body and content:
            self.wfile.write(content[:2] if self.path.endswith("cut") else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    """The address of a small web server, what it serves, and the paths that it was asked for."""
    pages: dict[str, bytes] = {}
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Pages, pages=pages, asked=asked))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", pages, asked
    server.shutdown()
    server.server_close()


def test_every_file_of_a_benchmark_has_a_source():
    for benchmark in suites.BENCHMARKS.values():
        for file in benchmark.files:
            assert sources.names_of(reading(file)), f"sources.yaml does not say where {file} comes from"
    read = set(sources.names_of(suites.BENCHMARKS.values()))
    assert read == set(sources.known()), "no benchmark reads these"


@pytest.mark.parametrize("name", sources.known())
def test_entries_of_the_table(name):
    """Fixed versions only: what is fetched today is what was fetched last year."""
    entry = sources.known()[name]
    assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
    for place in entry.places:
        assert re.fullmatch(r"wheel:[a-z-]+==[\d.]+:\S+|dataset:[\w-]+/[\w-]+@[0-9a-f]{40}:\S+|https?://\S+", place), (
            place
        )
        fixed = entry.sha256 or re.search("@[0-9a-f]{40}:|/[0-9a-f]{40}/|==", place)
        assert fixed, f"{place} may change: say its hash"


def test_the_page_names_every_file_and_where_it_comes_from():
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name, entry in sources.known().items():
        assert name in page or name.rpartition("/")[2] in page, name
        first = re.split("[@:]|==", entry.places[0].partition(":")[2])[0]
        assert first.removeprefix("//raw.githubusercontent.com/").split("/450ecc8c")[0] in page, first
    for benchmark in suites.BENCHMARKS.values():
        assert benchmark.title.split()[0].rstrip(",") in page, benchmark.title


def test_the_wording_of_the_page_can_be_used(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```json\n(\{\"needles\".*?)```", page, re.DOTALL)
    (tmp_path / "wording.json").write_text(text)
    words = wording.read(tmp_path / "wording.json")
    assert words.needles.keys["Carl"] == "CARL?"


@pytest.mark.slow
def test_wheel_is_downloaded_once_and_its_files_are_recorded(tmp_path, known, wheels, capfd):
    known["text.json"] = source("wheel:essays==1.0:essays/text.json", sha256=sha256(ESSAYS))
    known["more.json"] = source("wheel:essays==1.0:essays/more.json")
    data = tmp_path / "data"
    sources.fetch(reading("text.json", "more.json"), data)
    assert (data / "text.json").read_bytes() == ESSAYS
    recorded = json.loads((data / "manifest.json").read_text())["files"]
    assert recorded["text.json"]["sha256"] == sha256(ESSAYS)
    assert recorded["more.json"]["sha256"] == sha256(b"[]")
    assert sorted(path.name for path in data.iterdir()) == ["manifest.json", "more.json", "text.json"]
    assert capfd.readouterr().err.count("Successfully downloaded essays") == 1
    sources.require(reading("text.json", "more.json"), data)
    assert sources.hashes(data, reading("text.json")) == {"text.json": sha256(ESSAYS)}


def test_an_installed_package_needs_no_download(tmp_path, known, wheels, monkeypatch):
    with zipfile.ZipFile(wheels / "essays-1.0-py3-none-any.whl") as wheel:
        wheel.extractall(tmp_path / "site")
    (wheels / "essays-1.0-py3-none-any.whl").unlink()
    monkeypatch.syspath_prepend(tmp_path / "site")
    known["text.json"] = source("wheel:essays==1.0:essays/text.json")
    sources.fetch(reading("text.json"), tmp_path)
    assert (tmp_path / "text.json").read_bytes() == ESSAYS


def test_a_file_that_changed_is_refused_by_name(tmp_path, known, site):
    address, pages, _ = site
    pages["/text.json"] = ESSAYS
    known["text.json"] = source(f"{address}/text.json")
    sources.fetch(reading("text.json"), tmp_path)
    (tmp_path / "text.json").write_bytes(ESSAYS + b" ")
    for look in (sources.require, sources.fetch):
        with pytest.raises(InputError, match=r"text\.json is not what was fetched \(SHA-256"):
            look(reading("text.json"), tmp_path)
    (tmp_path / "manifest.json").unlink()
    sources.require(reading("text.json"), tmp_path)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("other.json", "holds another file: SHA-256"), ("cut", "closed connection"), ("absent", "404")],
)
def test_what_cannot_be_fetched_is_named_and_leaves_nothing(path, reason, tmp_path, known, site):
    address, pages, _ = site
    pages |= {"/other.json": b"{}", "/cut": ESSAYS, "/good": ESSAYS}
    known["bad.json"] = source(f"{address}/{path}", sha256=sha256(ESSAYS))
    known["text.json"] = source(f"{address}/good")
    data = tmp_path / "data"
    with pytest.raises(InputError, match=r"1 file could not be fetched: bad\.json") as error:
        sources.fetch(reading("bad.json", "text.json"), data)
    assert reason in str(error.value)
    assert "its page is https://example.org/about" in str(error.value)
    assert f"put the files into {data} under these names" in str(error.value)
    assert sorted(path.name for path in data.iterdir()) == ["manifest.json", "text.json"], "the others are fetched"


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path, known, site):
    address, pages, _ = site
    pages["/text.json"] = ESSAYS
    known["text.json"] = source(f"{address}/text.json")
    (tmp_path / "data").write_text("no directory")
    with pytest.raises(InputError, match=r"data/text\.json cannot be written \(.+\); give --data another directory"):
        sources.fetch(reading("text.json"), tmp_path / "data")


def test_a_damaged_manifest_is_refused(tmp_path, known):
    known["text.json"] = source("https://example.org/text.json")
    (tmp_path / "text.json").write_bytes(ESSAYS)
    for content in ("{", '{"version": 2, "files": {}}', '{"version": 1, "files": {"text.json": {"sha256": 3}}}'):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(InputError, match=r"manifest\.json.*remove it to use the files as they are"):
            sources.require(reading("text.json"), tmp_path)


@pytest.mark.slow
def test_the_next_place_is_tried(tmp_path, known, wheels, site):
    address, pages, _ = site
    pages["/text.json"] = ESSAYS
    known["text.json"] = source("wheel:absent==1.0:text.json", f"{address}/text.json", sha256=sha256(ESSAYS))
    sources.fetch(reading("text.json"), tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["files"]["text.json"]["place"].startswith("http")


@pytest.mark.slow
def test_an_index_without_the_package_is_told_in_pips_words(tmp_path, known, wheels):
    known["text.json"] = source("wheel:absent==1.0:text.json")
    with pytest.raises(InputError, match=r"pip download absent==1\.0: ERROR: No matching distribution found"):
        sources.fetch(reading("text.json"), tmp_path)


def test_all_that_is_missing_is_named_before_any_work(tmp_path, capsys):
    """The model does not even exist."""
    (tmp_path / "squad.json").write_text("{}")
    words = ["eval", "MODEL", "--suite", "ruler,winogrande", "--data", str(tmp_path), "--output", str(tmp_path / "out")]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "lacks PaulGrahamEssays.json (https://github.com/NVIDIA/RULER, all rights are the author's" in line
    assert (
        "; hotpotqa.json (https://hotpotqa.github.io, CC BY-SA 4.0); winogrande/train.parquet, winogrande/val" in line
    )
    assert "squad.json" not in line
    assert line.endswith("fetch them with --fetch, or put them there")
    assert not (tmp_path / "out").exists()
    assert cli.main([*words[:4], "--output", str(tmp_path / "out")]) == 2
    assert "say where they are with --data DIR" in capsys.readouterr().err


def test_essays_are_not_asked_for_where_ruler_is_said_in_other_words(tmp_path):
    needles = [suites.BENCHMARKS["ruler_niah_single_2"]]
    sources.require(needles, None, may_lack=suites.ESSAYS)
    sources.require(needles, tmp_path, may_lack=suites.ESSAYS)
    with pytest.raises(InputError, match="lacks PaulGrahamEssays"):
        sources.require(needles, tmp_path)


def test_a_file_in_another_format_is_there(tmp_path):
    for name in ("train.jsonl", "validation.json"):
        (tmp_path / "winogrande").mkdir(exist_ok=True)
        (tmp_path / "winogrande" / name).write_text("")
    sources.require(reading("winogrande"), tmp_path)
    assert sources.hashes(tmp_path, reading("winogrande")).keys() == {
        "winogrande/train.jsonl",
        "winogrande/validation.json",
    }


@pytest.mark.slow
def test_the_command_fetches_datasets_and_then_works_offline(tmp_path, site):
    """With the hub's own client, which reads its environment when it is imported."""
    address, pages, asked = site
    for name in ("winogrande/train.parquet", "winogrande/validation.parquet"):
        (place,) = sources.known()[name].places
        dataset, path = place.removeprefix("dataset:").split(":")
        pages[f"/datasets/{dataset.replace('@', '/resolve/')}/{path}"] = name.encode()

    def fetch(data: str, **variables: str) -> subprocess.CompletedProcess:
        words = ["-m", "nemo_longpo.cli", "eval", "--fetch", "--suite", "winogrande", "--data", tmp_path / data]
        unset = {"HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_HUB_DISABLE_XET"}
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), **variables}
        return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)

    done = fetch("first")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "first" / "winogrande" / "train.parquet").read_text() == "winogrande/train.parquet"
    assert sorted(set(asked)) == sorted(pages)
    asked.clear()
    assert fetch("second", HF_HUB_OFFLINE="1").returncode == 0, "the hub's cache has them"
    assert (tmp_path / "second" / "winogrande" / "validation.parquet").exists()
    assert not asked
    refused = fetch("third", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert refused.returncode == 2
    assert "2 files could not be fetched: winogrande/train.parquet (dataset allenai/winogrande: " in refused.stderr


def test_packages_that_are_missing_are_named_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "PACKAGES", (*sources.PACKAGES, "absent_package"))
    assert cli.main(["eval", "MODEL", "--suite", "smoke", "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "`longpo eval` needs absent_package, not installed here: pip install 'nemo_longpo[eval]'" in message


def test_models_are_asked_for_unless_files_are_fetched(tmp_path, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main(["eval", "--suite", "smoke"])
    assert leaving.value.code == 2
    assert "the following arguments are required: MODEL, --output" in capsys.readouterr().err
    assert cli.main(["eval", "--suite", "smoke", "--fetch", "--data", str(tmp_path)]) == 0
