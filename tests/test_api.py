"""The public names: light to import, all described in docs/api.md, and every example there runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nemo_longpo

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
MODEL = ROOT / "recipes" / "demo" / "model"


def test_import_takes_no_time():
    """Less than 0.1 s of processor time on an idle machine, without Python's own start."""
    code = "import time; start = time.process_time(); import nemo_longpo; print(time.process_time() - start)\n"
    code += "import sys; assert not [name for name in sys.modules if name.startswith('nemo_longpo.')]"
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
        for _ in range(3)
    ]
    assert min(seconds) < 0.1


@pytest.mark.parametrize("name", sorted(set(nemo_longpo.__all__) - {"export_checkpoint", "longpo_recipe"}))
def test_name_is_there(name):
    assert getattr(nemo_longpo, name).__name__ == name


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'nemo_longpo' has no attribute 'Objectives'"):
        nemo_longpo.Objectives  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "nemo_longpo" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(seen) == sorted(nemo_longpo.__all__)
    assert seen == {name: module for module, names in nemo_longpo._MODULES.items() for name in names}


def test_page_describes_every_name():
    described = re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE)
    assert sorted({*described, "Provenance", "ReferenceModel"}) == sorted(nemo_longpo.__all__)
    for section in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        assert section.count("```python") == 1, section.splitlines()[0]


def _run_examples(text: str, directory: Path, python: str | Path = sys.executable) -> subprocess.CompletedProcess:
    """Run the examples of `text` one after another, in one new process."""
    (directory / "model").symlink_to(MODEL)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert code
    (directory / "examples.py").write_text(code)
    return subprocess.run([python, "examples.py"], cwd=directory, capture_output=True, text=True)


WITHOUT_NEMO = PAGE.split("## Training and conversion")[0]


@pytest.mark.slow
def test_examples_run_without_nemo(tmp_path):
    done = _run_examples(WITHOUT_NEMO + "```python\nimport sys\nassert 'nemo' not in sys.modules\n```\n", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nowhere is neither a known model")


@pytest.mark.distributed
def test_all_examples_run(tmp_path, programs):
    done = _run_examples(PAGE, tmp_path, programs / "python")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "exported" / "config.json").is_file()
