"""Imports only go down: every project file is parsed, and each import is checked against the table below."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Folder in the repository -> package it installs as.
FOLDERS = {
    "nemo_longpo": "nemo_longpo",
    "recipes": "nemo_longpo.recipes",
    "conversion": "nemo_longpo.conversion",
    "data_tools": "nemo_longpo.data_tools",
}

PURE = {"nemo_longpo.objective", "nemo_longpo.logprobs"}
LAYOUTS = {"nemo_longpo.parallel", "nemo_longpo.attention"}
ENGINE = {"nemo_longpo.megatron", "nemo_longpo.backends"}
# What needs a trainer around Megatron-Core.
NEMO = "nemo_longpo.nemo"
BRIDGE = "nemo_longpo.bridge"
TRAINING = {
    "nemo_longpo.checkpoints",
    "nemo_longpo.recipe_table",
    "nemo_longpo.model_directory",
    "nemo_longpo.shards",
    "nemo_longpo.yaml_input",
}
TOOLS = {
    "nemo_longpo.conversion",
    "nemo_longpo.data_tools",
    "nemo_longpo.evaluation",
    "nemo_longpo.evolution",
    "nemo_longpo.recipes.demo",
    "nemo_longpo.doctor",
    "nemo_longpo.report",
}

# Unit -> the other units it may import, from the ground up; what is in OPEN_TO_ALL, every unit may.
MAY_IMPORT: dict[str, set[str]] = {
    "nemo_longpo": set(),
    "nemo_longpo.atomic": set(),
    "nemo_longpo.errors": set(),
    "nemo_longpo.json_input": set(),
    "nemo_longpo.live_status": set(),
    "nemo_longpo.moved_modules": set(),
    "nemo_longpo.placement": set(),
    "nemo_longpo.run_log": set(),
    "nemo_longpo.setting_names": set(),
    "nemo_longpo.steps": set(),
    "nemo_longpo.terminal": set(),
    "nemo_longpo.trainers": set(),
    "nemo_longpo.typed_fields": set(),
    "nemo_longpo.checkpoints": set(),
    # What the data tools, training and conversion all ask of a model directory before a library reads it.
    "nemo_longpo.model_directory": set(),
    "nemo_longpo.yaml_input": set(),
    # A bar of tqdm that moves a live status.
    "nemo_longpo.status_bar": set(),
    # What training keeps on a device, for any model.
    "nemo_longpo.activations": set(),
    # The same mathematics in another language, for one device.
    "nemo_longpo.logit_kernels": set(),
    **dict.fromkeys(PURE, PURE | {"nemo_longpo.logit_kernels"}),
    "nemo_longpo.shards": PURE | {"nemo_longpo.model_directory"},
    # What training and planning both count.
    "nemo_longpo.costs": {"nemo_longpo.checkpoints", "nemo_longpo.model_directory", "nemo_longpo.yaml_input"},
    "nemo_longpo.planning": {"nemo_longpo.costs", "nemo_longpo.planning.calibration"},
    # Runs the kernels that plans count with.
    "nemo_longpo.planning.calibration": PURE
    | {"nemo_longpo.attention", "nemo_longpo.costs", "nemo_longpo.planning", "nemo_longpo.logit_kernels"},
    **{unit: LAYOUTS | PURE | {"nemo_longpo.model_directory", "nemo_longpo.shards"} for unit in LAYOUTS},
    "nemo_longpo.backends": set(),
    "nemo_longpo.megatron": {
        "nemo_longpo.activations",
        "nemo_longpo.backends",
        "nemo_longpo.checkpoints",
        "nemo_longpo.model_directory",
        "nemo_longpo.shards",
        "nemo_longpo.costs",
    }
    | LAYOUTS
    | PURE,
    # Lengths and placements of the recipes of all trainers.
    "nemo_longpo.recipe_table": set(),
    NEMO: {"nemo_longpo.megatron"} | TRAINING | LAYOUTS | PURE,
    BRIDGE: {"nemo_longpo.costs", "nemo_longpo.megatron"} | TRAINING | LAYOUTS | PURE,
    "nemo_longpo.recipes": set(),
    # The demo is one round of `longpo evolve`.
    "nemo_longpo.recipes.demo": {
        "nemo_longpo.checkpoints",
        "nemo_longpo.evolution",
        "nemo_longpo.line_plot",
        "nemo_longpo.model_directory",
        "nemo_longpo.yaml_input",
    },
    "nemo_longpo.conversion": PURE
    | {
        "nemo_longpo.checkpoints",
        "nemo_longpo.costs",  # the sizes of a model
        "nemo_longpo.shards",  # the name that shards have for the weights that scored them
        "nemo_longpo.model_directory",
        "nemo_longpo.yaml_input",
        "nemo_longpo.conversion.comparison",
    },
    # Computes logits as training does.
    "nemo_longpo.conversion.comparison": {
        "nemo_longpo.conversion",
        "nemo_longpo.checkpoints",
        "nemo_longpo.model_directory",
        NEMO,
    }
    | ENGINE
    | LAYOUTS
    | PURE,
    "nemo_longpo.launching": set(),
    "nemo_longpo.data_tools": {
        "nemo_longpo.launching",
        "nemo_longpo.shards",
        "nemo_longpo.model_directory",
        "nemo_longpo.status_bar",
        "nemo_longpo.yaml_input",
    }
    | PURE,
    # Asks models through the engines of the data tools, and counts what that takes.
    "nemo_longpo.evaluation": {
        "nemo_longpo.costs",
        "nemo_longpo.data_tools",
        "nemo_longpo.line_plot",
        "nemo_longpo.model_directory",
        "nemo_longpo.shards",
        "nemo_longpo.status_bar",
        "nemo_longpo.yaml_input",
    },
    # Calls everything through the public commands; reads the settings of others to check a file before they start.
    "nemo_longpo.evolution": {
        "nemo_longpo.checkpoints",
        "nemo_longpo.costs",
        "nemo_longpo.data_tools",
        "nemo_longpo.evaluation",
        "nemo_longpo.launching",
        "nemo_longpo.model_directory",
        "nemo_longpo.planning",
        "nemo_longpo.yaml_input",
    },
    "nemo_longpo.doctor": set(),
    "nemo_longpo.line_plot": set(),
    # Reads what a run and an evaluation have written.
    "nemo_longpo.report": {
        "nemo_longpo.checkpoints",
        "nemo_longpo.data_tools",
        "nemo_longpo.evaluation",
        "nemo_longpo.line_plot",
    },
    "nemo_longpo.cli": TOOLS | {"nemo_longpo.planning"},
}
OPEN_TO_ALL = {
    "nemo_longpo",
    "nemo_longpo.atomic",
    "nemo_longpo.errors",
    "nemo_longpo.json_input",
    "nemo_longpo.live_status",
    "nemo_longpo.moved_modules",
    "nemo_longpo.placement",
    "nemo_longpo.run_log",
    "nemo_longpo.setting_names",
    "nemo_longpo.steps",
    "nemo_longpo.terminal",
    "nemo_longpo.trainers",
    "nemo_longpo.typed_fields",
}

TRAINER = {"nemo", "nemo_run", "megatron", "lightning", "pytorch_lightning", "transformer_engine", "modelopt", "apex"}
# Starts processes and knows nothing of training; reached from one file only, inside a function.
LAUNCHER, LAUNCHER_FILE = "nemo_run", "nemo_longpo/launching/executors.py"
MAY_IMPORT_TRAINER = ENGINE | {
    NEMO,
    BRIDGE,
    "nemo_longpo.conversion",
    "nemo_longpo.conversion.comparison",
}
# The rooms of data_tools from the ground up: a room imports from lower floors alone.
DATA_FLOORS = (
    {"chat", "quality", "readers", "inspection"},
    {"runner"},
    {"engines", "corpus", "published"},
    {"stages"},
    {"pipeline"},
)
# Names of every layer for type checkers, which are imported when they are used; tests/test_api.py holds it to that.
PUBLIC_NAMES = "nemo_longpo/__init__.py"
PARALLEL_STATE = ("megatron.core.parallel_state", "megatron.core.mpu")  # one module under two names
PARALLEL_STATE_READER = "nemo_longpo/megatron/topology.py"


def module_name(file: Path) -> str:
    """Return the dotted name of a project file, e.g. conversion/cli.py -> nemo_longpo.conversion.cli."""
    folder, *rest = file.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS.get(folder, folder), *rest]).removesuffix(".__init__")


def unit_of(module: str) -> str | None:
    """Return the longest name of the table that `module` is or is in; the root package is only itself."""
    fitting = [unit for unit in MAY_IMPORT if module == unit or module.startswith(f"{unit}.")]
    unit = max(fitting, key=len, default=None)
    return None if unit == "nemo_longpo" and module.split(".")[1:] not in ([], ["__version__"]) else unit


@cache
def nodes_of(file: Path) -> list[ast.AST]:
    """Return the module, then every node in it."""
    return list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))


def called(call: ast.Call) -> str:
    """Return the called name as far as it is known: `os.replace` of os.replace(…), `.group` of f().group(…)."""
    match call.func:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            return f"{owner}.{name}"
        case ast.Attribute(attr=name):
            return f".{name}"
    return ""


@cache
def imported_names(file: Path, at_the_top: bool = False) -> list[tuple[int, str]]:
    """Return line and dotted name of all imports of `file`, including those in functions unless `at_the_top`."""
    module = module_name(file)
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    found: list[tuple[int, str]] = []
    nodes = nodes_of(file)
    for node in nodes[0].body if at_the_top else nodes:
        match node:
            case ast.Import(names=names):
                found += [(node.lineno, alias.name) for alias in names]
            case ast.ImportFrom(names=names):
                base = package[: len(package) - node.level + 1] if node.level else []
                source = ".".join([*base, *filter(None, [node.module])])
                found += [(node.lineno, f"{source}.{alias.name}") for alias in names]
            case ast.Call(args=[ast.Constant(value=name), *_]) if called(node).endswith("import_module"):
                found.append((node.lineno, str(name)))
    return found


FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
IMPORTS = [
    (str(file.relative_to(ROOT)), line, unit_of(module_name(file)), name)
    for file in FILES
    for line, name in imported_names(file)
    if not (str(file.relative_to(ROOT)) == PUBLIC_NAMES and name.startswith("nemo_longpo."))
]


def test_every_file_has_a_place():
    assert len(FILES) > 30
    homeless = [str(file.relative_to(ROOT)) for file in FILES if unit_of(module_name(file)) is None]
    assert not homeless, f"say in MAY_IMPORT of tests/test_layers.py what these may import: {homeless}"


def test_imports_go_down():
    wrong = [
        f"{file}:{line} imports {name}: {unit} may import only {sorted(MAY_IMPORT[unit]) or 'errors'}"
        for file, line, unit, name in IMPORTS
        if unit is not None
        and name.split(".")[0] == "nemo_longpo"
        and unit_of(name) not in MAY_IMPORT[unit] | OPEN_TO_ALL | {unit}
    ]
    assert not wrong, "\n".join(wrong)


def test_folders_are_imported_by_their_installed_names():
    generic = set(FOLDERS) - {"nemo_longpo"}
    wrong = [
        f"{file}:{line} imports {name}: say nemo_longpo.{name}, or import relatively"
        for file, line, _, name in IMPORTS
        if name.split(".")[0] in generic
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_adapter_and_its_users_import_the_trainer():
    wrong = [
        f"{file}:{line} imports {name}: NeMo, Megatron and Lightning stay in {sorted(MAY_IMPORT_TRAINER)}"
        for file, line, unit, name in IMPORTS
        if name.split(".")[0] in TRAINER
        and unit not in MAY_IMPORT_TRAINER
        and (file, name.split(".")[0]) != (LAUNCHER_FILE, LAUNCHER)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_engine_needs_megatron_core_alone():
    """NeMo, its launcher and Lightning belong to one trainer, Megatron-Bridge is the other: neither knows the other."""
    foreign = {
        "nemo_longpo.megatron": ("nemo", "nemo_run", "lightning", "pytorch_lightning", "megatron.bridge"),
        NEMO: ("megatron.bridge",),
        BRIDGE: ("nemo", "nemo_run", "lightning", "pytorch_lightning"),
    }
    wrong = [
        f"{file}:{line} imports {name}"
        for file, line, unit, name in IMPORTS
        if any(name == other or name.startswith(f"{other}.") for other in foreign.get(unit or "", ()))
    ]
    assert not wrong, "\n".join(wrong)


def test_collecting_tests_does_not_import_the_trainer():
    """Importing NeMo takes ten seconds: tests, and the jobs for workers, do it inside of functions."""
    imports = {module_name(file): {name for _, name in imported_names(file, at_the_top=True)} for file in FILES}
    loading: set[str] = set()

    def loads(name: str) -> bool:
        return name.split(".")[0] in TRAINER or not loading.isdisjoint({name, name.rpartition(".")[0]})

    while more := {module for module, names in imports.items() if module not in loading and any(map(loads, names))}:
        loading |= more
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name} at the top"
        for file in (ROOT / "tests").rglob("*.py")
        if file.name != "callbacks.py"  # imported inside of jobs
        for line, name in imported_names(file, at_the_top=True)
        if loads(name)
    ]
    assert "nemo_longpo.nemo.strategy" in loading
    assert not wrong, "\n".join(wrong)


def test_pure_mathematics_imports_only_torch():
    wrong = [
        f"{file}:{line} imports {name}: the mathematics uses torch and the standard library alone"
        for file, line, unit, name in IMPORTS
        if unit in PURE and name.split(".")[0] not in {"torch", "nemo_longpo", *sys.stdlib_module_names}
    ]
    assert not wrong, "\n".join(wrong)


def test_ground_floor_imports_only_standard_library():
    wrong = [
        f"{file}:{line} imports {name}: every layer imports this file, so it imports none but its like"
        for file, line, unit, name in IMPORTS
        if unit in OPEN_TO_ALL
        and name.split(".")[0] not in sys.stdlib_module_names
        and unit_of(name) not in OPEN_TO_ALL
    ]
    assert not wrong, "\n".join(wrong)


def test_one_file_reads_megatrons_parallel_state():
    readers = {file for file, _, _, name in IMPORTS if name.startswith(PARALLEL_STATE)}
    # Reached as an attribute of a package it came in with: `megatron.core.parallel_state.get_…()`, `core.mpu.get_…()`.
    for file in FILES:
        attributes = {node.attr for node in nodes_of(file) if isinstance(node, ast.Attribute)}
        if attributes & {"parallel_state", "mpu"}:
            readers.add(str(file.relative_to(ROOT)))
    assert readers == {PARALLEL_STATE_READER}, f"take a Topology from {PARALLEL_STATE_READER} instead"


def test_one_file_chooses_the_backend():
    askers = {
        file for file, _, unit, name in IMPORTS if name.startswith("nemo_longpo.backends") and "backends" not in unit
    }
    assert askers == {"nemo_longpo/megatron/backend.py"}, "take a Backend from nemo_longpo/megatron/backend.py instead"


def modules_loaded_by(code: str) -> tuple[set[str], float]:
    """Return the top-level modules that `code` loads in a fresh interpreter, and its CPU seconds, start included."""
    report = (
        "\nimport sys, time\nprint(*{name.split('.')[0] for name in sys.modules}, time.process_time(), file=sys.stderr)"
    )
    child = subprocess.run([sys.executable, "-c", code + report], cwd=ROOT, capture_output=True, text=True, check=True)
    *names, seconds = child.stderr.splitlines()[-1].split()
    return set(names), float(seconds)


HELP = """
from nemo_longpo.cli import main
try:
    main({arguments})
