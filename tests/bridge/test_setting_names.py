"""Names of settings in sentences of the shared rooms: each is, by its other name, a setting of Bridge's recipe."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from support import documents

from nemo_longpo import setting_names

ROOT = Path(__file__).resolve().parents[2] / "nemo_longpo"
SHARED = ("megatron", "shards", "checkpoints", "parallel", "model_directory")
NO_SETTINGS = {"data.pkl", "data.py", "model.config", "model.tokenizer", "model.yaml"}
OTHERWISE = {"log.name", "resume.resume_if_exists"}
"""A part of `checkpoint.save`; what a phrase replaces."""


def names_in_the_shared_rooms():
    sources = [path.read_text() for room in SHARED for path in sorted((ROOT / room).rglob("*.py"))]
    sources += [(ROOT / name).read_text() for name in ("objective.py", "logprobs.py")]
    pattern = r"\b(?:trainer\.strategy|trainer|data|optim\.config|resume|log|model)\.[a-z_]+(?:\.[a-z_]+)*"
    found = {name for text in sources for line in _strings(text) for name in re.findall(pattern, line)}
    return sorted(found - NO_SETTINGS - OTHERWISE)


def _strings(source):
    """The text of sentences: those with a blank."""
    return [text for text in re.findall(r"\"([^\"\n]*)\"", source) if " " in text]


def has_setting(config, path):
    owner = config
    for name in path.split("."):
        known = (
            owner if isinstance(owner, dict) else {item.name for item in fields(owner)} if is_dataclass(owner) else ()
        )
        if name not in known:
            return False
        owner = owner[name] if isinstance(owner, dict) else getattr(owner, name)
    return True


NAMES = names_in_the_shared_rooms()


def test_the_rooms_name_settings():
    assert {"data.paths", "log.log_dir", "optim.config.lr", "trainer.strategy.non_finite_steps"} <= {*NAMES}
    assert len(NAMES) > 15


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_setting_here(name):
    from nemo_longpo.bridge import recipes

    assert has_setting(recipes.longpo(), setting_names.translate_name(name)), setting_names.translate_name(name)


def test_migrated_settings_are_those_of_the_recipes():
    """The other column of the table in docs/bridge.md; tests/test_docs.py has the one of NeMo."""
    from nemo_longpo.bridge import recipes

    config = recipes.longpo()
    assert [ours for ours in documents.migrated_settings().values() if not has_setting(config, ours)] == []


@pytest.mark.parametrize(
    ("sentence", "translated"),
    [
        ("set trainer.strategy.sequence_parallel=False.", "set model.sequence_parallel=False."),
        ("raise data.seq_length=8192; see", "raise dataset.seq_length=8192; see"),
        ("data.global_batch_size=4", "train.global_batch_size=4"),
        ("/runs/data.paths and weights/data.pkl stay", "/runs/data.paths and weights/data.pkl stay"),
        (
            "import it with `longpo convert import --max-length 99` or more (and a --rope-theta or --rope-scaling for "
            "them), or pack shorter documents.",
            "set model.seq_length=99 or more (and model.rotary_base or model.rope_scaling for them), or pack shorter "
            "documents.",
        ),
        ("Import the model that scored them", "Start from the model that scored them"),
    ],
)
def test_sentence_is_translated(sentence, translated):
    assert setting_names.translate(sentence) == translated
