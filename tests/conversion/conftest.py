"""Random models of odd shapes, and their imports (made once: importing NeMo takes ten seconds)."""

from pathlib import Path

import pytest
from support.conversion_cases import CASES
from support.tiny_models import save_tiny

from nemo_longpo.checkpoints.integrity import RECORD
from nemo_longpo.conversion.importer import import_checkpoint


@pytest.fixture(scope="session")
def hf_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hugging Face directories by case."""
    root = tmp_path_factory.mktemp("hf")
    return {case: save_tiny(root / case, **arguments) for case, arguments in CASES.items()}


@pytest.fixture(scope="session")
def nemo_checkpoints(hf_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same models imported without any option; without the record of their files, so that copies may be changed."""
    root = tmp_path_factory.mktemp("nemo")
    checkpoints = {case: import_checkpoint(path, root / case) for case, path in hf_models.items()}
    for checkpoint in checkpoints.values():
        (checkpoint / RECORD).unlink()
    return checkpoints
