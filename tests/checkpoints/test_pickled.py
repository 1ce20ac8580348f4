"""Pickles are checked against the allowed names and their length before Python reads them."""

import collections
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter, save
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
)

from nemo_longpo.checkpoints.pickled import check_claims, check_names, read_metadata
from nemo_longpo.errors import InputError


class Runs:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


class Fetches:
    """Pickled as `getattr(owner, name)`, as some versions of Python do with members of enumerations."""

    def __init__(self, owner: object, name: str):
        self.found = owner, name

    def __reduce__(self):
        return getattr, self.found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Metadata({}, planner_data=Runs(), storage_data={}), "has no place in it"),
        (
            Metadata({}, planner_data=torch.nn.Linear, storage_data={}),
            r"torch\.nn\.modules\.linear\.Linear has no place",
        ),
        (Metadata({}, planner_data=Fetches(Metadata, "__init__"), storage_data={}), "getattr of .* has no place in it"),
        (Metadata({}, planner_data=Fetches(_MEM_FORMAT_ENCODING, "mro"), storage_data={}), "damaged"),
        (Metadata({}), "does not say where the tensors lie"),
        ({"state": 1}, "does not say where the tensors lie"),
    ],
)
def test_anything_else_is_refused(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=message):
        read_metadata(tmp_path)
    assert not Path("ran").exists()


def test_enumerations_of_every_python_are_read(tmp_path):
    member = _MEM_FORMAT_ENCODING.TORCH_CHANNELS_LAST
    for number, pickled in enumerate((member, Fetches(_MEM_FORMAT_ENCODING, member.name))):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / ".metadata").write_bytes(pickle.dumps(Metadata({}, planner_data=pickled, storage_data={})))
        assert read_metadata(directory).planner_data is member


