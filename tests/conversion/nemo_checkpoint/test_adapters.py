"""Checkpoints of LoRA adapters: exported, they are the base plus (alpha / dim) B A.

All values are small multiples of powers of two, so that every sum is exact in fp32 in whatever order it is taken, and
the export must agree bit for bit with a reference in float64. What NeMo itself writes is exported in
tests/nemo/test_lora.py, and held against what Megatron computes.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.adapter_checkpoints import (
    ALPHA,
    DIM,
    LINEAR,
    SETTINGS,
    describe,
    make_adapters,
    make_base,
    read,
    steps,
    write,
)
from torch import Tensor

from nemo_longpo.cli import main
from nemo_longpo.conversion.exporter import export_checkpoint

PROJ = "module.decoder.layers.self_attention.linear_proj"


def fused_rows(config: dict, name: str) -> Tensor:
    """The rows of Megatron's fused tensor that a Hugging Face projection is made of."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    head, queries = config.get("head_dim") or config["hidden_size"] // heads, heads // groups
    by_group = torch.arange(groups * (queries + 2) * head).view(groups, queries + 2, head)
    feed_forward = torch.arange(config["intermediate_size"])
    return {
        "q_proj": by_group[:, :queries].flatten(),
        "k_proj": by_group[:, queries].flatten(),
        "v_proj": by_group[:, queries + 1].flatten(),
        "gate_proj": feed_forward,
        "up_proj": feed_forward + len(feed_forward),
    }.get(name, torch.arange(config["hidden_size"]))


