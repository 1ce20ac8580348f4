"""Damage that is found without a record: small files that are missing, empty or cut."""

from pathlib import Path

import pytest
import torch

from nemo_longpo.checkpoints.completeness import require_complete, require_sizes
from nemo_longpo.errors import InputError

FILES = ("context/io.json", "context/model.yaml", "weights/.metadata", "weights/metadata.json", "weights/common.pt")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    torch.save({"global_step": 3, "state": torch.arange(100)}, tmp_path / "weights" / "common.pt")
    return tmp_path


def test_complete_checkpoint_passes(checkpoint):
    require_complete(checkpoint)


@pytest.mark.parametrize("name", FILES)
def test_missing_or_empty_file_is_named(checkpoint, name):
    (checkpoint / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"{name} is empty; "):
        require_complete(checkpoint)
    (checkpoint / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing, so the checkpoint is incomplete; "):
        require_complete(checkpoint)
    (checkpoint / name).mkdir()
    with pytest.raises(InputError, match=f"{name} is missing, so the checkpoint is incomplete; "):
        require_complete(checkpoint)


def test_damaged_archive_is_named(checkpoint):
    path = checkpoint / "weights" / "common.pt"
    content = path.read_bytes()
    for kept in range(1, len(content), 97):
        path.write_bytes(content[:kept])
        with pytest.raises(InputError, match=r"common\.pt is damaged: "):
            require_complete(checkpoint)
    changed = content.replace(torch.arange(100).numpy().tobytes(), torch.arange(1, 101).numpy().tobytes())
    assert changed != content
    path.write_bytes(changed)
    with pytest.raises(InputError, match=r"common\.pt is damaged in "):
        require_complete(checkpoint)


@pytest.mark.slow
def test_changed_archive_bytes_are_refused(checkpoint):
    """A changed byte can make a member look encrypted or compressed, change its name, or move it outside the file."""
    path = checkpoint / "weights" / "common.pt"
    content, refused = path.read_bytes(), 0
    listing = content.index(b"PK\x01\x02")
    for place in range(listing, len(content)):
        for value in {1, 8, 14, 99, 255} - {content[place]}:
            path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            try:
                require_complete(checkpoint)
            except InputError as error:
                assert "common.pt is damaged" in str(error)  # noqa: PT017  # most changes are refused, not all
                refused += 1
    assert refused > 1000


def test_short_files_are_named(checkpoint):
    weights = checkpoint / "weights"
    (weights / "__0_0.distcp").write_bytes(bytes(10))
    require_sizes(weights, {"__0_0.distcp": 10})
    with pytest.raises(InputError, match=r"__0_0\.distcp is truncated: 10 bytes of at least 11; "):
        require_sizes(weights, {"__0_0.distcp": 11})
    with pytest.raises(InputError, match=r"__1_0\.distcp is missing from the checkpoint; "):
        require_sizes(weights, {"__0_0.distcp": 10, "__1_0.distcp": 1})
    (weights / "__1_0.distcp").mkdir()
    with pytest.raises(InputError, match=r"__1_0\.distcp is missing from the checkpoint; "):
        require_sizes(weights, {"__1_0.distcp": 1})
