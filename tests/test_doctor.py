import argparse
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from nemo_longpo import doctor, trainers

ROOT = Path(__file__).resolve().parents[1]
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
BRIDGE = {
    "torch": "2.13.0",
    "megatron-bridge": "0.6.2",
    "megatron-core": "0.19.2",
    "transformers": "5.12.1",
    "numpy": "2.5.5",
}
# What the release notes of the NGC images list, and what looking into 25.11.01 and 26.02 has shown.
IMAGES = {
    "25.11": GOOD
    | {"torch": "2.9.0a0", "nemo-toolkit": "2.6.0rc0", "megatron-core": "0.15.0rc8", "megatron-bridge": "0.2.0"}
    | {"transformer-engine": "2.9.0+70f53666", "nvidia-resiliency-ext": "0.4.1"},
    "25.11.01": GOOD
    | {"torch": "2.9.0a0", "nemo-toolkit": "2.6.0rc0", "megatron-core": "0.16.0rc0", "megatron-bridge": "0.2.0"}
    | {"transformer-engine": "2.9.0+70f53666", "nvidia-resiliency-ext": "0.4.1"},
    "26.02": GOOD
    | {"torch": "2.10.0a0", "nemo-toolkit": "2.7.0", "megatron-core": "0.16.0", "megatron-bridge": "0.3.0"}
    | {"transformer-engine": "2.12.0+5671fd36", "nvidia-resiliency-ext": "0.4.1+cuda13"},
    "26.04": GOOD
    | {"torch": "2.11.0a0", "nemo-toolkit": "2.8.0", "megatron-core": "0.17.0", "megatron-bridge": "0.4.0"}
    | {"transformer-engine": "2.14", "nvidia-resiliency-ext": "0.5.0", "transformers": "5.3.0"},
    "26.08": BRIDGE
    | {"torch": "2.13.0a0", "megatron-bridge": "0.6.0", "megatron-core": "0.19.0", "nvidia-modelopt": "0.45.0"}
    | {"transformer-engine": "2.17.1+4329ff84", "nvidia-resiliency-ext": "0.6.0"},
}


def refusals(devices: tuple[str, ...] = (), **changes: str | None) -> list[str]:
    versions = GOOD | {name.replace("__", "-"): value for name, value in changes.items()}
    return [finding.text for finding in doctor.diagnose(versions, devices) if finding.level == "refused"]


def texts(level: str, versions: dict[str, str | None], devices: tuple[str, ...] = ()) -> list[str]:
    return [finding.text for finding in doctor.diagnose(versions, devices) if finding.level == level]


def test_the_tested_sets_are_accepted():
    assert refusals() == []
    assert refusals(("H200",), transformer__engine="2.9.0", nemo__toolkit="2.6.0rc1", megatron__core="0.15.0rc0") == []
    assert texts("refused", BRIDGE) == []
    (ready,) = texts("ok", BRIDGE)
    assert "Megatron-Bridge 0.6.2 and Megatron-Core 0.19.2: `python -m nemo_longpo.bridge.train" in ready


def pinned(package: str, *files: str) -> str:
    """The version in the first of some files of pins that has the package."""
    for file in files:
        text = (ROOT / "requirements" / file).read_text(encoding="utf-8")
        if found := re.search(rf"^{package}==(\S+)$", text, re.MULTILINE):
            return found[1]
    raise AssertionError(f"{files} have no {package}")


