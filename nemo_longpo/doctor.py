"""`longpo doctor`: list the installed packages and devices, and say whether training can run here.

Reads package metadata instead of importing the packages, so a broken NeMo gives a sentence and not a stack trace.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Literal

IMAGE = "the NGC NeMo 25.11 image"
CORE = (
    "torch",
    "nemo-toolkit",
    "megatron-core",
    "nemo_run",
    "transformers",
    "nvidia-modelopt",
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
    findings: list[Finding]

    @property
    def can_train(self) -> bool:
        return all(finding.level != "refused" for finding in self.findings)


def installed_versions() -> dict[str, str | None]:
    """Version by package: "unknown" if it can be imported but has no metadata, None if it is absent."""
    modules = {name: module for name, (module, _) in OPTIONAL.items()}
    modules.update({"torch": "torch", "nemo-toolkit": "nemo", "megatron-core": "megatron"})
    versions: dict[str, str | None] = {}
    for name in (*CORE, *OPTIONAL):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "unknown" if name in modules and find_spec(modules[name]) else None
    return versions


def accelerators(torch_version: str | None) -> list[str]:
    """Names of the CUDA devices that torch sees."""
    if torch_version is None:
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def release(version: str) -> tuple[int, int]:
    """(major, minor) of a version; (0, 0) if it is no version number."""
    from packaging.version import InvalidVersion, Version

    try:
        parsed = Version(version)
    except InvalidVersion:
        return (0, 0)
    return (parsed.major, parsed.minor)


@dataclass(frozen=True)
class Rule:
    """A package that training needs: the releases that work, and what is printed about the others."""

    package: str
    supported: Callable[[tuple[int, int]], bool]
    absent: str
    unsupported: str


RULES = (
    Rule(
        "torch",
        lambda found: found >= (2, 6),
        "nothing runs without torch; install torch 2.6 or later",
        "torch 2.6 or later is needed",
    ),
    Rule(
        "nemo-toolkit",
        lambda found: found in ((2, 6), (2, 7)),
        f"training needs NeMo 2.6 or 2.7 (`pip install nemo_longpo[nemo]`, or {IMAGE}); data tools work without",
        f"NeMo 2.6 and 2.7 are supported (images from 26.04 on have no `nemo llm` any more); use {IMAGE}",
    ),
    Rule(
        "megatron-core",
        lambda found: found == (0, 15),
        f"training needs Megatron-Core 0.15 (`pip install megatron-core==0.15.3`, or {IMAGE})",
        "Megatron-Core 0.15 is supported (0.16 drops `no_weight_decay_cond`, which NeMo 2.7 still passes); "
        f"use {IMAGE}",
    ),
    Rule("nemo_run", lambda found: True, "the `nemo` command comes with nemo_run; install nemo_run 0.11.1", ""),
    Rule(
        "nvidia-modelopt",
        lambda found: True,
        "without nvidia-modelopt NeMo silently has no `llm.finetune`; install nvidia-modelopt 0.37.0",
        "",
    ),
    Rule(
        "transformers",
        lambda found: found < (5, 0),
        "install transformers 4.57",
        "NeMo needs transformers 4; transformers 5 belongs in the vLLM environment",
    ),
)


def diagnose(versions: Mapping[str, str | None], devices: Sequence[str]) -> list[Finding]:
    """The verdict for a set of installed versions and CUDA devices."""
    findings = [finding for rule in RULES for finding in _judge(rule, versions.get(rule.package))]
    if versions.get("nemo_run") and release(versions.get("leptonai") or "0") >= (0, 47):
        findings.append(Finding("refused", "leptonai 0.47 and later break nemo_run's import; install leptonai 0.26.6"))
    if release(versions.get("numpy") or "0") >= (2, 0):
        findings.append(Finding("note", "numpy 2 has not been tried with NeMo; the tested set has numpy 1.26"))
    findings += _judge_device(versions, devices)
    if all(finding.level != "refused" for finding in findings):
        findings.append(Finding("ok", "training can run here: `nemo llm finetune --help` lists the recipes"))
    return findings


def _judge(rule: Rule, version: str | None) -> list[Finding]:
    if version is None:
        return [Finding("refused", rule.absent)]
    if version == "unknown":
        return [Finding("note", f"{rule.package} has no version to read; it is taken to be a supported one")]
    if not rule.supported(release(version)):
        return [Finding("refused", f"{rule.package} {version}: {rule.unsupported}")]
    return []


def _judge_device(versions: Mapping[str, str | None], devices: Sequence[str]) -> list[Finding]:
    if not devices:
        return [
            Finding("note", "no CUDA device: training runs on the CPU backend (gloo, fp32, small models)"),
            Finding("note", "on CPU, attention, norms and optimizer are plain torch; fused kernels are switched off"),
        ]
    found = versions.get("transformer-engine")
    if found is None:
        return [Finding("refused", f"training on GPU needs Transformer Engine, which is not installed; use {IMAGE}")]
    if found != "unknown" and release(found) != (2, 9):
        return [Finding("note", f"Transformer Engine {found}: our calls into it are checked against release 2.9")]
    return []


def examine() -> Report:
    """Look at this machine."""
    versions = installed_versions()
    devices = accelerators(versions["torch"])
    return Report(
        python=platform.python_version(),
        accelerators=devices,
        cpus=os.cpu_count() or 1,
        versions=versions,
        findings=diagnose(versions, devices),
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
    summary = "show versions and devices, and whether training can run here"
    parser = subparsers.add_parser(
        "doctor",
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="example:\n  longpo doctor --json\n\nThe exit status is 1 when training cannot run here.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.set_defaults(run=run)