def exported(model: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(model.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def expected(base: Path, adapters: Path, config: dict) -> dict[str, Tensor]:
    """The base's exported tensors, the adapted ones in float64 with the adapters added."""
    tensors, added = exported(base), read(adapters)
    for linear, names in LINEAR.items():
        stem = f"module.decoder.layers.{linear}.adapter"
        if f"{stem}.linear_in.weight" not in added:
            continue
        for layer in range(config["num_hidden_layers"]):
            a, b = (added[f"{stem}.{side}.weight"][layer].double() for side in ("linear_in", "linear_out"))
            for name in names:
                key = f"model.layers.{layer}.{'mlp' if 'mlp' in linear else 'self_attn'}.{name}.weight"
                tensors[key] = tensors[key].double() + ALPHA / DIM * b[fused_rows(config, name)] @ a
    return tensors


@pytest.fixture(scope="module", params=["mistral-odd", "qwen2-untied-bf16"])
def trained(request, nemo_checkpoints, tmp_path_factory) -> tuple[Path, Path]:
    """A base (one kv head and a head size of its own; bf16 with biases, several files) and adapters of all linear
    layers."""
    root = tmp_path_factory.mktemp("adapters")
    base = make_base(nemo_checkpoints[request.param], root / "base")
    return base, make_adapters(base, root / "adapters")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_adds_the_adapters(dtype, trained, tmp_path):
    """Rounded to the asked dtype once, at the end."""
    base, adapters = trained
    plain = export_checkpoint(base, tmp_path / "plain")
    found = exported(export_checkpoint(adapters, tmp_path / "back", dtype=dtype))
    reference = expected(plain, adapters, json.loads((plain / "config.json").read_text()))
    assert found.keys() == reference.keys()
    for name, tensor in reference.items():
        assert torch.equal(found[name], tensor.to(getattr(torch, dtype))), name


def test_only_the_named_layers_change(trained, tmp_path):
    base, _ = trained
    adapters = make_adapters(base, tmp_path / "adapters", targets=("mlp.linear_fc2",))
    plain = exported(export_checkpoint(base, tmp_path / "plain"))
    found = exported(export_checkpoint(adapters, tmp_path / "back"))
    changed = {name.split(".")[-2] for name in plain if not torch.equal(plain[name], found[name])}
    assert changed == {"down_proj"}


def test_base_that_moved_is_named(trained, tmp_path):
    base, adapters = trained
    moved = shutil.copytree(base, tmp_path / "moved")
    lost = shutil.copytree(adapters, tmp_path / "lost")
    (lost / "weights" / "adapter_metadata.json").write_text('{"model_ckpt_path": "/gone/base/weights"}')
    here = export_checkpoint(lost, tmp_path / "here", base_checkpoint=moved)
    there = export_checkpoint(adapters, tmp_path / "there")
    files = sorted(path.name for path in there.iterdir())
    assert files == sorted(path.name for path in here.iterdir())
    assert all((here / name).read_bytes() == (there / name).read_bytes() for name in files)


def forget_base(adapters: Path) -> None:
    (adapters / "weights" / "adapter_metadata.json").write_text('{"model_ckpt_path": "/gone/base"}')


def change(adapters: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    record = (adapters / "weights" / "adapter_metadata.json").read_text()
    tensors = read(adapters)
    edit(tensors)
    write(adapters, tensors)
    (adapters / "weights" / "adapter_metadata.json").write_text(record)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "base is gone": (forget_base, "/gone/base is not the NeMo checkpoint that they were trained on; pass --base-check"),
    "another method": (
        lambda adapters: describe(adapters, model_transform={"_target_": "nemo.collections.llm.peft.dora.DoRA"}),
        "model.yaml names nemo.collections.llm.peft.dora.DoRA; only nemo.collections.llm.peft.lora.LoRA can be merged",
    ),
    "no method": (lambda adapters: describe(adapters, model_transform=None), "names no kind of adapter; only"),
    "another rank": (
        lambda adapters: describe(adapters, model_transform=SETTINGS | {"dim": 2}),
        "the adapters are of another model",
    ),
    "half an adapter": (
        lambda adapters: change(adapters, lambda tensors: tensors.pop(f"{PROJ}.adapter.linear_in.weight")),
        f"has no tensor {PROJ}.adapter.linear_in.weight",
    ),
    "magnitudes": (
        lambda adapters: change(
            adapters, lambda tensors: tensors.update({f"{PROJ}.adapter.weight_magnitude": steps(9, size=1)})
        ),
        f"{PROJ}.adapter.weight_magnitude is no LoRA adapter of a linear layer",
    ),
    "unknown layer": (
        lambda adapters: change(
            adapters,
            lambda tensors: tensors.update({"module.decoder.experts.adapter.linear_in.weight": steps(9, size=1)}),
        ),
        "module.decoder.experts.adapter.linear_in.weight is no LoRA adapter of a linear layer",
    ),
    "adapters on adapters": (
        lambda adapters: (adapters / "weights" / "adapter_metadata.json").write_text(
            json.dumps({"model_ckpt_path": str(adapters)})
        ),
        "holds adapters itself",
    ),
}


@pytest.mark.parametrize("trained", ["mistral-odd"], indirect=True)
@pytest.mark.parametrize("fault", FAULTS)
def test_refused(fault, trained, tmp_path, capsys):
    damage, message = FAULTS[fault]
    adapters = shutil.copytree(trained[1], tmp_path / "adapters")
    damage(adapters)
    assert main(["convert", "export", "--checkpoint", str(adapters), "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("trained", ["mistral-odd"], indirect=True)
def test_whole_checkpoints_take_no_base_checkpoint(trained, tmp_path, capsys):
    base = str(trained[0])
    command = ["convert", "export", "--checkpoint", base, "--output", str(tmp_path / "out"), "--base-checkpoint", base]
    assert main(command) == 2
    assert "holds whole weights; --base-checkpoint is for checkpoints of LoRA adapters" in capsys.readouterr().err


@pytest.mark.parametrize("trained", ["mistral-odd"], indirect=True)
def test_the_base_is_not_replaced(trained, capsys):
    base, adapters = trained
    assert main(["convert", "export", "--checkpoint", str(adapters), "--output", str(base), "--overwrite"]) == 2
    assert "lie in one another; choose another --output" in capsys.readouterr().err
    assert (base / "weights").is_dir()
