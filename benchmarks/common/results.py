"""Where a result comes from, and how it is written. Standard library only."""

import argparse
import json
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import RESULTS, ROOT


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a program whose `--help` shows its docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def command() -> str:
    """Return the command that runs this program, as a person types it in the repository's folder."""
    module = ".".join(Path(sys.argv[0]).resolve().relative_to(ROOT).with_suffix("").parts)
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def origin(packages: tuple[str, ...] = ("transformers", "tokenizers", "pyarrow")) -> dict[str, Any]:
    """Return the command, the versions and the machine."""
    return {
        "command": command(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def write_results(name: str, result: dict[str, Any], lines: list[str], directory: Path = RESULTS) -> None:
    """Write `name`.json and `name`.md, which begins with where its numbers come from."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    versions = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
    software = ", ".join(filter(None, [f"Python {result['python']}", versions]))
    head = [f"`{result['command']}` on {result['machine']}; {software}.", ""]
    text = "\n".join([*head, *lines]) + "\n"
    (directory / f"{name}.md").write_text(text)
    print(text)
