"""`longpo plan` as people call it."""

import json
import re
import shlex

import pytest
import yaml

from nemo_longpo.cli import main
from nemo_longpo.costs.devices import GPUS, peak_of_device
from nemo_longpo.costs.model_shape import MODELS
from nemo_longpo.placement import Placement
from nemo_longpo.planning.job import Job
from nemo_longpo.planning.report import overrides

COMMAND = ["plan", "--model", "mistral-7b", "--length", "131072", "--gpus", "8"]


def test_report(capsys):
    assert main(COMMAND) == 0
    text = capsys.readouterr().out
    assert "recommended: tp 2, cp 4, pp 1, dp 1, recompute mlp" in text
    parts = dict(re.findall(r"^  (\w+) +(\d+\.\d)  ", text, re.MULTILINE))
    assert list(parts) == [
        *("weights", "gradients", "optimizer", "activations", "layer", "logprobs", "inputs", "communication", "total")
    ]
    assert "a shared prefix costs 1.89x less" in text
    assert "    trainer.strategy.context_parallel_size=4 \\\n" in text
    assert "also possible" in text
    assert main([*COMMAND, "--no-offload-layer-inputs", "--mlp-tile-tokens", "none"]) == 0
    assert re.search(r"refused, \d+ in all\n  tp 1, cp ", capsys.readouterr().out)


