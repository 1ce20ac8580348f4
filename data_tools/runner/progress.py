"""Show and keep the progress of unfinished parts: a bar for people, finished requests for the next start."""

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_longpo.atomic import explain_full_disk
from nemo_longpo.live_status import StatusFile
from nemo_longpo.status_bar import StatusBar

_HOST = socket.gethostname()
_SILENCE = 600  # seconds after which a process that reports nothing about its part counts as lost


@dataclass(frozen=True)
class Usage:
    """Tokens that one or more finished requests used; cached prompt tokens were not computed again."""

    requests: int
    prompt_tokens: int
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0


Tick = Callable[[Usage], None]


class Kept:
    """Finished requests of one part by key, in hidden files beside the parts, one per process that worked on it.

    Values are JSON. A line that was cut by a kill is ignored. `made_by` names everything that a value depends on apart
    from its key: values kept under another name are not found.
    """

    def __init__(self, output: Path, part: int, made_by: str):
        self._output, self._part = output, part
        self._name = f".kept-{part:05d}-{made_by}"
        self._found: dict[str, Any] | None = None

    def get(self, key: str) -> Any | None:
        if self._found is None:
            self._found = {}
            for path in sorted(self._output.glob(f"{self._name}.*.jsonl")):
                self._found.update(_read(path))
        return self._found.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a value. Raises InputError if the disk is full."""
        path = self._output / f"{self._name}.{_HOST}.{os.getpid()}.jsonl"
        with explain_full_disk(path), path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps([key, value])}\n")  # its own line, even after one that was cut

    def drop(self) -> None:
        """Remove what was kept: the part is finished, or the values are useless."""
        for path in self._output.glob(f".kept-{self._part:05d}-*.jsonl"):
            path.unlink(missing_ok=True)


def remove_kept(directory: Path) -> None:
    """Remove the files that killed processes left behind."""
    for path in directory.glob(".kept-*.jsonl"):
        path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    found = {}
    for line in path.read_bytes().splitlines():
        try:
            key, value = json.loads(line)
        except ValueError:  # cut, or empty
            continue
        found[key] = value
    return found


class Progress:
    """A bar over the documents of all parts of all processes; within a part it moves with every finished request.

    `status.json` in `output` says the same until all parts are there.

    A context manager. `finished` returns the finished parts; `position` is the bar's line on the terminal. Call it with
    the usage of finished requests. `kept` holds those of the current part. Once a second the finished share of the part
    is written to a hidden file of this process in `output`, for `shares_of_parts`.
    """

    kept: Kept

    def __init__(
        self,
        name: str,
        rows_in_parts: Sequence[int],
        finished: Callable[[], set[int]],
        output: Path,
        position: int = 0,
    ):
        self._rows, self._finished = rows_in_parts, finished
        self._file = output / f".progress-{socket.gethostname()}.{os.getpid()}"
        self._published = 0.0
        self._done = self._finished_rows()
        self._part_rows, self._expected = 0, 0
        self._part: Counter[str] = Counter()
        self._total: Counter[str] = Counter()
        self._since = time.monotonic()
        total = sum(rows_in_parts)
        self._status = StatusFile(output, name, kept=False, done=self._done, total=total, unit="document")
        self._bar = StatusBar(self._status, total=total, initial=self._done, desc=name, unit="doc", position=position)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._bar.close()
        self._file.unlink(missing_ok=True)
        self._status.end(error, unfinished=len(self._finished()) < len(self._rows))

    def __str__(self) -> str:
        """Return the bar as it is displayed."""
        return str(self._bar)

    def begin(self, part: int, kept: Kept) -> None:
        """Start a part. Time counts from the first one: while a model loads, no tokens are read."""
        if not self._total:
            self._since = time.monotonic()
            self._status.begin()
        self._part_rows, self._expected, self._part, self.kept = self._rows[part], 0, Counter(), kept

    def expect(self, requests: int) -> None:
        """Add to the number of requests that the current part needs."""
        self._expected += requests

    def __call__(self, usage: Usage) -> None:
        for counter in (self._part, self._total):
            counter.update(asdict(usage))
        share = min(self._part["requests"] / self._expected, 1.0) if self._expected else 0.0
        self._move(self._done + share * self._part_rows)
        if time.monotonic() - self._published >= 1:
            self._published = time.monotonic()
            with suppress(OSError):  # only for display; required files report a full disk
                self._file.write_text(f"{share:.3f} {len(self._rows)}")

    def usage(self) -> Counter[str]:
        """Return the usage of the current part so far."""
        return +self._part

    def end(self) -> None:
        """End the current part; others may be finished too."""
        self._file.unlink(missing_ok=True)
        self._done = self._finished_rows()
        self._move(self._done)
        self._bar.refresh()

    def _finished_rows(self) -> int:
        return sum(self._rows[part] for part in self._finished())

    def _move(self, documents: float) -> None:
        total, seconds = self._total, max(time.monotonic() - self._since, 1e-9)
        read = total["prompt_tokens"] - total["cached_prompt_tokens"]
        said = [f"{total['requests']:,} requests"] if total else []
        for tokens, what in ((read, "read"), (total["generated_tokens"], "written")):
            said += [f"{tokens / seconds:,.0f} tokens/s {what}"] if tokens else []
        if total["cached_prompt_tokens"]:
            said.append(f"{total['cached_prompt_tokens'] / total['prompt_tokens']:.0%} cached")
        self._bar.set_postfix_str(", ".join(said), refresh=False)
        self._bar.update(documents - self._bar.n)


def shares_of_parts(output: Path) -> tuple[float, int | None]:
    """Return the sum of the finished shares of unfinished parts, over living processes, and the number of all parts.

    The number is None if no process has reported it.
    """
    done, parts = 0.0, None
    for path in output.glob(".progress-*"):
        # A file may be removed or half written while it is read.
        with suppress(OSError, ValueError):
            if time.time() - path.stat().st_mtime < _SILENCE:
                share, count = path.read_text().split()
                done, parts = done + float(share), int(count)
    return done, parts


def remove_shares(output: Path) -> None:
    """Remove the files that killed processes left behind."""
    for path in output.glob(".progress-*"):
        path.unlink(missing_ok=True)
