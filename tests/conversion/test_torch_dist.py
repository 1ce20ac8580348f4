import math
import pickle
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed
from support.adapter_checkpoints import whole
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from nemo_longpo.conversion.torch_dist import Chunk, DistCheckpoint, write_checkpoint
from nemo_longpo.errors import InputError

SHAPE = (4, 6, 5)


def chunk(key, global_shape, offsets, sizes, dtype, load):
    return Chunk(key=key, global_shape=global_shape, offsets=offsets, sizes=sizes, dtype=dtype, load=load)


@pytest.fixture
def checkpoint(tmp_path):
    """A tensor of 4 layers written layer by layer, each from the middle of a larger storage."""
    values = torch.arange(math.prod(SHAPE), dtype=torch.float32).reshape(SHAPE)
    chunks = [
        chunk("stack", SHAPE, (layer, 0, 0), (1, *SHAPE[1:]), torch.float32, lambda layer=layer: values[layer])
        for layer in range(SHAPE[0])
    ]
    write_checkpoint(tmp_path / "weights", chunks, {"state/shard_0_1": [1, 2]}, workers=2)
    return values, tmp_path / "weights"


def test_any_box_can_be_read(checkpoint):
    values, directory = checkpoint
    stored = DistCheckpoint(directory)
    assert stored.tensor_names() == ["stack"]
    assert stored.shape("stack") == SHAPE
    assert torch.equal(stored.read("stack", (1, 2, 0), (2, 3, 5)), values[1:3, 2:5])


def test_views_are_written_without_their_storage(tmp_path):
    storage = torch.zeros(1_000_000)
    part = whole("part", storage[:10])
    write_checkpoint(tmp_path / "weights", [part], {})
    assert (tmp_path / "weights" / "__0_0.distcp").stat().st_size < 10_000


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_holds_one_tensor(workers, tmp_path):
    """Each chunk is asked for when it is its turn, and gone when its worker asks for the next."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()

    def load() -> torch.Tensor:
        assert len(alive) < workers
        tensor = torch.zeros(3)
        alive.add(tensor)
        return tensor

    chunks = [chunk(f"t{i}", (3,), (0,), (3,), torch.float32, load) for i in range(9)]
    write_checkpoint(tmp_path / "weights", chunks, {}, workers=workers)
    assert len(DistCheckpoint(tmp_path / "weights").tensor_names()) == 9


def test_part_that_was_never_written(tmp_path):
    one = chunk("stack", SHAPE, (0, 0, 0), (1, *SHAPE[1:]), torch.float32, lambda: torch.zeros(SHAPE[1:]))
    write_checkpoint(tmp_path / "weights", [one], {})
    with pytest.raises(InputError, match="lacks a part of stack"):
        DistCheckpoint(tmp_path / "weights").read("stack", (0, 0, 0), SHAPE)


def test_parts_are_put_together(tmp_path):
    """As several tensor-parallel ranks leave them: here quarters of one matrix."""
    values = torch.randn(4, 6)
    quarters = [
        chunk("m", (4, 6), (row, column), (2, 3), values.dtype, values[row : row + 2, column : column + 3].clone)
        for row in (0, 2)
        for column in (0, 3)
    ]
    write_checkpoint(tmp_path / "weights", quarters, {})
    assert torch.equal(DistCheckpoint(tmp_path / "weights").read("m", (1, 1), (3, 4)), values[1:4, 1:5])


def spoil_bytes(metadata: Metadata, directory: Path) -> None:
    place = metadata.storage_data[MetadataIndex("stack", (2, 0, 0))]
    with (directory / place.relative_path).open("r+b") as file:
        file.seek(place.offset)
        file.write(bytes(place.length))


def replace_part(metadata: Metadata, directory: Path, part: object) -> None:
    place = metadata.storage_data[MetadataIndex("stack", (2, 0, 0))]
    torch.save(part, directory / "other")
    place.relative_path, place.offset, place.length = "other", 0, (directory / "other").stat().st_size


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (spoil_bytes, r"distcp: the part of stack at byte \d+ is damaged; copy it again"),
        (partial(replace_part, part=torch.ones(1, *SHAPE[1:]).half()), "other: the part of stack at byte 0 is not the"),
        (partial(replace_part, part=torch.ones(SHAPE[1:])), "other: the part of stack at byte 0 is not the tensor"),
        (partial(replace_part, part=[1]), "other: the part of stack at byte 0 is not the tensor that .metadata promis"),
        (
            lambda metadata, directory: metadata.storage_data.pop(MetadataIndex("stack", (2, 0, 0))),
            ".metadata does not say where stack lies",
        ),
    ],
)
def test_damaged_part(damage, message, checkpoint):
    _, directory = checkpoint
    metadata = pickle.loads((directory / ".metadata").read_bytes())
    damage(metadata, directory)
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))
    stored = DistCheckpoint(directory)
    assert stored.read("stack", (0, 0, 0), (2, *SHAPE[1:])).shape == (2, *SHAPE[1:])
    with pytest.raises(InputError, match=message):
        stored.read("stack", (0, 0, 0), SHAPE)


@pytest.mark.parametrize("rank", [0, 1])
def test_odd_vocabulary_loads_on_two_ranks(checkpoint, rank):
    """Megatron pads to 4 rows a rank; it zeroes the row that the checkpoint does not have."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor

    directory = checkpoint[1].parent / "odd"
    rows = torch.randn(7, 3)
    write_checkpoint(directory, [whole("embedding", rows)], {})
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        local = ShardedTensor.from_rank_offsets("embedding", torch.ones(4, 3), (0, rank, 2), allow_shape_mismatch=True)
        loaded = dist_checkpointing.load({"embedding": local}, str(directory), validate_access_integrity=False)
    finally:
        torch.distributed.destroy_process_group()
    padded = torch.cat([rows, torch.zeros(1, 3)])
    assert torch.equal(loaded["embedding"], padded[4 * rank : 4 * rank + 4])
