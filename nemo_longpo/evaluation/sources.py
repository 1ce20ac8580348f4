"""Where the files of the benchmarks come from (sources.yaml), fetching them, and telling when one has changed.

What was fetched stands in DATA/manifest.json with its hash, and is held to it from then on. A file that somebody has
put there is used as it is.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from nemo_longpo import atomic, typed_fields, yaml_input
from nemo_longpo.errors import InputError
from nemo_longpo.terminal import count, note

from . import data_files, places
from .benchmarks import Benchmark

MANIFEST = "manifest.json"
PACKAGES = ("lm_eval", "datasets", "rouge_score", "nltk", "wonderwords")
"""What `longpo eval` imports at some time and the data tools do not, from lm-evaluation-harness on."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A published file, as an entry of sources.yaml: `places` are where to fetch it, tried in order."""

    what: str
    places: typed_fields.Names
    licence: str
    page: str
    columns: typed_fields.Names
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What the manifest says of a file: its hash, and the place it came from."""

    sha256: str
    place: str


@dataclass(frozen=True)
class _Manifest:
    files: dict[str, Fetched] = field(default_factory=dict)


@cache
def known() -> dict[str, Source]:
    """Return sources.yaml: name under the data directory -> source."""
    path = Path(__file__).with_name("sources.yaml")
    content = yaml_input.read_yaml_mapping(path, "install nemo_longpo again")
    return {
        name: typed_fields.build(Source, entry, f"{path}: {name}", "install nemo_longpo again", exact=False)
        for name, entry in content.items()
    }


def require_packages() -> None:
    """Raise InputError if a package is not installed that some benchmark would ask for, hours later perhaps."""
    if missing := places.missing(PACKAGES):
        raise InputError(
            f"`longpo eval` needs {', '.join(missing)}, not installed here: pip install 'nemo_longpo[eval]', or in a "
            "checkout `make env`, `make vllm-env` or `make eval-env`"
        )


def names_of(benchmarks: Iterable[Benchmark]) -> list[str]:
    """The published files that benchmarks read, each once. Files of one's own are none of them."""
    read = dict.fromkeys(file for benchmark in benchmarks for file in benchmark.files)
    return [name for file in read for name in known() if name == file or name.startswith(f"{file}/")]


def require(benchmarks: Iterable[Benchmark], data: Path | None, may_lack: Sequence[str] = ()) -> None:
    """Raise InputError if a file is missing, with its source, or if one is no longer what was fetched.

    Files that `may_lack` names are those that a benchmark asks for itself, when it turns out to need them.
    """
    names = [name for name in names_of(benchmarks) if name not in may_lack or (data and _present(data, name))]
    if not names:
        return
    if data is None:
        raise InputError(
            f"these benchmarks read {', '.join(names)}; say where they are with --data DIR, and fetch what is missing "
            "there with --fetch"
        )
    if missing := [name for name in names if _present(data, name) is None]:
        these = "it" if len(missing) == 1 else "them"
        raise InputError(
            f"{data} lacks {'; '.join(_by_origin(missing))}; fetch {these} with --fetch, or put {these} there"
        )
    _check_unchanged(data, names)


def fetch(benchmarks: Iterable[Benchmark], data: Path | None) -> None:
    """Fetch what is missing into `data`, each file whole or not at all, with its hash in the manifest.

    Raises InputError if a file that is there has changed, if `data` cannot be written to, and, when all others are
    there, if some cannot be fetched.
    """
    if data is None:
        raise InputError("--fetch needs a directory for the files; name one with --data DIR")
    names = names_of(benchmarks)
    _check_unchanged(data, names)
    missing = [name for name in names if _present(data, name) is None]
    problems: list[str] = []
    with places.Fetcher() as fetcher:
        for number, name in enumerate(missing, 1):
            note(f"longpo eval: fetching {name} ({number} of {len(missing)}), {_described(name)}")
            try:
                _fetch_one(fetcher, name, data)
            except OSError as error:
                raise InputError(
                    f"{data / name} cannot be written ({error.strerror}); give --data another directory"
                ) from error
            except places.UnavailableError as error:
                problems.append(f"{name} ({error}; its page is {known()[name].page})")
    if problems:
        raise InputError(
            f"{count(len(problems), 'file')} could not be fetched: {'; '.join(problems)}; give the command again where "
            f"the network is, or put the files into {data} under these names"
        )


def hashes(data: Path, benchmarks: Iterable[Benchmark]) -> dict[str, str]:
    """SHA-256 of every published file that benchmarks read from `data`, for the record of a run."""
    paths = (_present(data, name) for name in names_of(benchmarks))
    return {path.relative_to(data).as_posix(): sha256_of(path) for path in paths if path is not None}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file; one that did not change in the meantime is read once per process."""
    about = path.stat()
    return _sha256(path, about.st_size, about.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _described(name: str) -> str:
    return f"{known()[name].what} ({known()[name].page}, {known()[name].licence})"


def _by_origin(names: Iterable[str]) -> list[str]:
    """Each page and licence with the files from there."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(f"({known()[name].page}, {known()[name].licence})", []).append(name)
    return [f"{', '.join(own)} {origin}" for origin, own in groups.items()]


def _present(data: Path, name: str) -> Path | None:
    """A split of a directory may also be there in another format."""
    path = data / name
    others = [path.with_suffix(suffix) for suffix in data_files.SUFFIXES] if "/" in name else []
    return next((file for file in (path, *others) if file.is_file()), None)


def _manifest(data: Path) -> _Manifest:
    path = data / MANIFEST
    advice = "remove it to use the files as they are"
    return typed_fields.read_versioned(path, _Manifest, 1, advice) if path.exists() else _Manifest()


def _check_unchanged(data: Path, names: Iterable[str]) -> None:
    recorded = _manifest(data).files
    for name in names:
        path = data / name
        if name in recorded and path.is_file() and sha256_of(path) != recorded[name].sha256:
            raise InputError(
                f"{path} is not what was fetched (SHA-256 {sha256_of(path)}, recorded {recorded[name].sha256}); "
                f"remove it and fetch it again with --fetch, or take it out of "
                f"{data / MANIFEST} if the change is meant"
            )


def _fetch_one(fetcher: places.Fetcher, name: str, data: Path) -> None:
    source, reasons = known()[name], []
    for place in source.places:
        try:
            with atomic.new_file(data / name) as new:
                fetcher.get(place, new)
                found = _digest(new)
                if source.sha256 not in (None, found):
                    raise places.UnavailableError(
                        f"{place} holds another file: SHA-256 {found}, expected {source.sha256}"
                    )
        except places.UnavailableError as error:
            reasons.append(str(error))
            continue
        files = _manifest(data).files | {name: Fetched(sha256=found, place=place)}
        content: Mapping[str, object] = {"version": 1} | asdict(_Manifest(files))
        atomic.write_file(data / MANIFEST, json.dumps(content, indent=2, sort_keys=True) + "\n")
        return
    raise places.UnavailableError("; ".join(reasons))
