"""Tables of the documents, for tests that hold them to what they are about."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def rows_behind(document: str, start: str) -> list[list[str]]:
    """Return the cells of the first table that follows `start`, without its head."""
    _, found, rest = (ROOT / document).read_text(encoding="utf-8").partition(start)
    assert found, f"{document} has no {start}"
    lines = rest.partition("|---")[2].partition("\n")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def migrated_settings() -> dict[str, str]:
    """Return NeMo's path -> Megatron-Bridge's, of each setting in the table for people who migrate."""
    pairs: dict[str, str] = {}
    for nemo, bridge, *_ in rows_behind("docs/bridge.md", "## Coming from NeMo 2"):
        theirs, ours = (re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)`", cell) for cell in (nemo, bridge))
        assert len(theirs) == len(ours), f"{nemo} and {bridge} name different numbers of settings"
        pairs |= zip(theirs, ours, strict=True)
    return pairs
