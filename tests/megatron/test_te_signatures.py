"""Our calls into Transformer Engine and Megatron-Core's wrapper of it fit the real signatures; neither is imported.

Transformer Engine's come from `te_signatures.json`, Megatron-Core's and ours from their sources, parsed.
"""

import ast
import inspect
import json
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from support import extract_te_signatures as te

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "nemo_longpo/megatron/te_attention.py"
WRAPPERS = "megatron/core/extensions/transformer_engine.py"
OTHERS = (".core16", ".venv-bridge/lib/python3*/site-packages")  # where `make core16 bridge-env` put them
MCORES = {
    "installed": Path(str(distribution("megatron-core").locate_file(WRAPPERS))),
    **{file.relative_to(ROOT).parts[0]: file for folder in OTHERS for file in ROOT.glob(f"{folder}/{WRAPPERS}")},
}
of_every_version = pytest.mark.parametrize("mcore", MCORES.values(), ids=MCORES)
EXTRACTED = json.loads(te.SIGNATURES.read_text())


def as_signature(parameters: list[str]) -> inspect.Signature:
    return inspect.signature(eval(f"lambda {', '.join(parameters)}: None"))


def te_signature(name: str) -> inspect.Signature:
    return as_signature(EXTRACTED["signatures"][name])


def signature_in(file: Path, name: str) -> inspect.Signature:
    return as_signature(te.parameters(file.read_text(), name))


def calls_in(file: Path, owner: str, called: str) -> Iterator[ast.Call]:
    """Calls of `something.called(…)` in a class or function."""
    (node,) = (node for node in ast.parse(file.read_text()).body if getattr(node, "name", None) == owner)
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(f".{called}"):
            yield call


def bind(signature: inspect.Signature, call: ast.Call, *owner: str) -> inspect.BoundArguments:
    """Bind the arguments that are written out; `**something` must be looked at apart."""
    written = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    return signature.bind(*owner, *call.args, **written)


def test_release():
    assert (EXTRACTED["package"], EXTRACTED["version"]) == ("transformer_engine", "2.9.0")
    assert set(EXTRACTED["signatures"]) == set(te.CALLED)


@of_every_version
def test_our_constructor_and_megatrons(mcore):
    expected = signature_in(mcore, "TEDotProductAttention.__init__")
    (call,) = calls_in(OURS, "TEPairAttention", "__init__")
    bound = bind(expected, call, "self").arguments
    assert set(bound) == {
        *("self", "config", "layer_number", "attn_mask_type", "attention_type", "softmax_scale", "cp_comm_type")
    }
    # What Megatron-Core's SelfAttention passes lands in a parameter of ours or in those that we hand on.
    passed = {"config", "layer_number", "attn_mask_type", "attention_type", "cp_comm_type", "softmax_scale"}
    ours = signature_in(OURS, "TEPairAttention.__init__").parameters
    assert passed <= set(ours)
    assert "pg_collection" in expected.parameters


@of_every_version
def test_our_forward_is_megatrons(mcore):
    expected = signature_in(mcore, "TEDotProductAttention.forward")
    ours = signature_in(OURS, "TEPairAttention.forward")
    given = list(ours.parameters.items())
    assert given == list(expected.parameters.items())[: len(given)]
    # Attention passes these in inference alone.
    assert set(expected.parameters) - set(ours.parameters) <= {"num_splits"}
    (call,) = calls_in(OURS, "TEPairAttention", "forward")
    bound = bind(expected, call, "self").arguments
    assert ast.unparse(bound["attention_mask"]) == "None", "segments are no mask for Transformer Engine"
    assert ast.unparse(bound["attn_mask_type"]) == "attn_mask_type"


def test_our_context_parallel_groups():
    (call,) = calls_in(OURS, "TEPairAttention", "set_context_parallel_group")
    bound = bind(te_signature("DotProductAttention.set_context_parallel_group"), call, "self")
    assert set(bound.arguments) == {"self", "cp_group", "cp_global_ranks", "cp_stream", "cp_comm_type"}


@of_every_version
def test_megatrons_calls_fit_transformer_engine(mcore):
    """Those it writes out, and the names that it collects in `extra_kwargs` first."""
    for method in ("__init__", "forward"):
        expected = te_signature(f"DotProductAttention.{method}")
        for call in calls_in(mcore, "TEDotProductAttention", method):
            bind(expected, call, "self")
    (owner,) = (
        node for node in ast.parse(mcore.read_text()).body if getattr(node, "name", "") == "TEDotProductAttention"
    )
    collected = {
        node.slice.value
        for node in ast.walk(owner)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "extra_kwargs"
    }
    assert {"cp_group", "cp_global_ranks", "cp_stream", "cp_comm_type", "num_gqa_groups"} <= collected
    assert collected <= set(te_signature("DotProductAttention.__init__").parameters)


@of_every_version
def test_fused_rotary_embedding_fits_transformer_engine(mcore):
    tree = ast.parse(mcore.read_text())
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "apply_rotary_pos_emb"
    ]
    assert calls
    for call in calls:
        bind(te_signature("apply_rotary_pos_emb"), call)


@pytest.mark.parametrize(
    "definition",
    ["self, a, /, b: int = 3, *rest, c: str, d='x', **more", "self", "self, a=None, *, b=(1,)"],
)
def test_extraction(definition, tmp_path, monkeypatch):
    wheel = tmp_path / "thing-1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "thing/a.py", f"class A:\n    def f({definition}) -> None:\n        '''Text that stays behind.'''"
        )
    monkeypatch.setattr(te, "CALLED", {"A.f": "a.py"})
    extracted = te.extract(wheel)
    assert (extracted["package"], extracted["version"]) == ("thing", "1.2")
    assert "Text" not in json.dumps(extracted)
    expected = inspect.signature(eval(f"lambda {definition.replace(': int', '').replace(': str', '')}: None"))
    assert as_signature(extracted["signatures"]["A.f"]) == expected
