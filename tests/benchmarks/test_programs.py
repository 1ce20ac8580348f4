"""Benchmarks start, describe themselves, and are referred to by existing names."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in BENCHMARKS.glob("*/*.py")
    if path.parent.name != "children" and "__main__" in path.read_text(encoding="utf-8")
)
# One process for all, because most of the time goes into libraries that they share.
HELP = """
import contextlib, io, json, runpy, sys
texts = {}
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_module(name, run_name="__main__")
        except SystemExit as end:
            assert not end.code, name
    texts[name] = out.getvalue()
print(json.dumps(texts))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    command = [sys.executable, "-c", HELP, *PROGRAMS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_help_shows_the_command(helps, name):
    assert helps[name].startswith("usage: ")
    assert f"python -m {name}" in helps[name]


def test_mentioned_programs_and_results_exist():
    texts = [path for pattern in ("*.md", "*.py", "*.txt", "Makefile") for path in ROOT.glob(pattern)]
    for folder in ("benchmarks", "docs", "requirements", "data_tools", "nemo_longpo", "recipes", "conversion"):
        texts += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".md", ".py", ".txt", ".json")]
    mentioned = set()
    for path in texts:
        text = path.read_text(encoding="utf-8")
        mentioned |= {f"{name.replace('.', '/')}.py" for name in re.findall(r"\bbenchmarks(?:\.[a-z]\w*){2}", text)}
        mentioned |= {f"benchmarks/children/{name}.py" for name in re.findall(r'measured_steps\(\S+, "(\w+)"', text)}
        mentioned |= set(re.findall(r"\bbenchmarks(?:/\w+)+\.(?:py|md|json)\b", text))
    assert len(mentioned) > len(PROGRAMS)
    assert [name for name in sorted(mentioned) if not (ROOT / name).is_file()] == []


def test_readme_lists_every_program_and_result():
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert [name for name in PROGRAMS if f"`python -m {name}" not in readme] == []
    tables = sorted(path.name for path in (BENCHMARKS / "results").glob("*.md"))
    assert sorted(re.findall(r"\(results/(\w+\.md)\)", readme)) == tables
