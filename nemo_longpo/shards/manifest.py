"""`manifest.json`: where the shards come from, what they hold, and a checksum of every file."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError

from .schema import ARROW_SCHEMAS

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class ReferenceModel:
    """Which model scored the pairs: a hash of its weights, its rotary settings, and the dtype that it ran in."""

    weights_sha256: str
    rope: dict[str, Any]
    dtype: str


@dataclass(frozen=True)
class Provenance:
    """What a trainer must agree with (tokenizer, template) and what people want to know (reference, generation)."""

    tokenizer_fingerprint: str
    chat_template_hash: str
    vocab_size: int
    reference: ReferenceModel
    ref_context: str
    generation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardFile:
    name: str
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Counts:
    """Sums over all records; tokens are counted per segment."""

    documents: int = 0
    turns: int = 0
    trunk_tokens: int = 0
    chosen_tokens: int = 0
    rejected_tokens: int = 0


@dataclass(frozen=True)
class Manifest:
    """`length_histogram` counts documents by the longer full sequence, under the next power of two at or above it."""

    schema_version: int
    tokenizer_fingerprint: str
    chat_template_hash: str
    vocab_size: int
    reference: ReferenceModel
    ref_context: str
    generation: dict[str, Any]
    counts: Counts
    length_histogram: dict[str, int]
    files: tuple[ShardFile, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def length_bucket(tokens: int) -> str:
    """The histogram key of a length: the next power of two at or above it, as text (JSON keys are text)."""
    return str(1 << max(tokens - 1, 0).bit_length())


def load_manifest(directory: Path) -> Manifest:
    """Read a shard directory's manifest. Raises InputError if there is none, or its schema version is unknown."""
    path = directory / MANIFEST_NAME
    if not path.is_file():
        raise InputError(f"{directory} holds no {MANIFEST_NAME}: give a directory written by `longpo data pack`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); rebuild the shards with `longpo data pack`") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is not int or version not in ARROW_SCHEMAS:
        known = " and ".join(map(str, ARROW_SCHEMAS))
        raise InputError(
            f"{path} has schema version {version}, but this nemo_longpo reads versions {known}; "
            "rebuild the shards with `longpo data pack`"
        )
    expected = {item.name for item in fields(Manifest)}
    if set(content) != expected:
        wrong = ", ".join(sorted(expected ^ set(content)))
        raise InputError(f"{path} has missing or unknown fields ({wrong}); rebuild the shards with `longpo data pack`")
    content["reference"] = ReferenceModel(**content["reference"])
    content["counts"] = Counts(**content["counts"])
    content["files"] = tuple(ShardFile(**item) for item in content["files"])
    return Manifest(**content)


def sha256_file(path: Path | str) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
