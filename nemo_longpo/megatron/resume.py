"""Where a run's weights and architecture come from."""

from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
from megatron.core.transformer import TransformerConfig
from nemo.lightning import AutoResume, io

from nemo_longpo.errors import InputError

from .model import ArchitectureFromCheckpoint, LongPOModel


def load_architecture(checkpoint: Path) -> TransformerConfig:
    """The model config that a NeMo checkpoint was written with.

    Raises:
        InputError: no such directory, or not a NeMo checkpoint.
    """
    context = checkpoint / "context"
    if not (context / "io.json").is_file():
        raise InputError(
            f"{checkpoint} is not a NeMo checkpoint (no context/io.json); "
            "make one with `longpo convert import --model HF_DIR --output NEMO_DIR`."
        )
    return io.load_context(context, subpath="model.config")


@dataclass(kw_only=True)
class LongPOResume(AutoResume):
    """NeMo's resume, which also gives a model without a config the architecture of `restore_config.path`."""

    def setup(self, trainer: pl.Trainer, model: LongPOModel) -> None:
        if isinstance(model.config, ArchitectureFromCheckpoint):
            if self.restore_config is None or not self.restore_config.path:
                raise InputError("resume.restore_config.path is not set; give the imported checkpoint to start from.")
            model.adopt_architecture(load_architecture(Path(self.restore_config.path)))
        super().setup(trainer, model)
