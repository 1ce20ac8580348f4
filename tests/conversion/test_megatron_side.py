"""Stock NeMo and Megatron-Core load our checkpoints and compute what Hugging Face computes; we load theirs.

On three sides: with Megatron's local layers, with Transformer Engine's over a stand-in, and in NeMo 2.6.
"""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.conversion_cases import CASES, files, read_config
from support.megatron_side import LEARNING_RATE
from transformers import AutoModelForCausalLM

from nemo_longpo.checkpoints.run_directory import read_metrics
from nemo_longpo.checkpoints.trust import check_context, check_weights
from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.conversion.torch_dist import DistCheckpoint
from nemo_longpo.errors import InputError

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
NEMO26 = TESTS.parent / ".nemo26"
LOCAL, ENGINE, OLDER = "local layers", "Transformer Engine", "NeMo 2.6"
SECONDS = 400


@dataclass(frozen=True)
class Side:
    """A running process, and the directory of its results."""

    process: subprocess.Popen
    output: Path

    def wait(self) -> Path:
        assert self.process.wait(SECONDS) == 0, (self.output / "log").read_text()[-5000:]
        return self.output

    def asked(self, case: str) -> dict[str, list[int]]:
        """The tensors (with shapes) and objects that Megatron's model asks a checkpoint for."""
        return json.loads((self.wait() / "asked.json").read_text())[case]


def start(output: Path, script: str, *arguments: Path, overlay: Path | None = None) -> Side:
    output.mkdir()
    path = [*filter(None, [overlay]), TESTS]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "TORCH_COMPILE_DISABLE": "1",  # a compiler's run for what Megatron's Python would fuse
    }
    command = [sys.executable, TESTS / "support" / script, *arguments, output]
    with (output / "log").open("w") as log:
        return Side(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT), output)


@pytest.fixture(scope="module")
def sides(hf_models, nemo_checkpoints, tmp_path_factory) -> Iterator[dict[str, Side]]:
    """All run at the same time: most of their time is the import of NeMo."""
    hf, nemo = hf_models["mistral"].parent, nemo_checkpoints["mistral"].parent
    root = tmp_path_factory.mktemp("sides")
    found = {
        LOCAL: start(root / "local", "megatron_side.py", nemo),
        ENGINE: start(root / "engine", "stock_nemo.py", hf, nemo),
    }
    if NEMO26.is_dir():
        found[OLDER] = start(root / "older", "megatron_side.py", nemo, overlay=NEMO26)
    yield found
    for side in found.values():
        side.process.kill()
        side.process.wait()


@pytest.fixture(params=[LOCAL, ENGINE, OLDER])
def side(request, sides) -> Side:
    if request.param not in sides:
        pytest.skip("`make nemo26` installs NeMo 2.6 beside NeMo 2.7")
    return sides[request.param]


@pytest.fixture
def engine(sides) -> Path:
    """What NeMo's own commands made with Transformer Engine's layers."""
    return sides[ENGINE].wait()


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def objects(checkpoint: Path) -> set[str]:
    metadata = pickle.loads((checkpoint / "weights" / ".metadata").read_bytes())
    return {name for name in metadata.state_dict_metadata if "_extra_state" in name}


def test_older_is_older(sides):
    if OLDER in sides:
        assert json.loads((sides[OLDER].wait() / "asked.json").read_text())["version"].startswith("2.6.")
    assert json.loads((sides[LOCAL].wait() / "asked.json").read_text())["version"].startswith("2.7.")


def test_written_checkpoints_are_trusted(side, nemo_checkpoints):
    """The lists of allowed names cover stock imports, NeMo's and our runs, and ours saved again."""
    written = {path.parents[1] for path in side.wait().rglob("weights/metadata.json")}
    assert len(written) > 5
    for checkpoint in written | set(nemo_checkpoints.values()):
        check_weights(checkpoint / "weights")
        if (checkpoint / "context").is_dir():
            check_context(checkpoint / "context", "model.config")
            check_context(checkpoint / "context", "model.tokenizer")


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_match_megatron(case, side, nemo_checkpoints):
    checkpoint = DistCheckpoint(nemo_checkpoints[case] / "weights")
    ours = {name: list(checkpoint.shape(name)) for name in checkpoint.tensor_names()}
    asked = side.asked(case)
    assert ours == {name: shape for name, shape in asked.items() if "_extra_state" not in name}
    states = {name for name in asked if "_extra_state" in name}
    assert states
    # Transformer Engine before 1.10 asks for attention's FP8 state too.
    spare = {name for name in objects(nemo_checkpoints[case]) if "core_attention" in name}
    assert states <= objects(nemo_checkpoints[case])
    assert side.output.name != "engine" or states == objects(nemo_checkpoints[case]) - spare


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_hugging_face(case, side, hf_models):
    model = AutoModelForCausalLM.from_pretrained(hf_models[case], dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.arange(40).reshape(2, 20)).logits
    found = torch.load(side.wait() / "logits" / f"{case}.pt")
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_nemo_checkpoint_exports_same_files(case, side, hf_models, tmp_path):
    """NeMo carries the `hf` directory along as the tokenizer's; the weights are fp32 there."""
    assert files(export_checkpoint(side.wait() / "saved" / case, tmp_path / "back")) == files(hf_models[case])