def test_command_for_megatron_bridge(capsys):
    assert main([*COMMAND, "--trainer", "bridge"]) == 0
    text = capsys.readouterr().out
    assert "\ntorchrun --nproc-per-node=8 -m nemo_longpo.bridge.train --recipe longpo \\\n" in text
    assert "    model.context_parallel_size=4 \\\n" in text
    assert "    'model.recompute_modules=[\"mlp\"]' \\\n" in text
    assert "trainer." not in text
    assert main([*COMMAND[:-1], "16", "--trainer", "bridge", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "train.global_batch_size=8" in report["recommended"]["overrides"]


def test_a_recipe_is_a_file_of_nemo(tmp_path, capsys):
    assert main([*COMMAND, "--trainer", "bridge", "--recipe", str(tmp_path / "plan.yaml")]) == 2
    assert "--recipe writes a file of NeMo" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_recipe_of_a_million_tokens(tmp_path, capsys):
    file = tmp_path / "plan.yaml"
    assert main([*COMMAND[:3], "--length", "1048576", "--gpus", "8", "--recipe", str(file), "--json"]) == 0
    model = yaml.safe_load(file.read_text())["model"]
    assert (model["offload_layer_inputs"], model["mlp_tile_tokens"]) == (True, 16384)


def test_a_million_tokens_say_what_the_node_holds(capsys):
    assert main([*COMMAND[:3], "--length", "1048576", "--gpus", "8"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"recommended: .*, layer inputs in host memory, feed-forward tiles of 16,384\n", text)
    assert "    model.offload_layer_inputs=True \\\n" in text
    assert re.search(r"  host  +\d+\.\d  in host memory for each GPU, so \d+\.\d of the node's 1,862\.6\n", text)
    assert main([*COMMAND[:3], "--length", "1048576", "--gpus", "8", "--host-memory", "1", "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["recommended"]["setup"]["offload_layer_inputs"]


def test_every_reason_is_given_once(capsys):
    assert main([*COMMAND, "--model", "qwen2.5-7b", "--gpus", "32"]) == 0
    text = capsys.readouterr().out
    assert text.count("28 attention heads do not divide by tp 8") == 1
    assert text.count("28 layers do not divide by pp 8") == 1
    assert text.count("8 pairs of a batch do not divide by dp 16") == 1


def test_json_has_everything_the_report_has(capsys):
    assert main([*COMMAND, "--json", "--gpu", "a800-80gb", "--tp", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    best = found["recommended"]
    assert best["setup"]["tp"] == 4
    assert best["memory"]["total"] < 0.9 * found["machine"]["gpu"]["memory"]
    assert best["speed"]["tokens_per_second"] > 0
    assert found["flops_per_pair"]["ratio"] == pytest.approx(1.89, abs=0.01)
    assert all(candidate["setup"]["tp"] == 4 for candidate in found["alternatives"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--gpu-memory", "8"],
            r"nothing fits; the closest is tp 8, .*, which needs \d+\.\d GiB of 7\.2, .* too many",
        ),
        (["--tp", "3"], "the sizes given do not divide the number of GPUs"),
        (["--model", "qwen2.5-7b", "--tp", "8"], "28 attention heads do not divide by tp 8"),
    ],
)
def test_nothing_fits(capsys, arguments, sentence):
    assert main([*COMMAND, *arguments]) == 1
    streams = capsys.readouterr()
    assert re.search(sentence, streams.err)
    assert streams.out == ""


def test_nothing_fits_in_json(capsys):
    assert main([*COMMAND, "--gpu-memory", "8", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["recommended"] is None
    assert found["refused"][0]["missing_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "h100"], "--gpu h100 is not known; choose one of a100-80gb"),
        (["--gpus", "12"], "--gpus 12 does not fill nodes of 8"),
        (["--model", "nowhere"], "nowhere is neither a known model"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    assert main([*COMMAND, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--length", "0"], ["--margin", "1.5"], ["--gpu-memory", "x"]])
def test_values_out_of_range(capsys, arguments):
    with pytest.raises(SystemExit):
        main([*COMMAND, *arguments])
    assert f"argument {arguments[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        (
            Placement(tp=2, cp=4).recomputing("mlp"),
            {"recompute_granularity": "selective", "recompute_modules": '["mlp"]'},
        ),
        (Placement(cp=8), {"recompute_granularity": "None", "recompute_modules": "None"}),
        (
            Placement(cp=8).recomputing("full"),
            {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": "1"},
        ),
        (
            Placement(cp=4, pp=2, offload_layer_inputs=True, mlp_tile_tokens=16384).recomputing("full", 5),
            {"recompute_method": "block", "recompute_num_layers": "5", "pipeline_model_parallel_size": "2"},
        ),
    ],
)
def test_overrides_spell_the_placement(placement, expected):
    job = Job(shape=MODELS["mistral-7b"], trunk=131_072, chosen=4500, rejected=4000)
    settings = overrides(job, placement)
    given = dict(argument.split("=", 1) for argument in shlex.split(" ".join(settings)))
    for name, value in expected.items():
        assert given[f"trainer.strategy.{name}"] == value
    assert given["data.seq_length"] == "135572"
    assert given["trainer.strategy.sequence_parallel"] == str(placement.tp > 1)
    assert (given["trainer.num_nodes"], given["trainer.devices"]) == ("1", "8")
    assert given["optim.config.optimizer_cpu_offload"] == "False"
    assert given["model.offload_layer_inputs"] == str(placement.offload_layer_inputs)
    assert given["model.mlp_tile_tokens"] == str(placement.mlp_tile_tokens)


def test_recipe_matches_the_recommendation(tmp_path, capsys):
    """As `nemo llm finetune --yaml` takes it; tests/nemo/test_nemo_cli.py trains with one."""
    file = tmp_path / "plan.yaml"
    assert main([*COMMAND, "--recipe", str(file), "--json"]) == 0
    recipe = yaml.safe_load(file.read_text())
    assert recipe["run"] == {"factory": "longpo"}
    assert recipe["data"] == {"global_batch_size": 8, "seq_length": 131_072 + 4500}
    strategy = recipe["trainer"]["strategy"]
    assert (strategy["tensor_model_parallel_size"], strategy["context_parallel_size"]) == (2, 4)
    assert strategy["recompute_modules"] == ["mlp"]
    flat = [f"{'.'.join(path)}={value}" for path, value in _leaves(recipe) if path[0] != "run"]
    recommended = json.loads(capsys.readouterr().out)["recommended"]["overrides"]
    assert flat == [shlex.split(argument)[0].replace('"', "'") for argument in recommended]


def test_short_prompts_ask_for_an_objective_that_reads_them(tmp_path, capsys):
    file = tmp_path / "plan.yaml"
    assert main([*COMMAND, "--short-tokens", "32768", "16384", "--recipe", str(file)]) == 0
    assert "; 2 short prompts of 49,152 tokens" in capsys.readouterr().out
    assert yaml.safe_load(file.read_text())["model"]["objective"] == {"loss_type": "solopo"}
    assert main([*COMMAND, "--short-tokens", "32768", "16384", "--json"]) == 0
    asked = json.loads(capsys.readouterr().out)
    assert main([*COMMAND, "--json"]) == 0
    without = json.loads(capsys.readouterr().out)
    assert asked["job"]["short_prompts"] == [32768, 16384]
    assert asked["flops_per_pair"]["forward"] > 1.1 * without["flops_per_pair"]["forward"]
    assert asked["recommended"]["speed"]["seconds"] > 1.1 * without["recommended"]["speed"]["seconds"]


def test_a_short_prompt_is_no_longer_than_the_document(capsys):
    assert main([*COMMAND, "--short-tokens", "131073"]) == 2
    assert "--short-tokens 131073 is more than --length 131072" in capsys.readouterr().err


def _leaves(tree, path=()):
    for name, value in tree.items():
        yield from _leaves(value, (*path, name)) if isinstance(value, dict) else [((*path, name), value)]


@pytest.mark.parametrize("name", ["plan.txt", "nowhere/plan.yaml"])
def test_recipe_file_is_checked_before_the_search(name, tmp_path, capsys):
    assert main([*COMMAND, "--recipe", str(tmp_path / name)]) == 2
    streams = capsys.readouterr()
    assert "whose name ends with .yaml" in streams.err
    assert (streams.out, list(tmp_path.iterdir())) == ("", [])


def test_no_recipe_where_nothing_fits(tmp_path):
    assert main([*COMMAND, "--gpu-memory", "8", "--recipe", str(tmp_path / "plan.yaml")]) == 1
    assert not list(tmp_path.iterdir())


def test_offload_and_nodes():
    job = Job(shape=MODELS["mistral-7b"], trunk=524_288, chosen=4500, rejected=4500)
    settings = overrides(job, Placement(tp=4, cp=4, offload_optimizer=True))
    assert {"trainer.num_nodes=2", "trainer.devices=8", "optim.config.optimizer_cpu_offload=True"} <= set(settings)


def test_device_peak_by_whole_name():
    assert peak_of_device("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of_device("NVIDIA H100 PCIe") == 756e12
    assert peak_of_device("NVIDIA H200") == GPUS["h200-141gb"].peak_flops
    assert peak_of_device("NVIDIA H100") is None
