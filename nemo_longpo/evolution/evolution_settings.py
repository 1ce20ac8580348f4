"""What the file of `longpo evolve` may say, and what it comes to: each round with all that it inherits."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_longpo.evaluation.eval_settings import QuestionSettings
from nemo_longpo.placement import LONGEST_BRANCH
from nemo_longpo.typed_fields import Count, Names, Number, Size

from .training_command import COMMANDS, TrainingCommand


@dataclass(frozen=True)
class Environments:
    """The `bin` directories of Python environments, for the stages of data, for training and for evaluation."""

    data: str | None = None
    train: str | None = None
    eval: str | None = None

    def program(self, environment: str, name: str) -> str:
        """Return the path of a program; an environment that is not given is the one that runs this."""
        given = getattr(self, environment)
        return str((Path(given) if given else Path(sys.executable).parent).absolute() / name)


@dataclass(frozen=True)
class Hardware:
    """The GPUs that training uses, for the estimate of GPU hours; `gpu` is a name of `longpo plan`."""

    gpu: str
    gpus: Size
    gpus_per_node: Size = 8


@dataclass(frozen=True, kw_only=True)
class Training:
    """A recipe with its overrides, of NeMo or of Megatron-Bridge (`trainer`).

    For Bridge, torchrun starts so many `processes` on this machine; NeMo starts its own. `executor` is this machine, or
    a name among the file's executors. `launcher` are words in front of the command here. `restarts` are submissions
    after the first one, if a job runs out of time or loses nodes.
    """

    factory: str
    trainer: str = "nemo"
    processes: Size = 1
    settings: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    launcher: Names = field(default_factory=list)
    executor: str = "local"
    restarts: Count = 3

    @property
    def command(self) -> TrainingCommand:
        return COMMANDS[self.trainer]


@dataclass(frozen=True, kw_only=True)
class Evaluating:
    """What `longpo eval` is asked; settings of its engine and of its judge go in the same mapping."""

    suite: Names
    data: str | None = None
    wording: str | None = None
    lengths: tuple[Size, ...] = ()
    samples: Size | None = None
    seed: Count = QuestionSettings.seed
    executor: str = "local"


@dataclass(frozen=True)
class GateLimits:
    """When the rounds stop: points that short accuracy may fall below that of the base model, and fewest pairs.

    Short accuracy is that of the short benchmarks; with `short_tokens`, that of the long ones up to this length.
    """

    most_lost: Number = 1.0
    short_tokens: Size | None = None
    fewest_pairs: Size = 1


@dataclass(frozen=True, kw_only=True)
class RoundFields:
    """What a round has of its own; `data`, `train` and `evaluate` are laid over those of the file."""

    length: Size
    rope_theta: Number | None = None
    rope_scaling: str | None = None
    input: Names | None = None
    data: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FileFields:
    """The keys of a file."""

    base: str
    output: str
    data: dict[str, Any]
    train: dict[str, Any]
    evaluate: dict[str, Any]
    rounds: tuple[dict[str, Any], ...]
    input: Names | None = None
    prompts: str | None = None
    executors: dict[str, Any] = field(default_factory=dict)
    environments: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] | None = None
    gate: dict[str, Any] = field(default_factory=dict)
    branch_tokens: Size = LONGEST_BRANCH
    full_attention: bool = False


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round, with all that it inherits. `length` and `max_length` are tokens of a document, and of it with answers.

    `data` is the content of the file that `longpo data run` gets; `asked` are the flags of `longpo eval`, which runs on
    `asked_on`, and `asked_settings` those among them that decide its results.
    """

    number: int
    length: int
    max_length: int
    start: Path
    folder: Path
    rope_theta: float | None
    rope_scaling: str | None
    full_attention: bool
    data: dict[str, Any]
    train: Training
    asked: tuple[str, ...]
    asked_settings: dict[str, Any]
    asked_on: str

    @property
    def model(self) -> Path:
        """The Hugging Face directory that the round ends with."""
        return self.folder / "model"


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """The content of a file; all paths are absolute."""

    base: Path
    output: Path
    environments: Environments
    executors: Mapping[str, Mapping[str, Any]]
    env: Mapping[str, str]
    hardware: Hardware | None
    gate: GateLimits
    rounds: tuple[Round, ...]
