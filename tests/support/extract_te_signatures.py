"""Reads the signatures of Transformer Engine that training calls from a wheel's Python sources, without importing it.

    pip download --no-deps transformer_engine==2.9.0
    python tests/support/extract_te_signatures.py transformer_engine-2.9.0-py3-none-any.whl

writes `te_signatures.json` beside this file: names and defaults of the parameters, nothing of the sources' text.
"""

import argparse
import ast
import hashlib
import json
import zipfile
from pathlib import Path

SIGNATURES = Path(__file__).with_name("te_signatures.json")

# Public name -> where it is defined.
_ATTENTION = "pytorch/attention/dot_product_attention/dot_product_attention.py"
CALLED = {
    "DotProductAttention.__init__": _ATTENTION,
    "DotProductAttention.forward": _ATTENTION,
    "DotProductAttention.set_context_parallel_group": _ATTENTION,
    "LayerNormLinear.__init__": "pytorch/module/layernorm_linear.py",
    "LayerNormLinear.forward": "pytorch/module/layernorm_linear.py",
    "Linear.__init__": "pytorch/module/linear.py",
    "Linear.forward": "pytorch/module/linear.py",
    "RMSNorm.__init__": "pytorch/module/rmsnorm.py",
    "apply_rotary_pos_emb": "pytorch/attention/rope.py",
    "checkpoint": "pytorch/distributed.py",
    "get_cpu_offload_context": "pytorch/cpu_offload.py",
}


def parameters(source: str, dotted: str) -> list[str]:
    """The parameters of `function` or `Class.method` in Python's own notation, without annotations."""
    body: list[ast.stmt] = ast.parse(source).body
    for name in dotted.split("."):
        (found,) = (node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name)
        body = found.body
    assert isinstance(found, ast.FunctionDef)
    for node in ast.walk(found.args):
        if isinstance(node, ast.arg):
            node.annotation = None
    return ast.unparse(found.args).split(", ")


def extract(wheel: Path) -> dict:
    package, version, *_ = wheel.name.split("-")
    with zipfile.ZipFile(wheel) as archive:
        signatures = {
            name: parameters(archive.read(f"{package}/{path}").decode(), name) for name, path in CALLED.items()
        }
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return {"package": package, "version": version, "wheel_sha256": digest, "signatures": signatures}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write te_signatures.json from a Transformer Engine wheel.")
    parser.add_argument("wheel", type=Path)
    SIGNATURES.write_text(json.dumps(extract(parser.parse_args().wheel), indent=1) + "\n")
