"""Small runs through Megatron-Bridge: a tiny model, shards for it, and the overrides that name them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from support import tiny_models as tiny, training_pairs

from nemo_longpo.checkpoints import run_directory


@dataclass(frozen=True)
class Inputs:
    """A Hugging Face directory, and shards of four uneven pairs for its tokenizer."""

    model: Path
    shards: Path

    @classmethod
    def write(cls, folder: Path, family: str, **settings: Any) -> "Inputs":
        model = tiny.save_tiny(folder / "model", family, **settings)
        vocabulary = tiny.tiny_model(family, tiny.tiny_tokenizer(tiny.DEFAULT_STYLE[family])).config.vocab_size
        return cls(model, training_pairs.write_tiny_shards(folder / "shards", records_for(vocabulary), family))

    def overrides(self, *more: str) -> list[str]:
        return [f"checkpoint.pretrained_checkpoint={self.model}", f"dataset.paths=[{self.shards}]", *more]

    def train(self, log_dir: Path, *more: str) -> list[dict[str, Any]]:
        """Train in this process; returns the lines of metrics."""
        from nemo_longpo.bridge import train

        train.train(train.build("tiny_longpo", self.overrides(*more), str(log_dir)))
        return run_directory.read_metrics(log_dir)


def records_for(vocabulary: int, batches: int = 1) -> list[Any]:
    """Four uneven pairs for each batch of `tiny_longpo`."""
    pairs = training_pairs.uneven_records(vocabulary)
    return [replace(pair, doc_id=f"{pair.doc_id}-{batch}") for batch in range(batches) for pair in pairs]


def checkpoints_of(log_dir: Path) -> list[Path]:
    return run_directory.find_checkpoints(log_dir)
