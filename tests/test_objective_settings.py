"""Settings of the objective: which are refused and why, the paper's defaults, the table of the docs, older records."""

import json
import math
import re
from dataclasses import fields
from pathlib import Path

import pytest

from nemo_longpo.objective import Objective


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "kto"}, "'kto'; choose one of longpo, longpo_no_nll, dpo, sft_chosen, sft_rejected"),
        ({"beta": 0.0}, "beta must be > 0"),
        ({"beta": -0.1}, "beta must be > 0"),
        ({"preference_weight": -1.0}, "preference_weight >= 0; got 0.1 and -1.0"),
        ({"preference": "kto"}, "objective.preference is 'kto'; choose one of sigmoid, ipo, hinge"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5; give a share of exchanged pairs, from 0 to below 0.5"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"label_smoothing": math.nan}, "label_smoothing is nan"),
        ({"target_margin": -0.5}, "target_margin is -0.5; give a finite margin of rewards, 0 or more"),
        ({"target_margin": math.inf}, "target_margin is inf"),
        ({"beta_exponent": -0.5}, "beta_exponent is -0.5 and beta_tokens is None; set both"),
        ({"beta_tokens": 4000}, "beta_exponent is 0.0 and beta_tokens is 4000; set both"),
        ({"beta_exponent": -0.5, "beta_tokens": 0}, "beta_tokens is 0; give the length"),
        ({"beta_exponent": math.nan, "beta_tokens": 4000}, "beta_exponent is nan; give a finite number"),
        ({"preference": "ipo", "target_margin": 1.0}, "preference=ipo has a target of its own, 1/2; leave it at 0.0"),
        ({"preference": "hinge", "target_margin": 1.0}, "preference=hinge has a target of its own, 1; leave it at 0.0"),
        *(
            (
                {"loss_type": loss_type, name: value},
                f"objective.{name} is {value}, which loss_type={loss_type} does not use; leave it at "
                f"{default}, or choose one of longpo, longpo_no_nll, dpo",
            )
            for loss_type in ("sft_chosen", "sft_rejected", "sft_chosen_constraint")
            for name, value, default in (
                ("preference", "ipo", "sigmoid"),
                ("label_smoothing", 0.1, 0.0),
                ("average_logprobs", True, False),
                ("reference_free", True, False),
                ("target_margin", 0.5, 0.0),
            )
        ),
        (
            {"loss_type": "sft_chosen", "beta_exponent": -0.5, "beta_tokens": 4000},
            "beta_exponent is -0.5, which loss_type=sft_chosen does not use; leave it at 0.0, or choose one of longpo, "
            "longpo_no_nll, dpo, solopo, sft_chosen_constraint",
        ),
        *(
            (
                {"loss_type": loss_type, name: value},
                f"objective.{name} is {value}, which loss_type={loss_type} does not use; leave it at {default}, or "
                "choose one of solopo",
            )
            for loss_type in ("longpo", "dpo", "sft_chosen_constraint")
            for name, value, default in (("alignment_weight", 0.5, 1.0), ("align_rejected", True, False))
        ),
        ({"loss_type": "solopo", "alignment_weight": 0.0}, "alignment_weight is 0.0; give a finite weight above 0"),
        ({"loss_type": "solopo", "alignment_weight": math.inf}, "alignment_weight is inf"),
        ({"loss_type": "solopo", "alignment_weight": math.nan}, "alignment_weight is nan"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Objective(**settings)


def test_defaults_are_the_papers():
    assert Objective() == Objective(loss_type="longpo", beta=0.1, preference_weight=0.01)
    assert Objective() == Objective("longpo", 0.1, 0.01)


# What NeMo wrote to `context/io.json` while the objective had three settings.
OLD_RECORD: dict = {
    "root": {"type": "ref", "key": "objective_1"},
    "objects": {
        "names": {
            "type": {"type": "pyref", "module": "builtins", "name": "tuple"},
            "items": [
                ["Index(index=0)", "loss_type"],
                ["Index(index=1)", "beta"],
                ["Index(index=2)", "preference_weight"],
            ],
            "metadata": None,
        },
        "none": {
            "type": {"type": "pyref", "module": "builtins", "name": "dict"},
            "items": [],
            "metadata": {
                "type": {"type": "pyref", "module": "builtins", "name": "tuple"},
                "items": [],
                "metadata": None,
            },
        },
        "metadata": {
            "type": {"type": "pyref", "module": "fiddle._src.config", "name": "BuildableTraverserMetadata"},
            "items": [
                ["Attr(name='fn_or_cls')", {"type": "pyref", "module": "nemo_longpo.objective", "name": "Objective"}],
                ["Attr(name='argument_names')", {"type": "ref", "key": "names"}],
                ["Attr(name='argument_tags')", {"type": "ref", "key": "none"}],
                ["Attr(name='argument_history')", {"type": "ref", "key": "none"}],
            ],
            "metadata": {"type": "pyref", "module": "fiddle._src.config", "name": "BuildableTraverserMetadata"},
        },
        "objective_1": {
            "type": {"type": "pyref", "module": "fiddle._src.config", "name": "Config"},
            "items": [
                ["Attr(name='loss_type')", {"type": "leaf", "value": "dpo", "paths": ["<root>.loss_type"]}],
                ["Attr(name='beta')", {"type": "leaf", "value": 0.2, "paths": ["<root>.beta"]}],
                ["Attr(name='preference_weight')", {"type": "leaf", "value": 0.5, "paths": ["<root>.x"]}],
            ],
            "metadata": {"type": "ref", "key": "metadata"},
            "paths": ["<root>"],
        },
    },
    "refcounts": {},
    "version": "0.0.1",
}


def test_records_of_older_checkpoints_build():
    import fiddle as fdl
    from fiddle.experimental import serialization

    assert fdl.build(serialization.load_json(json.dumps(OLD_RECORD))) == Objective("dpo", 0.2, 0.5)


def test_table_in_the_docs_is_true():
    """Each row's settings build, need the reference that it says, and every setting stands there."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    table = page.partition("\n## Objectives\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| .* \| (.*?) ?\| .* \| (short|long|none|as `loss_type`) \|$", table, re.MULTILINE)
    assert len(rows) == 16
    numbers = {"ε": 0.1, "α": 0.5, "γ": 0.5, "1/δ": 0.25, "65536": 65536, "-0.5": -0.5, "True": True}
    named = set()
    for spelt, reference in rows:
        settings: dict = {name: numbers.get(value, value) for name, value in re.findall(r"(\w+)=([^ `]+)", spelt)}
        named |= set(settings)
        if reference == "as `loss_type`":
            assert Objective("dpo", **settings).ref_context == "long"
            assert Objective("longpo", **settings).ref_context == "short"
        else:
            assert (Objective(**settings).ref_context or "none") == reference, spelt
    assert named | {"preference_weight"} == {field.name for field in fields(Objective)}
