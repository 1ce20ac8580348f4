"""`longpo doctor`: list the installed packages and devices, and say whether training can run here, and with what.

Reads package metadata instead of importing the packages, so a broken NeMo gives a sentence and not a stack trace.
`python -m nemo_longpo.doctor` does the same before anything is installed, the plugin included.
"""

import argparse
import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from nemo_longpo import trainers

CORE = (
    "torch",
    "nemo-toolkit",
    "megatron-bridge",
    "megatron-core",
    "nemo_run",
    "transformers",
    "nvidia-modelopt",
    "nvidia-resiliency-ext",
    "lightning",
    "leptonai",
    "numpy",
    "pyarrow",
    "safetensors",
)
OPTIONAL = {
    "transformer-engine": ("transformer_engine", "fused attention, norms and context parallelism on GPU"),
    "apex": ("apex", "fused optimizer; Megatron does without"),
    "flash-attn": ("flash_attn", "attention kernels; Transformer Engine has its own"),
    "vllm": ("vllm", "fast generation for `longpo data` and `eval`; in an environment of its own"),
    "lm_eval": ("lm_eval", "what `longpo eval` asks and scores with; pip install 'nemo_longpo[eval]'"),
}
# What NGC images may put on the path as sources, without metadata.
MODULES = {
    "torch": "torch",
    "nemo-toolkit": "nemo",
    "megatron-bridge": "megatron.bridge",
    "megatron-core": "megatron.core",
    **{name: module for name, (module, _) in OPTIONAL.items()},
}

Level = Literal["ok", "note", "refused"]


@dataclass(frozen=True)
class Finding:
    """One line of the verdict. `refused` means that training cannot run here."""

    level: Level
    text: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that `longpo doctor` prints."""

    python: str
    accelerators: list[str]
    cpus: int
    versions: dict[str, str | None]
    trainers: list[trainers.Installed]
    findings: list[Finding]

    @property
    def can_train(self) -> bool:
        return all(finding.level != "refused" for finding in self.findings)


def installed_versions() -> dict[str, str | None]:
    """Version by package: "unknown" if it can be imported but says none, None if it is absent."""
    versions: dict[str, str | None] = {}
    for name in (*CORE, *OPTIONAL):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = version_of_source(MODULES[name]) if name in MODULES else None
    return versions


def version_of_source(module: str) -> str | None:
    """Version of a package on the path, by the numbers in the `package_info.py` that NVIDIA's have; nothing is run."""
    if not trainers.is_installed(module):
        return None
    spec = util.find_spec(module)
    assert spec is not None
    for folder in spec.submodule_search_locations or ():
        info = Path(folder, "package_info.py")
        text = info.read_text(encoding="utf-8") if info.is_file() else ""
        parts = dict(re.findall(r"""^(MAJOR|MINOR|PATCH|PRE_RELEASE) *= *['"]?(\w*)""", text, re.MULTILINE))
        if {"MAJOR", "MINOR", "PATCH"} <= parts.keys():
            return "{MAJOR}.{MINOR}.{PATCH}".format(**parts) + parts.get("PRE_RELEASE", "")
    return "unknown"


def accelerators(torch_version: str | None) -> list[str]:
    """Names of the CUDA devices that torch sees."""
    if torch_version is None:
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def diagnose(versions: trainers.Versions, devices: Sequence[str], python: str = "3.12") -> list[Finding]:
    """The verdict for a set of installed versions, CUDA devices and a Python.

    One trainer that can run is enough; what stands in the way of the other is then a note.
    """
    found = trainers.installed(versions, devices)
    usable = [each for each in found if not each.reasons]
    texts = [f"{each.name} cannot train here: {text}" if usable else text for each in found for text in each.reasons]
    refused = [] if usable else texts
    if not found:
        core = versions.get("megatron-core")
        refused.append((f"Megatron-Core {core} alone starts no training: " if core else "") + trainers.NONE_INSTALLED)
    if trainers.release(python) < (3, 11):
        refused.append(f"Python {python} is too old; 3.11 or later is needed")
    notes = (texts if usable else []) + _notes(versions, devices, usable)
    ready = [] if refused else [f"training can run here, with {each.pair}: {each.start}" for each in usable]
    levels: dict[Level, list[str]] = {"refused": refused, "note": notes, "ok": ready}
    return [Finding(level, text) for level, texts in levels.items() for text in dict.fromkeys(texts)]


def _notes(versions: trainers.Versions, devices: Sequence[str], usable: Sequence[trainers.Installed]) -> list[str]:
    notes = [
        f"{package} has no version to read; it is taken to be a supported one"
        for package in ("torch", "nemo-toolkit", "megatron-bridge", "megatron-core")
        if versions.get(package) == "unknown"
    ]
    if any(each.name == trainers.NEMO.title for each in usable) and trainers.release(versions.get("numpy")) >= (2, 0):
        notes.append("numpy 2 has not been tried with NeMo; the tested set has numpy 1.26")
    if not devices:
        notes.append("no CUDA device: training runs on the CPU backend (gloo, fp32, small models)")
        notes.append("on CPU, attention, norms and optimizer are plain torch; fused kernels are switched off")
    engine = versions.get("transformer-engine")
    if devices and engine not in (None, "unknown") and trainers.release(engine) != (2, 9):
        notes.append(f"Transformer Engine {engine}: our calls into it are checked against release 2.9")
    if devices and any(each.name == trainers.BRIDGE.title for each in usable):
        missing = [name for name in ("nvidia-modelopt", "nvidia-resiliency-ext") if versions.get(name) is None]
        notes += [f"{name} is not installed; Megatron-Bridge gets a stand-in, as on a CPU" for name in missing]
    return notes + [f"{each.pair} is not tested; tested are {each.tested}" for each in usable if not each.is_tested]


def examine() -> Report:
    """Look at this machine."""
    versions, python = installed_versions(), platform.python_version()
    devices = accelerators(versions["torch"])
    return Report(
        python=python,
        accelerators=devices,
        cpus=os.cpu_count() or 1,
        versions=versions,
        trainers=trainers.installed(versions, devices),
        findings=diagnose(versions, devices, python),
    )


def render(report: Report) -> str:
    """The report as a table for a terminal."""
    device = ", ".join(report.accelerators) or f"CPU, {report.cpus} cores"
    rows = [("python", report.python, ""), ("device", device, "")]
    rows += [(name, report.versions[name] or "-", "") for name in CORE]
    rows += [(name, report.versions[name] or "-", purpose) for name, (_, purpose) in OPTIONAL.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"{name:<{widths[0]}}  {value:<{widths[1]}}  {purpose}".rstrip() for name, value, purpose in rows]
    lines.append("")
    lines += [f"{finding.level + ':':<9} {finding.text}" for finding in report.findings]
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> int:
    report = examine()
    print(json.dumps(asdict(report) | {"can_train": report.can_train}) if arguments.json else render(report))
    return 0 if report.can_train else 1


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    summary = "show versions and devices, and whether training can run here, with NeMo or Megatron-Bridge"
    parser = subparsers.add_parser(
        "doctor",
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="example:\n  longpo doctor --json\n\nThe exit status is 1 when training cannot run here.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.set_defaults(run=run)


if __name__ == "__main__":
    raise SystemExit(run(argparse.Namespace(json=False)))
