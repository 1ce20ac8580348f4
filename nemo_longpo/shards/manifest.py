"""`manifest.json`: where the shards come from, what they hold, and a checksum of every file.

Also which files were held to their checksum on which machine, so that a restarted run does not read all of them again.
A file counts as the one that was hashed while its inode, size, time of change and time of status change are the same.
The kernel sets the last at every write, and nobody else can.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

from nemo_longpo import atomic, json_input, typed_fields
from nemo_longpo.errors import InputError

from .schema import ARROW_SCHEMAS, REF_CONTEXTS, PairRecord

MANIFEST_NAME = "manifest.json"
_ADVICE = "copy it again, or rebuild the shards with `longpo data pack`"
_MAX_BYTES = 1 << 26  # some 300,000 files
_MAX_VOCABULARY = 1 << 31  # ids are int32
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class ReferenceModel:
    """The model that scored the pairs: a hash of its weights, its rotary settings, and the dtype that it ran in."""

    weights_sha256: str
    rope: dict[str, Any]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where pairs come from: a trainer must agree with the tokenizer and template, the rest is for people.

    `generation` holds each stage's settings under its name.
    """

    tokenizer_fingerprint: str
    chat_template_hash: str
    vocab_size: int
    reference: ReferenceModel
    ref_context: str
    generation: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardFile:
    name: str
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Sums over all records; tokens are counted per segment."""

    documents: int = 0
    turns: int = 0
    trunk_tokens: int = 0
    chosen_tokens: int = 0
    rejected_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`length_histogram` counts documents by the longer full sequence, under the next power of two at or above it."""

    schema_version: int
    tokenizer_fingerprint: str
    chat_template_hash: str
    vocab_size: int
    reference: ReferenceModel
    ref_context: str
    generation: dict[str, dict[str, Any]]
    counts: Counts
    length_histogram: dict[str, int]
    files: tuple[ShardFile, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @property
    def fingerprint(self) -> str:
        """Return a sha256 that changes with the records, their order, and everything that is said of them."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class Tally:
    """Sums over records, as a manifest states them."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._histogram: Counter[str] = Counter()

    def add(self, record: PairRecord) -> None:
        trunk, chosen, rejected = record.lengths
        self._sums.update(
            documents=1, turns=record.turns, trunk_tokens=trunk, chosen_tokens=chosen, rejected_tokens=rejected
        )
        self._histogram[_length_bucket(trunk + max(chosen, rejected))] += 1

    @property
    def counts(self) -> Counts:
        return Counts(**self._sums)

    @property
    def length_histogram(self) -> dict[str, int]:
        return dict(sorted(self._histogram.items(), key=lambda item: int(item[0])))


def _length_bucket(tokens: int) -> str:
    """Return the histogram key of a length: the next power of two at or above it, as text (JSON keys are text)."""
    return str(1 << max(tokens - 1, 0).bit_length())


def load_manifest(directory: Path) -> Manifest:
    """Read a shard directory's manifest.

    Raises:
        InputError: there is none, it is of another schema version, a field is missing, unknown or of another type, or
            fields contradict each other. Names of files are plain, so none leads out of the directory.
    """
    path = directory / MANIFEST_NAME
    if not path.is_file():
        raise InputError(f"{directory} holds no {MANIFEST_NAME}: give a directory written by `longpo data pack`")
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path} has more than {_MAX_BYTES} bytes, as no manifest has; {_ADVICE}")
    content = json_input.read_json_object(path, _ADVICE)
    version = content.get("schema_version")
    if type(version) is not int or version not in ARROW_SCHEMAS:
        raise InputError(
            f"{path} has schema version {short_repr(version)}, but this nemo_longpo reads versions 1 to "
            f"{max(ARROW_SCHEMAS)}; rebuild the shards with `longpo data pack`"
        )
    manifest = typed_fields.build(Manifest, content, str(path), _ADVICE)
    for problem in _contradictions(manifest):
        raise InputError(f"{path}: {problem}; {_ADVICE}")
    return manifest


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with fields that have the right types."""
    if manifest.ref_context not in REF_CONTEXTS:
        yield f"field 'ref_context' should be one of {', '.join(REF_CONTEXTS)}, not {short_repr(manifest.ref_context)}"
    if not 1 <= manifest.vocab_size <= _MAX_VOCABULARY:
        yield f"field 'vocab_size' is {manifest.vocab_size}, and token ids are from 0 to {_MAX_VOCABULARY - 1}"
    for number, file in enumerate(manifest.files):
        field = f"field 'files[{number}]"
        if not _is_plain(file.name):
            yield f"{field}.name' should be a plain file name, not {short_repr(file.name)}"
        if not _SHA256.fullmatch(file.sha256):
            yield f"{field}.sha256' should be 64 hexadecimal digits, not {short_repr(file.sha256)}"
        if not 1 <= file.records <= file.bytes:
            yield f"{field}.records' is {file.records}, which a file of {file.bytes} bytes cannot hold"
    for length in manifest.length_histogram:
        if not length.isdecimal() or len(length) > 12 or _length_bucket(int(length)) != length:
            yield f"field 'length_histogram' counts by powers of two, and {short_repr(length)} is none"
    names = Counter(file.name for file in manifest.files)
    for name, times in names.items():
        if times > 1:
            yield f"field 'files' names {name!r} {times} times"
    documents = manifest.counts.documents
    for field, found in (
        ("files", sum(file.records for file in manifest.files)),
        ("length_histogram", sum(manifest.length_histogram.values())),
    ):
        if found != documents:
            yield f"field {field!r} holds {found} documents, but 'counts.documents' is {documents}"


def _is_plain(name: str) -> bool:
    """Whether a name can only mean a file in the directory itself, on any system that shards are copied to."""
    return _PLAIN_NAME.fullmatch(name) is not None and not name.startswith(".")


def sha256_file(path: Path | str) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


State = list[int | str]
"""Inode, size, time of change and of status change (nanoseconds), and sha256 of a file."""

Known = Mapping[str, Mapping[str, State]]
"""Machine → absolute path → state."""


def state_of(path: Path, sha256: str) -> State:
    """Return the state of a file that has this sha256. Raises OSError."""
    found = path.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, sha256]


def read_known(memory: Path) -> Known:
    """Return what the file says; nothing if it is not there or damaged, and then all shards are read again."""
    try:
        content = json_input.read_json_object(memory, "")
    except InputError:
        return {}
    return {machine: files for machine, files in content.items() if isinstance(files, dict)}


def is_known(known: Known, machine: str, path: Path, sha256: str) -> bool:
    return known.get(machine, {}).get(str(path.absolute())) == state_of(path, sha256)


def write_known(memory: Path, known: Known, found: Known) -> None:
    """Add what machines found. Raises OSError, or InputError if the disk is full."""
    content = {machine: {**known.get(machine, {}), **found.get(machine, {})} for machine in {**known, **found}}
    memory.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_file(memory, json.dumps(content, indent=1) + "\n")
