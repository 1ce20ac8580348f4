"""The two trainers, NeMo 2 and Megatron-Bridge: what each is called and needs, and which versions the tests run.

Imports the standard library alone, so that it can judge an environment in which nothing else works.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

TrainerName = Literal["nemo", "bridge"]
"""How files and commands call a trainer, and whose form a checkpoint has."""

NEMO_IMAGE = "the NGC NeMo 25.11 image"
BRIDGE_IMAGE = "the NGC NeMo 26.08 image"

Release = tuple[int, int]
Versions = Mapping[str, str | None]


def release(version: str | None) -> Release:
    """(major, minor) of a version; (0, 0) if there is none or it is no version number."""
    found = re.match(r"(\d+)\.(\d+)", version or "")
    return (int(found[1]), int(found[2])) if found else (0, 0)


def is_installed(module: str) -> bool:
    """Whether a module can be imported; a mere folder of its name on the path, such as a run's `nemo/`, is none."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # of the package that it is part of
        return False
    return spec is not None and spec.origin is not None


@dataclass(frozen=True)
class Rule:
    """A package that training needs: the releases that work, and what is said where it is absent or another one."""

    package: str
    supported: Callable[[Release], bool]
    absent: str
    unsupported: str = ""

    def objection(self, versions: Versions) -> str:
        """What speaks against the installed version; "" if nothing does, or if it cannot be read."""
        version = versions.get(self.package)
        if version is None:
            return self.absent
        fits = version == "unknown" or self.supported(release(version))
        return "" if fits else f"{self.package} {version}: {self.unsupported}"


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """What runs the steps of training, around Megatron-Core.

    Attributes:
        title: what people call it.
        package: the installed package that makes it.
        on_gpu: what it needs besides on a GPU; without one, the CPU backend stands in.
        tested: releases of the package and of Megatron-Core -> the versions that the tests run.
        start: how training is started.
    """

    name: TrainerName
    title: str
    package: str
    rules: tuple[Rule, ...]
    on_gpu: tuple[Rule, ...]
    tested: Mapping[tuple[Release, Release], str]
    start: str


TORCH = Rule(
    "torch",
    lambda found: found >= (2, 6),
    "nothing runs without torch; install torch 2.6 or later",
    "torch 2.6 or later is needed",
)
NEMO = Trainer(
    name="nemo",
    title="NeMo",
    package="nemo-toolkit",
    rules=(
        TORCH,
        Rule(
            "nemo-toolkit",
            lambda found: found in ((2, 6), (2, 7)),
            "NeMo is not installed",
            "NeMo 2.6 and 2.7 are supported (images from 26.04 on have no `nemo llm` any more); "
            f"use {NEMO_IMAGE}, or Megatron-Bridge",
        ),
        Rule(
            "megatron-core",
            lambda found: found in ((0, 15), (0, 16)),
            f"NeMo trains with Megatron-Core 0.15 or 0.16 (`pip install megatron-core==0.15.3`, or {NEMO_IMAGE})",
            f"NeMo 2.6 and 2.7 train with Megatron-Core 0.15 or 0.16; use {NEMO_IMAGE}",
        ),
        Rule("nemo_run", lambda found: True, "the `nemo` command comes with nemo_run; install nemo_run 0.11.1"),
        Rule(
            "nvidia-modelopt",
            lambda found: True,
            "without nvidia-modelopt NeMo silently has no `llm.finetune`; install nvidia-modelopt 0.37.0",
        ),
        Rule(
            "transformers",
            lambda found: found < (5, 0),
            "install transformers 4.57",
            "NeMo needs transformers 4; transformers 5 belongs in the environment of vLLM or Megatron-Bridge",
        ),
        Rule(
            "leptonai",
            lambda found: found < (0, 47),
            "",
            "0.47 and later break nemo_run's import; install leptonai 0.26.6",
        ),
    ),
    on_gpu=(
        Rule(
            "transformer-engine",
            lambda found: True,
            f"training on GPU needs Transformer Engine, which is not installed; use {NEMO_IMAGE}",
        ),
    ),
    tested={
        ((2, 7), (0, 15)): "2.7.3 with 0.15.3",
        ((2, 6), (0, 15)): "2.6.2 with 0.15.3",
        ((2, 7), (0, 16)): "2.7.3 with 0.16.1",
    },
    start="`nemo llm finetune --help` lists the recipes",
)
BRIDGE = Trainer(
    name="bridge",
    title="Megatron-Bridge",
    package="megatron-bridge",
    rules=(
        TORCH,
        Rule(
            "megatron-bridge",
            lambda found: found >= (0, 6),
            "Megatron-Bridge is not installed",
            "Megatron-Bridge 0.6 or later is needed, on Python 3.12 (for 3.11 there is none after 0.3.1); "
            f"use {BRIDGE_IMAGE}",
        ),
        Rule(
            "megatron-core",
            lambda found: found >= (0, 17),
            f"Megatron-Bridge trains with Megatron-Core 0.19 (`pip install megatron-core==0.19.2`, or {BRIDGE_IMAGE})",
            f"Megatron-Bridge 0.6 needs a later one; install megatron-core 0.19.2, or use {BRIDGE_IMAGE}",
        ),
        Rule(
            "transformers",
            lambda found: found >= (5, 8),
            "install transformers 5.12.1",
            "Megatron-Bridge 0.6 needs transformers 5.8 to 5.12.1",
        ),
        Rule(
            "nvidia-resiliency-ext",
            lambda found: found >= (0, 5),
            "",
            f"breaks Megatron-Core 0.18 and later, which read its `__version__`; uninstall it, or use {BRIDGE_IMAGE}",
        ),
    ),
    on_gpu=(
        Rule(
            "transformer-engine",
            lambda found: True,
            f"training on GPU needs Transformer Engine, which is not installed; use {BRIDGE_IMAGE}",
        ),
    ),
    tested={((0, 6), (0, 19)): "0.6.2 with 0.19.2 on Python 3.12"},
    start="`python -m nemo_longpo.bridge.train --help` lists the recipes",
)
TRAINERS = (NEMO, BRIDGE)
NONE_INSTALLED = (
    f"training needs NeMo 2.6 or 2.7 (`pip install 'nemo_longpo[nemo]'`, or {NEMO_IMAGE}) or Megatron-Bridge 0.6 on "
    f"Python 3.12 (requirements/bridge.txt, or {BRIDGE_IMAGE}); data tools work without"
)


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A trainer that is installed: with `reasons` it cannot run; `is_tested` if the tests run these minor releases."""

    name: str
    version: str
    megatron_core: str | None
    is_tested: bool
    tested: str
    reasons: list[str]
    start: str

    @property
    def pair(self) -> str:
        return f"{self.name} {self.version} and Megatron-Core {self.megatron_core}"


def installed(versions: Versions, devices: Sequence[str]) -> list[Installed]:
    """The trainers among `versions` (by package; None: not installed), and what stands in their way on `devices`."""
    return [_judge(trainer, versions, devices) for trainer in TRAINERS if versions.get(trainer.package)]


def _judge(trainer: Trainer, versions: Versions, devices: Sequence[str]) -> Installed:
    version, core = str(versions[trainer.package]), versions.get("megatron-core")
    rules = (*trainer.rules, *(trainer.on_gpu if devices else ()))
    return Installed(
        name=trainer.title,
        version=version,
        megatron_core=core,
        is_tested=(release(version), release(core)) in trainer.tested,
        tested=", ".join(trainer.tested.values()),
        reasons=[text for rule in rules if (text := rule.objection(versions))],
        start=trainer.start,
    )
