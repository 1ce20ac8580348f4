"""Rates that were measured on this machine, in a file: `longpo plan --calibrate` writes it, later plans read it."""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nemo_longpo import atomic, typed_fields
from nemo_longpo.costs.devices import preset_of_device
from nemo_longpo.costs.rates import Rates
from nemo_longpo.errors import InputError

VERSION = 1
DATA_SHEET = "data-sheet"
"""Instead of a file: what is known of the GPU without a measurement of this machine."""
_ADVICE = "write it with longpo plan --calibrate, or plan with --rates data-sheet"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured: on which device (its CUDA name), when (ISO date), with which software, and how, by kind."""

    device: str
    date: str
    software: dict[str, str]
    measured: dict[str, str]
    rates: Rates


def default_file() -> Path:
    """Return the file that plans read by themselves, in the user's configuration (XDG)."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "nemo_longpo" / "rates.json"


def read(file: Path) -> Calibration:
    """Raises InputError if the file is not there, damaged, or of another version."""
    return typed_fields.read_versioned(file, Calibration, VERSION, _ADVICE)


def check_writable(file: Path) -> None:
    """Raises InputError if the file, or its directory, cannot be made."""
    above = next(parent for parent in file.absolute().parents if parent.exists())
    if file.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"--rates {file} cannot be written; give a file in a directory that can")


def write(file: Path, calibration: Calibration) -> None:
    """Put the file there whole, or leave what was there."""
    text = json.dumps({"version": VERSION} | asdict(calibration), indent=2) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_file(file, text, kept="the rates of before are kept")


def measured_rates(wish: str | None, gpu: str) -> Rates | None:
    """Return the rates to plan with, None for those known of the GPU.

    A file that is given is used for any GPU. The default one is used if it is there and its device is this GPU.
    Raises InputError if the file is not readable.
    """
    if wish == DATA_SHEET:
        return None
    file = Path(wish) if wish else default_file()
    if wish is None and not file.is_file():
        return None
    found = read(file)
    if wish is None and preset_of_device(found.device) != gpu:
        return None
    return replace(found.rates, source=f"{found.rates.source} ({file})")
