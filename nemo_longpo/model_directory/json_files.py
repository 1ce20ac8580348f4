"""The JSON files of a model directory."""

import codecs
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.json_input import read_json_object

from .downloads import check_download

_ADVICE = "download it again, or correct it"


def read_model_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises InputError if it is not there, holds something else, or is what a failed download
    left; also for a byte order mark, which this project reads elsewhere, but transformers does not."""
    check_download(path)
    content = read_json_object(path, _ADVICE)
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            raise InputError(
                f"{path} begins with a byte order mark, which transformers cannot read; save it as UTF-8 without one"
            )
    return content
