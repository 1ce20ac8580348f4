"""Files as the library makes them, without the library holding all of their tensors."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_longpo.conversion.huggingface.tensor_files import SafetensorsReader, SafetensorsWriter
from nemo_longpo.errors import InputError

TENSORS = {
    "matrix": torch.randn(3, 5),
    "half": torch.randn(7).half(),
    "brain": torch.randn(2, 1, 3).bfloat16(),
    "scalar": torch.tensor(2.5),
    "nothing": torch.empty(0, 4),
    "ünïcode": torch.randn(1),
}


@pytest.fixture
def file(tmp_path):
    save_file(TENSORS, tmp_path / "library.safetensors", metadata={"format": "pt"})
    return tmp_path / "library.safetensors"


def test_every_tensor_is_read(file):
    reader = SafetensorsReader(file)
    assert set(reader.names()) == set(TENSORS)
    for name, tensor in TENSORS.items():
        found = reader.read(name)
        assert torch.equal(found, tensor)
        assert (found.dtype, found.shape, reader.shape(name)) == (tensor.dtype, tensor.shape, tuple(tensor.shape))
        assert found.untyped_storage().nbytes() == tensor.nbytes
    assert {name: reader.dtype(name) for name in ("matrix", "half", "brain")} == {
        "matrix": "F32",
        "half": "F16",
        "brain": "BF16",
    }


def test_file_that_shrinks_after_opening(file):
    reader = SafetensorsReader(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"library\.safetensors has become shorter: tensor \w+ is not all there"):
        [reader.read(name) for name in TENSORS]


@pytest.mark.parametrize("last", ["z", "zz"])
@pytest.mark.parametrize("backwards", [False, True])
def test_bytes_do_not_depend_on_tensor_order(backwards, last, tmp_path):
    """Headers are padded: one of two lengths that differ by one needs it."""
    tensors = TENSORS | {last: torch.ones(2)}
    save_file(tensors, tmp_path / "library.safetensors", metadata={"format": "pt"})
    places = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    writer = SafetensorsWriter(tmp_path / "ours.safetensors", places)
    for name in sorted(tensors, reverse=backwards):
        writer.write(name, tensors[name])
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "library.safetensors").read_bytes()


def test_tensors_are_converted_and_row_major(tmp_path):
    writer = SafetensorsWriter(tmp_path / "ours.safetensors", {"t": (torch.bfloat16, (5, 3))})
    writer.write("t", TENSORS["matrix"].T)
    assert torch.equal(load_file(tmp_path / "ours.safetensors")["t"], TENSORS["matrix"].T.bfloat16())
