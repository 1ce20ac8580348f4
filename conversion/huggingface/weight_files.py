"""Which files of a Hugging Face directory hold the model's tensors, and what to do where there are none to convert."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.downloads import check_download, read_model_json

from .directory import INDEX, SINGLE

PICKLE_SUFFIX = ".bin"
PICKLE_SINGLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class WeightFiles:
    """`promised` is what the index says: tensor → file name. It is empty for a model in one file without an index."""

    files: tuple[Path, ...]
    index: Path
    promised: Mapping[str, str]


def find_weight_files(directory: Path, *, allow_pickle: bool) -> WeightFiles:
    """The safetensors files if there are any, else pickles if they are allowed.

    Raises InputError that names the file at fault: nothing to convert, two models in one directory, an index that
    points elsewhere, or a file that is not what was to be downloaded.
    """
    kinds = [(SINGLE, INDEX)] + [(PICKLE_SINGLE, PICKLE_INDEX)] * allow_pickle
    for single, index in kinds:
        if os.path.lexists(directory / index):
            found = _listed(directory / index, directory / single)
        elif os.path.lexists(directory / single):
            found = WeightFiles((directory / single,), directory / index, {})
        else:
            continue
        for file in found.files:
            check_download(file)
        return found
    raise InputError(_why_none(directory))


def _listed(index: Path, single: Path) -> WeightFiles:
    promised = read_model_json(index).get("weight_map")
    if not isinstance(promised, dict) or not promised:
        raise InputError(f"{index} has no weight_map; download the model again")
    for name in promised.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(single.suffix):
            raise InputError(
                f"{index} names {name!r} as a file of the model; only {single.suffix} files beside it are read"
            )
    if single.exists() and single.name not in promised.values():
        raise InputError(
            f"{single.parent} holds two models, {single.name} and the files that {index.name} lists; move one away"
        )
    files = tuple(index.with_name(name) for name in dict.fromkeys(promised.values()))
    return WeightFiles(files, index, promised)


def _why_none(directory: Path) -> str:
    shard = next(directory.glob("model-*-of-*.safetensors"), None)
    if shard:
        return f"{directory} holds {shard.name}, but no {INDEX} that lists the files; download the model again"
    if (directory / PICKLE_SINGLE).exists() or (directory / PICKLE_INDEX).exists():
        return (
            f"{directory} holds its weights as pickles ({PICKLE_SINGLE}), which can run code when they are loaded; "
            "get the model as safetensors, or pass --allow-pickle to read the tensors in them and refuse all else"
        )
    foreign = [path for ending in ("*.bin", "*.pt", "*.pth") for path in sorted(directory.glob(ending))]
    if foreign:
        return (
            f"{foreign[0]} is a pickle, which can run code when it is loaded, and not in Hugging Face's layout; get "
            f"the model as {SINGLE}"
        )
    foreign = [path for ending in ("*.safetensors", "*.gguf") for path in sorted(directory.glob(ending))]
    if foreign:
        return f"{foreign[0]} is not in Hugging Face's layout; get the model as {SINGLE}"
    return f"{directory / SINGLE} does not exist; download the model again"
