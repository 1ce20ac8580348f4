"""What is done with document ids: seeds are drawn from them, and two documents of one name are refused.

Seeds depend on what is drawn for, not on the order or the worker that draws. Doubled names are refused before any work
is done: no later stage could tell the documents apart.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable

import numpy as np

from nemo_longpo.errors import InputError

from .runner.rows import PartsSource, Row


def seed_for(*parts: object) -> int:
    """A 63-bit seed from any printable values: the same everywhere, for the same values."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def hash_id(doc_id: str) -> int:
    """64 bits of a document's id."""
    return int.from_bytes(hashlib.blake2b(doc_id.encode(), digest_size=8).digest(), "big")


def refuse_repeated_ids(hashes: "array[int]", rows: Callable[[], Iterable[Row]]) -> None:
    """Raises InputError if a document id stands twice, naming both places.

    `hashes` holds `hash_id` of every document, 8 bytes each. Only if two of them are equal are the rows read again, to
    compare the ids themselves.
    """
    ordered = np.sort(np.asarray(hashes))
    doubled = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    seen: dict[str, str] = {}
    for row in rows() if doubled else ():
        doc_id = row.record["doc_id"]
        if doc_id in seen:
            raise InputError(
                f"{row.where}: document id {doc_id!r} was already used by {seen[doc_id]}; give every document its own "
                "id"
            )
        if hash_id(doc_id) in doubled:
            seen[doc_id] = row.where


def check_own_rows(source: PartsSource, check: Callable[[Row], object]) -> None:
    """Check an input that somebody made by hand: every row with `check`, and that no document id stands there twice.

    Raises InputError if one does. `check` raises it for a row without a text as "doc_id".
    """
    hashes = array("Q")
    for row in source.rows():
        check(row)
        hashes.append(hash_id(row.record["doc_id"]))
    refuse_repeated_ids(hashes, source.rows)