except SystemExit as leaving:
    assert leaving.code == 0
"""


@pytest.mark.parametrize(
    "code",
    [
        "import nemo_longpo",
        HELP.format(arguments=["--help"]),
        HELP.format(arguments=["data", "score", "--help"]),
        HELP.format(arguments=["convert", "import", "--help"]),
        HELP.format(arguments=["plan", "--help"]),
        HELP.format(arguments=["eval", "--help"]),
        HELP.format(arguments=["evolve", "--help"]),
        HELP.format(arguments=["report", "--help"]),
    ],
    ids=[
        "import nemo_longpo",
        "longpo --help",
        "longpo data score --help",
        "longpo convert import --help",
        "longpo plan --help",
        "longpo eval --help",
        "longpo evolve --help",
        "longpo report --help",
    ],
)
def test_help_is_instant(code):
    loaded, seconds = modules_loaded_by(code)
    heavy = loaded & (TRAINER | {"torch", "transformers", "pyarrow", "pandas", "datasets", "matplotlib", "lm_eval"})
    assert not heavy, f"import {sorted(heavy)} inside the functions that need them"
    # Once more where the first start also compiled the modules, or shared its core with others.
    assert seconds < 1 or modules_loaded_by(code)[1] < 1


@pytest.mark.slow
def test_all_but_the_adapter_runs_without_the_trainer():
    """Not even through another package: data tools and evaluation are also installed beside vLLM, without NeMo."""
    tools = {"nemo_longpo.data_tools", "nemo_longpo.evaluation", "nemo_longpo.doctor"}
    units = PURE | LAYOUTS | {"nemo_longpo.shards"} | tools
    modules = [module_name(file) for file in FILES if unit_of(module_name(file)) in units]
    loaded, _ = modules_loaded_by("\n".join(f"import {module}" for module in modules))
    assert "torch" in loaded
    assert not loaded & TRAINER


def test_rooms_of_data_tools_import_downwards():
    floor_of = {room: floor for floor, rooms in enumerate(DATA_FLOORS) for room in rooms}
    folders = {path.parent.name for path in (ROOT / "data_tools").glob("*/__init__.py")}
    assert folders == set(floor_of), "give every room a floor"
    upwards = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for room, floor in floor_of.items()
        for file in sorted((ROOT / "data_tools" / room).glob("*.py"))
        for line, name in imported_names(file)
        if name.startswith("nemo_longpo.data_tools.")
        and (other := name.split(".")[2]) != room
        and floor_of.get(other, -1) >= floor
    ]
    assert upwards == []


WRITER, CLAIMS = "nemo_longpo/atomic.py", "data_tools/runner/claims.py"  # a claim guards nothing and is never flushed
RUN_DIRECTORY = "nemo_longpo/checkpoints/run_directory.py"


def test_one_file_writes_atomically_and_one_knows_run_directories():
    trees = {str(file.relative_to(ROOT)): nodes_of(file) for file in FILES}
    calls = {file: {called(node) for node in nodes if isinstance(node, ast.Call)} for file, nodes in trees.items()}
    writers = {file for file, found in calls.items() if found & {"os.fsync", "os.replace", "os.rename", "fcntl.flock"}}
    assert writers <= {WRITER, CLAIMS}, f"write with {WRITER}"
    places = {"tb_logs", "metrics.jsonl", "checkpoints"}
    knowing = {
        file
        for file, nodes in trees.items()
        for node in nodes
        if isinstance(node, ast.Constant) and node.value in places
    }
    assert knowing == {RUN_DIRECTORY}, f"take the names of a run's files from {RUN_DIRECTORY}"
