"""Seeds that depend on what is drawn for, not on the order or the worker that draws."""

import hashlib


def seed_for(*parts: object) -> int:
    """A 63-bit seed from any printable values: the same everywhere, for the same values."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
