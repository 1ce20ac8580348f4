import argparse
import json
from importlib import metadata

import pytest

from nemo_longpo import doctor

GOOD = {
    "torch": "2.13.0+cpu",
    "nemo-toolkit": "2.7.3",
    "megatron-core": "0.15.3",
    "nemo_run": "0.11.1",
    "nvidia-modelopt": "0.37.0",
    "transformers": "4.57.6",
    "leptonai": "0.26.6",
    "numpy": "1.26.4",
    "transformer-engine": None,
}


def refusals(devices: tuple[str, ...] = (), **changes: str | None) -> list[str]:
    versions = GOOD | {name.replace("__", "-"): value for name, value in changes.items()}
    return [finding.text for finding in doctor.diagnose(versions, devices) if finding.level == "refused"]


def test_the_tested_sets_are_accepted():
    assert refusals() == []
    assert refusals(("H200",), transformer__engine="2.9.0", nemo__toolkit="2.6.0rc1", megatron__core="0.15.0rc0") == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nemo__toolkit": None}, "training needs NeMo 2.6 or 2.7"),
        ({"nemo__toolkit": "2.8.0"}, "nemo-toolkit 2.8.0: NeMo 2.6 and 2.7 are supported"),
        ({"nemo__toolkit": "2.5.3"}, "nemo-toolkit 2.5.3: NeMo 2.6 and 2.7 are supported"),
        ({"megatron__core": "0.16.0"}, "megatron-core 0.16.0: Megatron-Core 0.15 is supported (0.16 drops"),
        ({"megatron__core": "0.14.1"}, "megatron-core 0.14.1"),
        ({"transformers": "5.1.0"}, "transformers 5.1.0: NeMo needs transformers 4"),
        ({"nvidia__modelopt": None}, "without nvidia-modelopt NeMo silently has no `llm.finetune`"),
        ({"nemo_run": None}, "the `nemo` command comes with nemo_run"),
        ({"leptonai": "0.47.0"}, "leptonai 0.47"),
        ({"torch": "2.5.1"}, "torch 2.5.1: torch 2.6 or later is needed"),
    ],
)
def test_unsupported_parts_are_refused(changes, words):
    (text,) = refusals(**changes)
    assert words in text
    assert "\n" not in text


def test_a_gpu_needs_transformer_engine_and_a_cpu_does_not():
    (text,) = refusals(("H200",))
    assert "Transformer Engine" in text
    assert refusals(()) == []


@pytest.mark.parametrize(("version", "noted"), [("2.9.0", 0), ("2.9.1+abc", 0), ("2.12.0", 1), ("1.13.0", 1)])
def test_another_transformer_engine_is_noted(version, noted):
    findings = doctor.diagnose(GOOD | {"transformer-engine": version}, ("H200",))
    assert sum("checked against release 2.9" in finding.text for finding in findings) == noted
    assert findings[-1].level == "ok"


def test_a_package_without_metadata_is_noted_not_refused():
    findings = doctor.diagnose(GOOD | {"megatron-core": "unknown"}, [])
    assert any(finding.level == "note" and "megatron-core has no version" in finding.text for finding in findings)
    assert findings[-1].level == "ok"


def report(**changes: str | None) -> doctor.Report:
    versions = dict.fromkeys((*doctor.CORE, *doctor.OPTIONAL)) | GOOD | changes
    return doctor.Report(
        python="3.11.9", accelerators=[], cpus=2, versions=versions, findings=doctor.diagnose(versions, [])
    )


@pytest.mark.parametrize(("changes", "status"), [({}, 0), ({"nemo_run": None}, 1)])
def test_exit_status_and_json(changes, status, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: report(**changes))
    assert doctor.run(argparse.Namespace(json=True)) == status
    printed = json.loads(capsys.readouterr().out)
    assert printed["can_train"] is (status == 0)
    assert printed["versions"]["nemo-toolkit"] == "2.7.3"
    assert doctor.run(argparse.Namespace(json=False)) == status


def test_table_shows_missing_parts_and_verdict():
    text = doctor.render(report())
    assert any(line.split()[:2] == ["vllm", "-"] for line in text.splitlines())
    assert "ok:" in text
    assert "refused:" not in text


def test_versions_are_read_from_this_environment():
    versions = doctor.installed_versions()
    assert versions["lm_eval"] == metadata.version("lm_eval")
    assert versions["torch"] == metadata.version("torch")
    assert versions.keys() == {*doctor.CORE, *doctor.OPTIONAL}
