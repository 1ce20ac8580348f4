"""Every command names NaN and infinities, and no conversion creates one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.damage import assert_refused, edit_tensors

from nemo_longpo.cli import main
from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.conversion.tensor_values import is_finite, to_dtype
from nemo_longpo.errors import InputError

NAN, INFINITE = "model.layers.1.mlp.down_proj.weight", "model.norm.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_value_of_many_is_found(dtype, value):
    tensor = torch.zeros(3, 1001, dtype=dtype)
    assert is_finite(tensor)
    tensor[2, 517] = value
    assert not is_finite(tensor)
    assert is_finite(torch.empty(0, 4))


def test_overflowing_number_is_refused():
    kept = torch.tensor([65504.0, -1e-9, torch.nan, torch.inf])
    torch.testing.assert_close(to_dtype(kept, torch.float16, "t"), kept.half(), equal_nan=True)
    with pytest.raises(InputError, match=r"tensor t holds -100000, and float16 ends at 65504; export with --dtype"):
        to_dtype(torch.tensor([1.0, torch.inf, -1e5]), torch.float16, "t")
    with pytest.raises(InputError, match="bfloat16 ends at"):
        to_dtype(torch.tensor([3.4e38]), torch.bfloat16, "t")


def model_with(hf_models: dict[str, Path], directory: Path, values: dict[str, float]) -> Path:
    model = shutil.copytree(hf_models["mistral"], directory)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            tensors[name].view(-1)[5] = value

    edit_tensors(model / "model.safetensors", edit)
    return model


def test_export_refuses_overflow(hf_models, tmp_path, capsys):
    model = model_with(hf_models, tmp_path / "model", {NAN: 1e5})
    checkpoint = import_checkpoint(model, tmp_path / "nemo")
    command = ["export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "half"), "--dtype"]
    assert_refused([*command, "float16"], f"tensor {NAN} holds 100000, and float16 ends at 65504", tmp_path, capsys)
    assert main(["convert", *command, "bfloat16"]) == 0
    assert float(load_file(tmp_path / "half" / "model.safetensors")[NAN].view(-1)[5]) == pytest.approx(1e5, rel=4e-3)


def test_infinity_is_not_rounding(hf_models, tmp_path, capsys):
    model = model_with(hf_models, tmp_path / "model", {NAN: 1e5})
    half = shutil.copytree(model, tmp_path / "half")

    def to_half(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.half() for name, tensor in tensors.items()})

    edit_tensors(half / "model.safetensors", to_half)
    for sides in ((model, half), (half, model)):
        assert main(["convert", "verify", *map(str, sides), "--no-logits"]) == 1
        printed = capsys.readouterr().out
        assert f"{NAN}: 1 of " in printed
        assert printed.splitlines()[-1] == "different: tensors"


def test_every_command_names_nan_tensors(hf_models, tmp_path, capsys):
    model = model_with(hf_models, tmp_path / "model", {NAN: torch.nan, INFINITE: torch.inf})
    nemo, back = tmp_path / "nemo", tmp_path / "back"
    sentence = f"NaN or infinities in tensor {NAN} and 1 more; such a model answers with NaN"
    assert main(["convert", "import", "--model", str(model), "--output", str(nemo)]) == 0
    assert f"import: {sentence}\n" in capsys.readouterr().err
    assert main(["convert", "export", "--checkpoint", str(nemo), "--output", str(back)]) == 0
    assert f"export: {sentence}\n" in capsys.readouterr().err
    assert (back / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    for path in (model, nemo):
        assert main(["convert", "inspect", str(path), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["weights"]["not_finite"] == [NAN, INFINITE]
        assert report["advice"] == [f"weights: {sentence}"]
        assert main(["convert", "inspect", str(path), "--json", "--headers-only"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["weights"]["not_finite"], report["advice"]) == (None, [])


def test_a_sound_model_is_not_named(nemo_checkpoints, hf_models, capsys):
    for path in (hf_models["llama-tied-fp16"], nemo_checkpoints["llama-tied-fp16"]):
        assert main(["convert", "inspect", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["weights"]["not_finite"] == []