def test_tested_pairs_are_those_that_the_tests_are_pinned_to():
    nemo = [("cpu.txt",), ("nemo26.txt", "cpu.txt"), ("core16.txt", "cpu.txt")]
    pairs = [f"{pinned('nemo-toolkit', *files)} with {pinned('megatron-core', *files)}" for files in nemo]
    assert sorted(trainers.NEMO.tested.values()) == sorted(pairs)
    bridge = f"{pinned('megatron-bridge', 'bridge.txt')} with {pinned('megatron-core', 'bridge.txt')} on Python 3.12"
    assert [*trainers.BRIDGE.tested.values()] == [bridge]
    for trainer in trainers.TRAINERS:
        for pair, versions in trainer.tested.items():
            assert pair == tuple(map(trainers.release, versions.split()[::2][:2]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nemo__toolkit": None}, "Megatron-Core 0.15.3 alone starts no training: training needs NeMo 2.6 or 2.7"),
        ({"nemo__toolkit": None, "megatron__core": None}, "training needs NeMo 2.6 or 2.7"),
        ({"nemo__toolkit": "2.8.0"}, "nemo-toolkit 2.8.0: NeMo 2.6 and 2.7 are supported"),
        ({"nemo__toolkit": "2.5.3"}, "nemo-toolkit 2.5.3: NeMo 2.6 and 2.7 are supported"),
        ({"megatron__core": "0.17.0"}, "megatron-core 0.17.0: NeMo 2.6 and 2.7 train with Megatron-Core 0.15 or 0.16"),
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"megatron-bridge": "0.3.1"}, "megatron-bridge 0.3.1: Megatron-Bridge 0.6 or later is needed, on Python 3.12"),
        ({"megatron-core": "0.16.1"}, "megatron-core 0.16.1: Megatron-Bridge 0.6 needs a later one"),
        ({"megatron-core": None}, "Megatron-Bridge trains with Megatron-Core 0.19"),
        ({"transformers": "4.57.6"}, "transformers 4.57.6: Megatron-Bridge 0.6 needs transformers 5.8"),
        ({"nvidia-resiliency-ext": "0.4.1"}, "nvidia-resiliency-ext 0.4.1: breaks Megatron-Core 0.18 and later"),
    ],
)
def test_unsupported_parts_of_bridge_are_refused(changes, words):
    (text,) = texts("refused", BRIDGE | changes)
    assert words in text
    assert texts("ok", BRIDGE | changes) == []


def test_on_a_gpu_bridge_needs_transformer_engine_and_has_stand_ins_for_the_others():
    (missing,) = texts("refused", BRIDGE, ("H200",))
    assert missing.startswith("training on GPU needs Transformer Engine")
    with_engine = BRIDGE | {"transformer-engine": "2.17.1"}
    assert texts("refused", with_engine, ("H200",)) == []
    told = [text.split()[0] for text in texts("note", with_engine, ("H200",)) if "gets a stand-in" in text]
    assert told == ["nvidia-modelopt", "nvidia-resiliency-ext"]
    assert not any("gets a stand-in" in text for text in texts("note", IMAGES["26.08"], ("H200",)))


def test_one_trainer_that_runs_is_enough():
    """NeMo's environment needs the nvidia-resiliency-ext that Megatron-Bridge cannot have: both are told apart."""
    both = GOOD | {"megatron-bridge": "0.2.0", "nvidia-resiliency-ext": "0.4.1"}
    assert texts("refused", both) == []
    assert len(texts("ok", both)) == 1
    assert any(
        text.startswith("Megatron-Bridge cannot train here: megatron-bridge 0.2.0") for text in texts("note", both)
    )
    neither = texts("refused", both | {"nemo-toolkit": "2.8.0"})
    assert any("NeMo 2.6 and 2.7 are supported" in text for text in neither)
    assert any("megatron-bridge 0.2.0" in text for text in neither)


@pytest.mark.parametrize(
    ("versions", "tested"),
    [
        (GOOD, True),
        (GOOD | {"nemo-toolkit": "2.6.2"}, True),
        (GOOD | {"megatron-core": "0.16.1"}, True),
        (GOOD | {"nemo-toolkit": "2.6.2", "megatron-core": "0.16.1"}, False),
        (BRIDGE, True),
        (BRIDGE | {"megatron-core": "0.18.0"}, False),
        (BRIDGE | {"megatron-bridge": "0.7.0"}, False),
    ],
)
def test_untested_pairs_are_named(versions, tested):
    (found,) = trainers.installed(versions, ())
    assert found.is_tested is tested
    named = [text for text in texts("note", versions) if "is not tested; tested are" in text]
    assert bool(named) is not tested
    assert all(found.version in text and str(found.megatron_core) in text for text in named)
    assert len(texts("ok", versions)) == 1