@pytest.mark.slow
def test_megatrons_metadata_is_read_without_megatron(tmp_path):
    """Megatron's metadata names two classes of Megatron."""
    from megatron.core.dist_checkpointing.strategies.torch import MCoreMetadata, MCoreSavePlan

    written = MCoreMetadata({}, storage_data={}, mcore_data={})
    written.all_local_plans = [MCoreSavePlan([], mcore_data={})]
    (tmp_path / ".metadata").write_bytes(pickle.dumps(written))
    code = (
        "import pathlib, sys; from nemo_longpo.checkpoints.pickled import read_metadata; "
        "read_metadata(pathlib.Path(sys.argv[1])); assert 'megatron' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)


@pytest.fixture
def weights(tmp_path) -> Path:
    """A distributed checkpoint as PyTorch writes it: a tensor of two parts, and an object."""
    tensors = {"weight": torch.ones(3, 4), "object": {"a": 1}}
    save(tensors, storage_writer=FileSystemWriter(tmp_path / "weights", thread_count=2), no_dist=True)
    return tmp_path / "weights"


def edit(weights: Path, change: Callable[[Metadata], object]) -> None:
    path = weights / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def place(metadata: Metadata, **changes: object) -> None:
    index = next(index for index in metadata.storage_data if index.fqn == "weight")
    metadata.storage_data[index] = dataclasses.replace(metadata.storage_data[index], **changes)


def resize(metadata: Metadata, tensor: tuple[int, ...], part: tuple[int, ...], offsets: tuple[int, ...]) -> None:
    """The index gives the start of the part too."""
    entry = metadata.state_dict_metadata["weight"]
    entry.size = torch.Size(tensor)
    entry.chunks = [ChunkStorageMetadata(torch.Size(offsets), torch.Size(part))]
    old = next(index for index in metadata.storage_data if index.fqn == "weight")
    metadata.storage_data[MetadataIndex("weight", torch.Size(offsets))] = metadata.storage_data.pop(old)


UNFIT = {
    "elsewhere": (lambda metadata: place(metadata, relative_path="../secret"), "'../secret' is no file's name"),
    "anywhere": (lambda metadata: place(metadata, relative_path="/etc/passwd"), "'/etc/passwd' is no file's name"),
    "nowhere": (lambda metadata: place(metadata, relative_path=".."), "is no file's name"),
    "a number": (lambda metadata: place(metadata, relative_path=3), "3 is no file's name"),
    "before": (lambda metadata: place(metadata, offset=-1), "the place of weight is negative"),
    "text": (lambda metadata: place(metadata, length="3"), "the place of weight is no number"),
    "packed": (lambda metadata: place(metadata, transform_descriptors=["zstd"]), "weight is compressed"),
    "huge": (lambda metadata: resize(metadata, (10**12,), (10**12,), (0,)), "weight has no room where it lies"),
    "outside": (lambda metadata: resize(metadata, (4, 4), (3, 4), (2, 0)), "a part of weight lies outside"),
    "flat": (lambda metadata: resize(metadata, (3, 4), (12,), (0,)), "a part of weight lies outside"),
    "no tensor": (lambda metadata: metadata.state_dict_metadata.update(weight=3), "weight is no tensor"),
    "no part": (
        lambda metadata: metadata.state_dict_metadata["weight"].chunks.append(3),
        "weight has a part that is none",
    ),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_contradictions_are_refused(fault, weights):
    change, message = UNFIT[fault]
    read_metadata(weights)
    edit(weights, change)
    with pytest.raises(InputError, match=message):
        read_metadata(weights)


LIMITED = """
import pathlib, random, resource, sys, time
from nemo_longpo.checkpoints.pickled import read_metadata
from nemo_longpo.errors import InputError
weights, cases = pathlib.Path(sys.argv[1]), int(sys.argv[2])
content = (weights / ".metadata").read_bytes()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))
claims = [code + b"\\xff" * 4 + bytes(4) for code in (b"\\x8e", b"\\x96", b"r", b"X", b"\\x95")]
generator = random.Random(0)
def mutant(number):
    changed = bytearray(content)
    place = generator.randrange(len(content))
    if number % 10 == 0:
        claim = generator.choice(claims)
        changed[place : place + len(claim)] = claim
    else:
        changed[place] = generator.randrange(256)
    return bytes(changed)
outcomes = {"read": 0, "refused": 0}
for number in range(cases):
    (weights / ".metadata").write_bytes(mutant(number))
    start = time.process_time()
    try:
        read_metadata(weights)
        outcomes["read"] += 1
    except InputError:
        outcomes["refused"] += 1
    assert time.process_time() - start < 1
print(*outcomes.values())
"""


@pytest.mark.slow
def test_changed_bytes_are_refused_cheaply(weights):
    """One byte can claim gigabytes, and Python allocates them before it reads on."""
    child = subprocess.run(
        [sys.executable, "-c", LIMITED, weights, "1500"], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    read, refused = map(int, child.stdout.split())
    assert read + refused == 1500
    assert refused > 1000


def test_false_sizes_are_refused_before_allocation(weights):
    content = pickle.dumps(Metadata({}, storage_data={}), protocol=4)
    for claim in (
        b"\x8e" + b"\xff" * 7 + b"\0",
        b"\x96" + b"\xff" * 7 + b"\0",
        b"r\xff\xff\xff\xff",
        b"\x95" + b"\xff" * 8,
    ):
        (weights / ".metadata").write_bytes(content[:2] + claim + content[2:])
        with pytest.raises(InputError, match=r"\.metadata is damaged \(at byte [02] or after: "):
            read_metadata(weights)


ALLOWED = {("collections", "OrderedDict"), ("builtins", "set"), ("os", "eval")}


def length(size: int, width: int) -> bytes:
    return size.to_bytes(width, "little")


@pytest.mark.parametrize("protocol", range(3, 6))
def test_listed_names_pass(protocol):
    value = {"a": [1, -1, 2.5, "é" * 300, b"x" * 300, 10**400, None, True], "b": (set(), collections.OrderedDict(a=1))}
    check_names(pickle.dumps(value, protocol), ALLOWED, "it", "do")


@pytest.mark.parametrize("name", ["collections\nCounter", "builtins\neval", "os\nOrderedDict"])
def test_names_are_listed_with_modules(name):
    for content in (
        b"c" + name.encode() + b"\n.",
        b"\x80\x04" + b"".join(b"\x8c" + length(len(part), 1) + part.encode() for part in name.split("\n")) + b"\x93.",
    ):
        with pytest.raises(InputError, match=f"it asks for {name.replace(chr(10), '.')}, .* nothing of it was run; do"):
            check_names(content, ALLOWED, "it", "do")


def test_only_torch_files_refer_to_storages():
    content = b"\x80\x02X" + length(1, 4) + b"0Q."
    check_names(content, ALLOWED, "it", "do", storages=True)
    with pytest.raises(InputError, match="it refers to something outside"):
        check_names(content, ALLOWED, "it", "do")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"X" + length(4, 4) + b"abc.", "pickle exhausted before seeing STOP"),
        (b"X" + length(5, 4) + b"abc.", "byte 0 or after: expected 5 bytes in a unicodestring4, but only 4 remain"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\0.", "byte 0 or after: expected"),
        (b"\x95" + length(2, 8) + b".", "byte 0 or after: a frame longer than the file"),
        (b"Nr" + length(8, 4) + b".", "byte 1 or after: a place in memory beyond"),
        (b"cos\nsystem", "byte 0 or after: no newline found"),
        (b"N", "byte 0 or after: pickle exhausted"),
        (b"", "byte 0 or after: pickle exhausted"),
        (b"ios\nsystem\n.", "byte 0 or after: INST is no instruction"),
        (b"N2.", "byte 1 or after: DUP is no instruction"),
        (b"\x82\x01.", "byte 0 or after: EXT1 is no instruction"),
        (b"I1\n.", "byte 0 or after: INT is no instruction"),
    ],
)
def test_unsafe_pickles_are_refused(content, reason):
    for check in (lambda: check_claims(content, "it"), lambda: check_names(content, ALLOWED, "it", "do")):
        with pytest.raises(InputError, match=reason):
            check()


@pytest.mark.parametrize("content", [b"X" + length(3, 4) + b"abc.", b"\x95" + length(2, 8) + b"N.", b"Nr\0\0\0\0."])
def test_sizes_that_fit_pass(content):
    check_claims(content, "it")
    check_names(content, (), "it", "do")


def test_bytes_after_the_end_are_not_read():
    check_claims(b"N.\xff\xff", "it")
