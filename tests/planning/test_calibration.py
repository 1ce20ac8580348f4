"""The measuring program runs here on the CPU with tiny sizes; its file is used by later plans, which say so."""

import functools
import json
from dataclasses import asdict, replace

import pytest
import torch

from nemo_longpo.cli import main
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.costs.rates import KINDS, MEASURED
from nemo_longpo.errors import InputError
from nemo_longpo.planning import calibration, rates_file
from nemo_longpo.planning.compute import element_wise_widths

SHAPE = ModelShape(layers=1, hidden=32, ffn=48, heads=4, kv_heads=2, head_size=8, vocab=96)
TINY = calibration.Sizes(shape=SHAPE, rows=24, trunk=40, branches=10, copied=512, rounds=2)
PLAN = ["plan", "--model", "mistral-7b", "--length", "131072", "--gpus", "8"]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


measure = calibration.calibrate


def on_cpu() -> rates_file.Calibration:
    return measure("cpu", TINY)


def of_device(name: str) -> rates_file.Calibration:
    """A measurement that a plan of 131,072 tokens can be told by: attention takes no time."""
    rates = replace(MEASURED["h100-80gb"], trunk_forward=1e20, trunk_backward=1e20, source=f"measured on {name}")
    kinds = dict.fromkeys(KINDS, "a test")
    return rates_file.Calibration(device=name, date="2026-01-01", software={"torch": "2"}, measured=kinds, rates=rates)


