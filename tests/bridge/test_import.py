"""Megatron-Bridge is imported without the packages that it asks for in vain, and believes in none of them."""

import importlib.util
import inspect
import linecache
import sys
from types import ModuleType

import pytest

from nemo_longpo.backends import bridge_import
from nemo_longpo.backends.bridge_import import UNGUARDED, Absent

PACKAGES = [
    pytest.param(
        name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is not None, reason=f"{name} is installed here")
    )
    for name in UNGUARDED
]
# How Megatron-Core and Megatron-Bridge note that a package is there; the prefix is HAVE_ or has_.
FLAGS = {"transformer_engine": "TE", "nvidia_resiliency_ext": "NVRX", "modelopt": "NVIDIA_MODELOPT"}


@pytest.fixture(scope="module")
def megatron() -> dict[str, ModuleType]:
    """Every module of Megatron-Core and Megatron-Bridge, imported."""
    bridge_import.import_bridge()
    return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "megatron"}


def believers(megatron: dict[str, ModuleType], package: str) -> list[str]:
    """Return module.name of each note that a package is there, and of each part of it outside of `UNGUARDED`."""
    flag, found = FLAGS[package], []
    for module, names in ((module, dict(vars(loaded))) for module, loaded in megatron.items()):
        for name, value in names.items():
            noted = name.upper().partition("_")[2]
            believed = value is True and (noted == flag or noted.startswith(flag + "_"))
            origin = value.__name__ if isinstance(value, Absent | ModuleType) else ""
            part = origin.split(".")[0] == package and module not in UNGUARDED[package]
            found += [f"{module}.{name}"] if believed or part else []
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_nobody_believes_in_a_missing_package(megatron, package):
    assert len(megatron) > 800, "all of Megatron-Bridge is there to be asked"
    assert believers(megatron, package) == []
    assert not [name for name in sys.modules if name.split(".")[0] == package]


def test_a_believer_would_be_found(megatron):
    """As Megatron-Bridge is when a stand-in for Transformer Engine lies in sys.modules."""
    noted, held = ModuleType("noted"), ModuleType("held")
    noted.HAVE_TE_COL_LINEAR = True
    held.te = ModuleType("transformer_engine.pytorch")
    assert believers(megatron | {"noted": noted, "held": held}, "transformer_engine") == [
        "noted.HAVE_TE_COL_LINEAR",
        "held.te",
    ]


@pytest.mark.parametrize(
    ("package", "module", "line"),
    [(package, module, line) for package, lines in UNGUARDED.items() for module, line in lines.items()],
)
def test_the_import_is_unguarded_still(megatron, package, module, line):
    """Once upstream guards it, delete the entry."""
    source = linecache.getline(inspect.getsourcefile(megatron[module]), line)
    assert source.startswith((f"import {package}.", f"from {package}."))


def test_lora_takes_megatrons_own_layers(megatron):
    """Megatron-Core's mocks of Transformer Engine's layers are no classes, and isinstance() raises at them."""
    import torch
    from megatron.bridge.peft.module_matcher import ModuleMatcher

    match = ModuleMatcher(target_modules=[], exclude_modules=["lm_head"]).match
    assert match(torch.nn.Linear(2, 2), "linear_qkv") is not None
    assert match(torch.nn.ReLU(), "activation") is None
