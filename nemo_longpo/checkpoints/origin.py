"""Which Hugging Face weights an imported checkpoint was made of, under the name that shards have for them.

The note lies beside the parts of `context/` that training copies into its own checkpoints, so one whose weights were
trained does not have it.
"""

import json
from pathlib import Path

from nemo_longpo.json_input import read_json_object

FILE = "imported_weights.json"
_FIELD = "weights_sha256"


def write_origin(context: Path, weights_sha256: str) -> None:
    """`weights_sha256` as in `nemo_longpo.shards.fingerprint`."""
    (context / FILE).write_text(json.dumps({_FIELD: weights_sha256}) + "\n", encoding="utf-8")


def read_origin(checkpoint: Path) -> str | None:
    """None if the checkpoint does not say. Raises InputError for a damaged note."""
    path = checkpoint / "context" / FILE
    if not path.exists():
        return None
    found = read_json_object(path, "import the checkpoint again").get(_FIELD)
    return found if isinstance(found, str) else None