def planned(capsys, *arguments: str) -> dict:
    assert main([*PLAN, "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_kind_is_its_work_over_its_time(monkeypatch):
    """With a clock that says two seconds for everything; each program still runs."""

    def two_seconds(bench, run):
        run()
        return 2.0

    monkeypatch.setattr(calibration._Bench, "_once", two_seconds)
    rates = on_cpu().rates
    causal, across = 4 * 32 * 40 * 40 / 2, 4 * 32 * 10 * 40
    assert rates.matrices == 2 * 24 * 32 * 96 / 2
    assert (rates.trunk_forward, rates.trunk_backward) == (causal / 2, 2.5 * causal / 2)
    assert (rates.branch_forward, rates.branch_backward) == (across / 2, 2.5 * across / 2)
    assert rates.logprobs == 4 * 2 * 24 * 32 * 96 / 2
    assert rates.element_wise == sum(element_wise_widths(SHAPE)) * 24 * 4 / 2
    assert rates.host_link == 512 / 2


def test_the_best_round_counts_but_not_the_first(monkeypatch):
    clock = iter([0, 1, 10, 17, 20, 25])  # rounds of 1, 7 and 5 seconds; the first one warms up
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: next(clock))
    assert calibration._Bench("cpu", TINY).seconds(lambda: None) == 5


def test_products_attention_and_logprobs_are_the_projects_own(monkeypatch):
    calls = []
    for module, name in (
        (calibration.kernels, "partial_attention"),
        (calibration.kernels, "partial_attention_backward"),
        (calibration, "token_logprobs"),
    ):

        def counted(*arguments, own, name=name, **settings):
            calls.append((name, len(arguments[0]), len(arguments[1])))
            return own(*arguments, **settings)

        monkeypatch.setattr(module, name, functools.partial(counted, own=getattr(module, name)))
    rates = on_cpu().rates
    assert all(getattr(rates, kind) > 0 for kind in KINDS)
    # One for the backward, one to warm up, and two rounds.
    assert calls.count(("partial_attention", 40, 40)) == calls.count(("partial_attention", 10, 40)) == 4
    assert calls.count(("partial_attention_backward", 40, 40)) == 3
    assert calls.count(("token_logprobs", 24, 96)) == 3


@without_gpu
def test_no_gpu_is_one_sentence(tmp_path, capsys):
    file = tmp_path / "rates.json"
    assert main(["plan", "--calibrate", "--rates", str(file)]) == 2
    streams = capsys.readouterr()
    assert streams.err.count("\n") == 1
    assert "--calibrate measures a GPU, and torch finds none on this machine" in streams.err
    assert (streams.out, list(tmp_path.iterdir())) == ("", [])


def test_no_room_is_one_sentence(monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(calibration, "_host_link", full)
    with pytest.raises(InputError, match="the GPU has no room"):
        on_cpu()


def test_command_writes_what_plans_read(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(calibration, "calibrate", on_cpu)
    file = tmp_path / "new" / "rates.json"
    assert main(["plan", "--calibrate", "--rates", str(file)]) == 0
    assert f"wrote the rates of cpu to {file}; give plans --rates {file}" in capsys.readouterr().err
    kept = rates_file.read(file)
    assert (kept.device, set(kept.measured), set(kept.software)) == ("cpu", set(KINDS), {"torch", "nemo_longpo"})
    assert main([*PLAN, "--rates", str(file)]) == 0
    assert f"speed of kernels: measured on this machine's cpu on {kept.date} ({file})\n" in capsys.readouterr().out
    assert planned(capsys, "--rates", str(file))["machine"]["measured"]["matrices"] == kept.rates.matrices


def test_calibrates_and_plans_at_once(monkeypatch, capsys):
    monkeypatch.setattr(calibration, "calibrate", lambda: of_device("NVIDIA H100 80GB HBM3"))
    assert main([*PLAN, "--calibrate"]) == 0
    streams = capsys.readouterr()
    assert f"to {rates_file.default_file()}; plans for --gpu h100-80gb use them" in streams.err
    assert "speed of kernels: measured on NVIDIA H100 80GB HBM3 (" in streams.out


def test_rates_of_this_machine_are_used_for_its_gpu_alone(capsys):
    before = planned(capsys)
    rates_file.write(rates_file.default_file(), of_device("NVIDIA H100 80GB HBM3"))
    after = planned(capsys)
    assert after["machine"]["measured"]["source"].startswith("measured on NVIDIA H100 80GB HBM3 (")
    assert after["recommended"]["speed"]["seconds"] < 0.6 * before["recommended"]["speed"]["seconds"]
    assert planned(capsys, "--rates", "data-sheet") == before
    assert "its data sheet" in planned(capsys, "--gpu", "a800-80gb")["machine"]["measured"]["source"]


def test_a_device_without_a_preset_needs_the_flag(capsys):
    before = planned(capsys)
    rates_file.write(rates_file.default_file(), of_device("NVIDIA L40S"))
    assert planned(capsys) == before
    given = planned(capsys, "--rates", str(rates_file.default_file()))
    assert given["machine"]["measured"]["source"].startswith("measured on NVIDIA L40S")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": {}}, "field 'rates.branch_backward' is missing; write it with longpo plan --calibrate"),
        ({"version": 2}, "is of version 2, and only 1 is known here"),
        ({"device": 3}, "field 'device' should be text, not 3"),
        (
            {"rates": asdict(MEASURED["h100-80gb"]) | {"matrices": 0}},
            "field 'rates.matrices' should be a number from 1 to 1e30",
        ),
        ({"rates": asdict(MEASURED["h100-80gb"]) | {"logprobs": True}}, "field 'rates.logprobs' should be a number"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path, capsys, change, message):
    file = tmp_path / "rates.json"
    rates_file.write(file, of_device("NVIDIA L40S"))
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert main([*PLAN, "--rates", str(file)]) == 2
    streams = capsys.readouterr()
    assert message in streams.err
    assert (streams.err.count("\n"), streams.out) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*PLAN, "--rates", "nowhere.json"], "nowhere.json does not exist; write it with longpo plan --calibrate"),
        (["plan", "--calibrate", "--rates", "data-sheet"], "--calibrate writes a file"),
        (["plan", "--calibrate", "--rates", "/dev/null/rates.json"], "--rates /dev/null/rates.json cannot be written"),
        (["plan", "--gpus", "8"], "longpo plan needs --model, --length; or --calibrate"),
    ],
)
def test_wrong_flags_are_one_sentence(capsys, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
