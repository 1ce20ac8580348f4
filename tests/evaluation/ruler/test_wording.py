"""Wording files: what they may say, and the sentence for what they may not."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from nemo_longpo.errors import InputError
from nemo_longpo.evaluation.ruler import needles, official, wording

PAGE = Path(__file__).parents[3] / "docs" / "evaluation.md"
NEEDLES = {"template": "{context} {query}", "needle": "{key} {value}", "repeat": "So."}


def write(tmp_path, content):
    path = tmp_path / "words.json"
    path.write_text(json.dumps(content))
    return path


def test_official_words_as_a_file(tmp_path):
    """All that the harness says can be said by a file."""
    words = official.official()
    assert wording.read(write(tmp_path, asdict(words))) == words
    assert words.needles.prefix.endswith("are")
    assert words.needles.prefix_of_one.endswith("is")
    assert len(words.common_words.words) > 8000
    assert words.documents.document.startswith("Document {i}")


def test_official_words_without_the_harness_running():
    """Importing its RULER modules would look for data of nltk on the network."""
    code = (
        "import sys; from nemo_longpo.evaluation.ruler import official; official.official(); official.word_pairs()\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] in ('lm_eval', 'nltk', 'requests')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_harness(monkeypatch, tmp_path):
    """A harness that has its prompts elsewhere, or none at all, is one sentence."""
    place = tmp_path / "lm_eval" / "tasks" / "ruler"
    place.mkdir(parents=True)
    monkeypatch.setattr(
        official, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / name / "__init__.py"))
    )
    for name in ("niah_utils", "prepare_niah", "vt_utils"):
        with pytest.raises(InputError, match=r"where lm_eval 0.4.13 has them; install lm_eval==0.4.13"):
            official.official.__wrapped__()
        (place / f"{name}.py").write_text("TEMPLATE = 3")
    monkeypatch.setattr(official, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"which is not installed; pip install lm_eval==0.4.13"):
        official.official.__wrapped__()


def test_documented_file(tmp_path):
    (example,) = re.findall(r"```json\n(\{\"needles\".*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    words = wording.read(write(tmp_path, json.loads(example)))
    maker = needles.NeedleMaker(needles.NEEDLE_TASKS["niah_multikey_1"], words.needles, 64, None)
    made = maker(9, Random(0))
    assert made.answers[0] in made.prompt
    assert re.search(r"Where is [A-Z]+\?$", made.prompt)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"needle": NEEDLES}, "field 'needle' is unknown"),
        ({"needles": NEEDLES | {"template": "{context}"}}, "'needles.template' has the places"),
        ({"needles": NEEDLES | {"needle": "{key} {value} {number}"}}, r"needs \['key', 'value'\], beside which it may"),
        ({"needles": NEEDLES | {"needle": "{key"}}, "'needles.needle': expected '}'"),
        ({"needles": NEEDLES | {"needle": "{key.__class__} {value}"}}, "'needles.needle' has the places"),
        ({"needles": NEEDLES | {"needle": "{key:d} {value}"}}, "'needles.needle' has"),
        ({"needles": NEEDLES | {"keys": {"a": "A?"}, "values": ["b", "c"]}}, "5 different entries or more"),
        ({"needles": NEEDLES | {"keys": ["a"]}}, "needles.keys' should be an object"),
        ({"needles": {"template": "{context} {query}"}}, "'needles.needle' is missing"),
        (
            {
                "chains": {
                    "template": "{context} {query}",
                    "first": "{variable} {value}",
                    "link": "{variable} {previous}",
                }
            },
            "'chains.noises' is missing",
        ),
        ({"common_words": {"template": "{context}", "words": ["a"], "common": 0}}, "more than its 0 common ones"),
        ({"common_words": {"template": "{context}", "words": ["a", "b", "a"], "common": 1}}, "from each other"),
        ({"frequent_words": {"template": "{context}", "noise": ".", "words": ["a"]}}, "6 different entries or more"),
        (
            {
                "chains": {
                    "template": "{context} {query}",
                    "first": "{variable} {value}",
                    "link": "{variable} {previous}",
                    "noises": [],
                }
            },
            "1 different entries",
        ),
    ],
)
def test_refused(content, problem, tmp_path):
    with pytest.raises(InputError, match=problem):
        wording.read(write(tmp_path, content))