@pytest.mark.parametrize(
    ("image", "trainer"),
    [("25.11", "NeMo"), ("25.11.01", "NeMo"), ("26.02", "NeMo"), ("26.04", None), ("26.08", "Megatron-Bridge")],
)
def test_images(image, trainer):
    """Without a GPU, as when an image is built, and with one."""
    for devices in ((), ("H200",)):
        ready = texts("ok", IMAGES[image], devices)
        refused = texts("refused", IMAGES[image], devices)
        if trainer:
            assert [text.removeprefix("training can run here, with ").startswith(trainer) for text in ready] == [True]
            assert refused == []
        else:
            assert ready == []
            assert any(f"use {trainers.BRIDGE_IMAGE}" in text for text in refused)


def test_a_version_is_read_from_sources_without_metadata(tmp_path, monkeypatch):
    info = tmp_path / "vendor_core" / "deep" / "package_info.py"
    info.parent.mkdir(parents=True)
    info.write_text('MAJOR = 0\nMINOR = 16\nPATCH = 0\nPRE_RELEASE = "rc0"\nraise SystemExit\n', encoding="utf-8")
    (info.parent / "__init__.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    (tmp_path / "vendor_plain.py").touch()
    (tmp_path / "vendor_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.version_of_source("vendor_core.deep") == "0.16.0rc0"
    assert doctor.version_of_source("vendor_plain") == "unknown"
    assert doctor.version_of_source("vendor_folder") is None
    assert doctor.version_of_source("vendor_core.shallow") is None
    assert doctor.version_of_source("vendor_absent.deep") is None


def test_the_program_runs_in_a_bare_python():
    """As the Dockerfile runs it, before anything is installed: no package but the standard library can be imported."""
    child = subprocess.run([sys.executable, "-S", "-m", "nemo_longpo.doctor"], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 1, child.stderr
    assert child.stderr == ""
    assert "refused:  training needs NeMo 2.6 or 2.7" in child.stdout
    assert "or Megatron-Bridge 0.6 on Python 3.12" in child.stdout


def test_the_dockerfile_checks_its_image_first_and_copies_all_that_is_installed():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    steps = [line for line in lines if line.startswith(("RUN", "COPY", "ARG", "FROM"))]
    assert steps[:2] == ["ARG BASE=nvcr.io/nvidia/nemo:25.11", "FROM ${BASE}"]
    runs = [step for step in steps if step.startswith("RUN")]
    assert runs[0] == "RUN cd /opt/nemo_longpo && python -m nemo_longpo.doctor"
    assert "pip install" in runs[1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    copied = {name for step in steps if step.startswith("COPY") for name in step.split()[1:-1]}
    assert set(project["tool"]["setuptools"]["package-dir"].values()) <= copied
    assert {"pyproject.toml", project["project"]["readme"]} <= copied
    assert all((ROOT / name).exists() for name in copied)


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
        python="3.11.9",
        accelerators=[],
        cpus=2,
        versions=versions,
        trainers=trainers.installed(versions, []),
        findings=doctor.diagnose(versions, []),
    )


@pytest.mark.parametrize(("changes", "status"), [({}, 0), ({"nemo_run": None}, 1)])
def test_exit_status_and_json(changes, status, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: report(**changes))
    assert doctor.run(argparse.Namespace(json=True)) == status
    printed = json.loads(capsys.readouterr().out)
    assert printed["can_train"] is (status == 0)
    assert printed["versions"]["nemo-toolkit"] == "2.7.3"
    (trainer,) = printed["trainers"]
    assert (trainer["name"], trainer["megatron_core"], trainer["is_tested"]) == ("NeMo", "0.15.3", True)
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
