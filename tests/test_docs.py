"""What the documents say of files, versions and settings is so."""

import re
from pathlib import Path

import pytest
from support import documents

from nemo_longpo import setting_names, trainers

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md", "benchmarks/README.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
FOLDERS = "nemo_longpo|recipes|conversion|data_tools|tests|benchmarks|examples|requirements|docs"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document):
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", document.read_text(encoding="utf-8"))
    # A name may be as installed, or begin in the folder of the tests.
    places = {name: [ROOT / name, ROOT / name.removeprefix("nemo_longpo/"), ROOT / "tests" / name] for name in named}
    missing = [name for name, paths in places.items() if not any(path.exists() for path in paths)]
    assert not missing


def test_both_ways_in_are_named_with_what_is_tested():
    cells = {name: (nemo, bridge) for name, nemo, bridge in documents.rows_behind("README.md", "[start:trainers]")}
    for text, trainer in zip(cells["tested, without a GPU"], (trainers.NEMO, trainers.BRIDGE), strict=True):
        tested = re.findall(r"\d+\.\d+\.\d+", " ".join(trainer.tested.values()))
        assert set(re.findall(r"\d+\.\d+\.\d+", text)) == set(tested)
    nemo, bridge = cells["container"]
    base = re.search(r"ARG BASE=\S+:([\d.]+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert base[1] in nemo
    assert base[1] in trainers.NEMO_IMAGE
    newer = re.search(r"BASE=\S+:([\d.]+)", bridge)
    assert newer[1] in trainers.BRIDGE_IMAGE


def test_settings_are_migrated_as_errors_are_translated():
    pairs = documents.migrated_settings()
    assert len(pairs) > 20
    wrong = {theirs: (ours, setting_names.translate_name(theirs)) for theirs, ours in pairs.items()}
    assert {theirs: names for theirs, names in wrong.items() if names[0] != names[1]} == {}
    assert set(setting_names.NAMES) <= set(pairs), "the table names every setting that has another name"


@pytest.mark.slow
def test_migrated_settings_are_those_of_nemos_recipes():
    from nemo_longpo.nemo.recipes import RECIPES

    recipe = RECIPES["longpo"]()
    for theirs in documents.migrated_settings():
        place = recipe
        *owners, name = theirs.split(".")
        for owner in owners:
            place = getattr(place, owner)
        assert hasattr(place, name) or name in place.__signature_info__.parameters, theirs
