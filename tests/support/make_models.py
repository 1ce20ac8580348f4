"""Write the models of the vLLM tests: python make_models.py DIRECTORY, with the transformers that training uses."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

from support.exported_models import make_exported_models  # noqa: E402  # found through the lines above
from support.small_corpus import save_stopping_model  # noqa: E402

# vLLM's attention on CPU wants heads of at least 32 channels.
SHAPE = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}


def make_models(directory: Path) -> None:
    for family in ("mistral", "qwen2"):
        save_stopping_model(directory / family, family, **SHAPE)
    make_exported_models(directory / "exported", **SHAPE)


if __name__ == "__main__":
    make_models(Path(sys.argv[1]))