CONVERTED = ("mistral", "qwen2-untied-bf16", "qwen3", "llama", "llama-tied-fp16")


@pytest.mark.parametrize("case", CONVERTED)
def test_nemo_import_exports_same_model(case, engine, hf_models, tmp_path, capsys):
    """From NeMo's records alone: the same tensors, and the same configuration where it says anything, but for Llama's
    RoPE scaling, of which NeMo's importer keeps the factor only."""
    imported = engine / "imported" / case
    assert not list(imported.rglob("config.json"))
    if case == "mistral":  # `seq_length: null`
        with pytest.raises(InputError, match=r"model\.yaml does not say for how many positions .* --max-length"):
            export_checkpoint(imported, tmp_path / "back")
    back = export_checkpoint(imported, tmp_path / "back", max_length=4096 if case == "mistral" else None)
    assert "holds no Hugging Face configuration" in capsys.readouterr().err
    found, expected = weights(back), weights(hf_models[case])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(found[name].dtype == expected[name].dtype for name in expected)
    old, new = read_config(hf_models[case]), read_config(back)
    changed = {name for name in old.keys() & new.keys() if old[name] != new[name]}
    assert changed == ({"rope_scaling"} if case == "llama" else set())
    assert new["torch_dtype"] == old["dtype"]
    for name in ("generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (back / name).is_file() == (hf_models[case] / name).is_file()


@pytest.mark.parametrize("case", CONVERTED)
def test_an_export_by_nemo_is_imported(case, engine, hf_models, tmp_path):
    """NeMo's exporter of Llama leaves out the vocabulary rows that no token has."""
    exported = engine / "exported" / case
    rows = read_config(exported)["vocab_size"]
    assert rows == read_config(hf_models[case])["vocab_size"] - (1 if "llama" in case else 0)
    found, expected = weights(exported), weights(hf_models[case])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        kept = tensor[:rows] if name in ("model.embed_tokens.weight", "lm_head.weight") else tensor
        assert torch.equal(found[name], kept), name
    back = export_checkpoint(import_checkpoint(exported, tmp_path / "nemo"), tmp_path / "back")
    assert files(back) == files(exported)


def assert_moved(trained: Path, original: Path, steps: int) -> None:
    """Some element of every weight moves by nearly the learning rate in each of Adam's first steps."""
    before, after = weights(original), weights(trained)
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert 0.5 * steps < (after[name] - weight).abs().max() / LEARNING_RATE < 1.1 * steps, name


@pytest.mark.parametrize("side", [LOCAL, OLDER], indirect=True)
def test_our_recipe_trains_and_resumes(side, hf_models, tmp_path):
    """The second checkpoint after resuming is complete although the one that it resumed from is gone."""
    assert [metrics["step"] for metrics in read_metrics(side.wait())] == [1, 2, 3]
    back = export_checkpoint(side.output, tmp_path / "back")
    assert_moved(back, hf_models["mistral"], steps=3)
    assert files(back).keys() == files(hf_models["mistral"]).keys()


def test_nemo_trains_from_our_checkpoint(engine, hf_models, tmp_path):
    back = export_checkpoint(engine / "finetuned", tmp_path / "back")
    assert_moved(back, hf_models["mistral"], steps=1)
    old, new = files(hf_models["mistral"]), files(back)
    assert old.keys() == new.keys()
    assert {name for name in old if old[name] != new[name]} == {"model.safetensors"}


def test_we_train_from_nemos_checkpoint(engine, hf_models, tmp_path):
    """Its number of positions is null, and so is its number of vocabulary rows."""
    back = export_checkpoint(engine / "longpo", tmp_path / "back", max_length=8192)
    assert_moved(back, hf_models["mistral"], steps=1)
    assert read_config(back)["vocab_size"] == read_config(hf_models["mistral"])["vocab_size"]
