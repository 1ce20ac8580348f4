"""Plans whose steps are small commands, and runs of them in another process."""

import subprocess
import sys
from pathlib import Path

from support.waiting import wait_until

from nemo_longpo.steps import Step


def step(folder: Path, name: str, *inputs: str, **changes: object) -> Step:
    """Return a step that copies its inputs and its name into one file, and notes in `calls` that it ran."""
    code = (
        "import sys; name, calls, *inputs = sys.argv[1:]; open(calls, 'a').write(name[-1]); "
        "open(name, 'w').write(''.join(open(path).read() for path in inputs) + name[-1])"
    )
    paths = [str(folder / item) for item in inputs]
    command = (sys.executable, "-S", "-c", code, str(folder / name), str(folder / "calls"), *paths)
    fields = {"title": f"make {name}", "command": command, "outputs": (folder / name,)}
    return Step(**{"name": name, "inputs": tuple(map(Path, paths)), **fields, **changes})  # type: ignore[arg-type]


def chain(folder: Path, **settings: object) -> list[Step]:
    return [step(folder, "a", settings=settings), step(folder, "b", "a"), step(folder, "c", "b")]


def calls(folder: Path) -> str:
    return (folder / "calls").read_text()


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def python(name: str, code: str, **changes: object) -> Step:
    command = (sys.executable, "-c", code)
    return Step(**{"name": name, "title": "run", "command": command, **changes})  # type: ignore[arg-type]


def wait_for(path: Path) -> None:
    wait_until(path.exists)


def is_alive(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def start(tmp_path: Path, body: str) -> "subprocess.Popen[str]":
    """Run in another process a plan of one step `slow`, whose command runs `body`."""
    code = f"""
from pathlib import Path
import signal, sys
from nemo_longpo.steps import Step, run_steps
signal.signal(signal.SIGINT, signal.default_int_handler)
out = Path({str(tmp_path)!r})
command = (sys.executable, "-c", {body!r})
try:
    run_steps([Step(name="slow", title="wait", command=command, outputs=(out / "slow",))], out)
except KeyboardInterrupt:
    print("stopped", file=sys.stderr)
"""
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
