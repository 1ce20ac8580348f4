"""What a run was given when it began (start checkpoint, shards, loss), and which weights a checkpoint was made of.

The first is kept in the run directory, where it is before the first checkpoint. Things are known by hashes of their
content, and paths only help people to find them: the same content may lie elsewhere when the run is resumed. The second
lies beside what training copies into its own checkpoints (of NeMo in `context/`), so a checkpoint whose weights were
trained does not have it.
"""

import json
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import nemo_longpo
from nemo_longpo import atomic, json_input, typed_fields

from .forms import NEMO, form_of

FILE = "given.json"
ORIGIN_FILE = "imported_weights.json"
VERSIONS_FILE = "versions.json"
"""Beside it: the versions that the run was last started with, by the names of distributions."""
_VERSION = 1
_DISTRIBUTIONS = (
    *("torch", "nemo-toolkit", "megatron-bridge", "megatron-core", "transformer-engine", "lightning", "transformers"),
)


@dataclass(frozen=True)
class Given:
    """A file or directory that a run reads: where it was found, and a hash that changes with its content."""

    path: str
    fingerprint: str


@dataclass(frozen=True)
class RunInputs:
    """`shards` in the order of `data.paths`, which the order of documents depends on; `loss` by setting's name."""

    start: Given | None
    shards: tuple[Given, ...]
    loss: dict[str, Any]

    def changes_from(self, begun: "RunInputs") -> Iterator[str]:
        """Yield what differs in content from what the run began with, each a sentence without a full stop."""
        if begun.start and self.start and begun.start.fingerprint != self.start.fingerprint:
            was, now = begun.start, self.start
            where = "" if was.path == now.path else f" ({was.path})"
            yield f"resume.restore_config.path={now.path} is not the checkpoint that this run began with{where}"
        was_shards = [shard.fingerprint for shard in begun.shards]
        now_shards = [shard.fingerprint for shard in self.shards]
        if was_shards == now_shards:
            return
        paths = ", ".join(shard.path for shard in begun.shards)
        if sorted(was_shards) == sorted(now_shards):
            yield f"data.paths are in another order than this run began with ({paths})"
            return
        new = [shard.path for shard in self.shards if shard.fingerprint not in was_shards]
        lost = [shard.path for shard in begun.shards if shard.fingerprint not in now_shards]
        if new:
            yield f"data.paths holds shards that this run did not begin with, in {', '.join(new)}"
        if lost:
            yield f"data.paths lacks shards that this run began with, then in {', '.join(lost)}"
        if not new and not lost:
            yield f"data.paths repeats other shards than this run began with ({paths})"

    def loss_changes_from(self, begun: "RunInputs") -> Iterator[str]:
        """Yield "NAME=NOW instead of BEFORE" for each setting that changed."""
        for name, value in self.loss.items():
            if name in begun.loss and begun.loss[name] != value:
                yield f"{name}={value} instead of {begun.loss[name]}"


def write_inputs(directory: Path, inputs: RunInputs) -> None:
    """Raises InputError if the disk is full."""
    content = json.dumps({"version": _VERSION} | asdict(inputs), indent=1) + "\n"
    with atomic.explain_full_disk(directory, "nothing is lost"):
        directory.mkdir(parents=True, exist_ok=True)
    atomic.write_file(directory / FILE, content, kept="nothing is lost")


def write_versions(directory: Path, device: str | None) -> None:
    """Say with what a run is started: the versions of Python and of the packages that train, and the GPU's name.

    Raises InputError if the disk is full.
    """
    found = {"nemo_longpo": nemo_longpo.__version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if device:
        found["device"] = device
    atomic.write_file(directory / VERSIONS_FILE, json.dumps(found, indent=1) + "\n", kept="nothing is lost")


def read_inputs(directory: Path) -> RunInputs | None:
    """Return None if nothing was recorded. Raises InputError if the record is damaged or of another version."""
    path = directory / FILE
    if not path.exists():
        return None
    return typed_fields.read_versioned(
        path, RunInputs, _VERSION, "remove it if the run is to continue with the inputs given now"
    )


@dataclass(frozen=True)
class _Origin:
    weights_sha256: str


def write_origin(checkpoint: Path, weights_sha256: str) -> None:
    """Say of which Hugging Face weights an imported checkpoint was made.

    `weights_sha256` is the name that shards have for them, as in `nemo_longpo.shards.fingerprint`.
    """
    atomic.write_file(_origin_file(checkpoint), json.dumps(asdict(_Origin(weights_sha256))) + "\n")


def _origin_file(checkpoint: Path) -> Path:
    return checkpoint / (form_of(checkpoint) or NEMO).notes / ORIGIN_FILE


def read_origin(checkpoint: Path) -> str | None:
    """Return the `weights_sha256`; None if the checkpoint does not say. Raises InputError if the note is damaged."""
    path = _origin_file(checkpoint)
    if not path.exists():
        return None
    advice = "import the checkpoint again"
    return typed_fields.build(_Origin, json_input.read_json_object(path, advice), str(path), advice).weights_sha256
