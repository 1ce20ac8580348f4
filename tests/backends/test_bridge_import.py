"""Stand-ins go to the modules that need them, for packages that are missing, and stay with them."""

import builtins
import importlib
import sys
import textwrap
from importlib.util import find_spec

import pytest

from nemo_longpo.backends.bridge_import import import_bridge, import_with_stand_ins
from nemo_longpo.errors import InputError

MODULES = {
    "asks_openly": """
        import absent_package.deep.layers as layers
        from absent_package.plugins import Wrapper, save_modelopt_state
        import present_package
        import asks_with_care
        class Own(layers.Linear): "A subclass, as Megatron-Bridge has one."
        def call(wrapper: Wrapper | None = None): return isinstance(1, (layers.Linear, layers.ops.Norm))
    """,
    "asks_with_care": """
        try:
            import absent_package
            HAVE = True
        except ImportError:
            HAVE = False
    """,
    "present_package": "value = 5",
    "fails": "import absent_package, nothing_has_this_name",
}


@pytest.fixture
def asks_openly(tmp_path, monkeypatch):
    """A module that needs stand-ins, and what it imports; all are forgotten afterwards."""
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    yield "asks_openly"
    for name in MODULES:
        sys.modules.pop(name, None)


def test_only_who_is_named_gets_a_stand_in(asks_openly):
    import_with_stand_ins({"absent_package": [asks_openly], "present_package": [asks_openly]})
    module = sys.modules[asks_openly]
    assert module.present_package.value == 5
    assert not module.asks_with_care.HAVE
    assert module.call() is False
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("absent_package")


def test_a_stand_in_does_nothing_or_refuses(asks_openly):
    import_with_stand_ins({"absent_package": [asks_openly]})
    module = sys.modules[asks_openly]
    assert module.save_modelopt_state("model", {}) is None
    with pytest.raises(ImportError, match=r"absent_package\.plugins\.Wrapper was called, but absent_package is not"):
        module.Wrapper()


def test_imports_are_ordinary_again_also_after_an_error(asks_openly):
    before = builtins.__import__, importlib.import_module
    import_with_stand_ins({"absent_package": [asks_openly]})
    assert (builtins.__import__, importlib.import_module) == before
    with pytest.raises(ModuleNotFoundError, match="nothing_has_this_name"):
        import_with_stand_ins({"absent_package": ["fails"]})
    assert (builtins.__import__, importlib.import_module) == before


@pytest.mark.skipif(find_spec("megatron.bridge") is not None, reason="Megatron-Bridge is installed here")
def test_without_megatron_bridge_it_says_where_it_is():
    with pytest.raises(InputError, match="make bridge-env"):
        import_bridge()
