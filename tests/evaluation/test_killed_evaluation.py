"""`longpo eval` in a process of its own, killed at ten moments: the output in the end has the same bytes."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.tiny_models import save_tiny, sentences
from support.waiting import wait_until

KILLS = 10
SECONDS = 300


def write_questions(path: Path) -> None:
    """Three books with questions that share them, and questions alone, at two lengths."""
    draw = random.Random(5)
    rows = []
    for length in (300, 600):
        books = [" ".join(draw.choices(sentences(), k=length // 9)) for _ in range(3)]
        rows += [
            {"prompt": f"{books[number % 3]} What does boat {number} follow?", "answers": ["boat"], "length": length}
            for number in range(60)
        ]
        rows += [
            {"prompt": " ".join(draw.choices(sentences(), k=3 + number)), "answers": ["gate"], "length": length}
            for number in range(10)
        ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def command(programs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    models = [f"{name}={save_tiny(folder / name, seed=seed)}" for seed, name in enumerate(("before", "after"))]
    write_questions(folder / "books.jsonl")
    words = [*models, "--suite", str(folder / "books.jsonl"), "--batch-tokens", "2500", "--chat-date", "2026-01-01"]
    return [programs / "longpo", "eval", *words]


def start(command, output, log):
    with log.open("ab") as file:
        return subprocess.Popen(
            [*command, "--output", str(output)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )


def answered(output: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in output.glob("answers/*.jsonl"))


def kill_after(process, nemo_process, output: Path, more: int, seconds: float) -> None:
    """SIGKILL so long after so many more answers."""
    target = answered(output) + more
    wait_until(lambda: process.poll() is not None or answered(output) >= target)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    nemo_process.wait_for_forks()


def contents(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_ten_kills_leave_no_trace(command, nemo_process, tmp_path):
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    assert start(command, whole, log).wait(SECONDS) == 0, log.read_text()
    asked = answered(whole)
    assert asked == 2 * 140
    draw = random.Random(11)
    seen = []
    for _ in range(KILLS):
        process = start(command, killed, log)
        kill_after(process, nemo_process, killed, draw.randrange(1, 12), draw.random() * 0.01)
        assert process.returncode == -signal.SIGKILL, log.read_text()
        seen.append(answered(killed))
    assert seen == sorted(set(seen)), "each run goes on where the last one was killed"
    assert seen[-1] < asked
    assert start(command, killed, log).wait(SECONDS) == 0, log.read_text()
    assert contents(killed) == contents(whole)
