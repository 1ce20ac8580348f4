"""What a run was given when it began: its start checkpoint, its shards and its loss, by their content.

Kept in the run directory, not in checkpoints: it is there before the first of them. Paths only help people to find
things; the same content may lie elsewhere when the run goes on.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_longpo.atomic import explain_full_disk, write_file
from nemo_longpo.errors import InputError
from nemo_longpo.json_input import read_json_object
from nemo_longpo.typed_fields import build

FILE = "given.json"
_VERSION = 1


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
        """What of the content is not what the run began with, each a sentence without an end."""
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
        """ "NAME=NOW instead of BEFORE" for each."""
        for name, value in self.loss.items():
            if name in begun.loss and begun.loss[name] != value:
                yield f"{name}={value} instead of {begun.loss[name]}"


def write_inputs(directory: Path, inputs: RunInputs) -> None:
    """Whole or not at all. Raises InputError if there is no room."""
    content = json.dumps({"version": _VERSION} | asdict(inputs), indent=1) + "\n"
    with explain_full_disk(directory, "nothing is lost"):
        directory.mkdir(parents=True, exist_ok=True)
    write_file(directory / FILE, content, kept="nothing is lost")


def read_inputs(directory: Path) -> RunInputs | None:
    """None if nothing was recorded. Raises InputError for a damaged record."""
    path = directory / FILE
    if not path.exists():
        return None
    advice = "remove it if the run is to go on with whatever is given now"
    content = read_json_object(path, advice)
    version = content.pop("version", None)
    if version != _VERSION:
        raise InputError(f"{path} is of version {version!r}, which is not known here; {advice}")
    return build(RunInputs, content, str(path), advice)
