"""Rules of the tree: clear names, no circles of imports, one place for each fact."""

import ast
import graphlib
import itertools
import re
from collections import Counter

import pytest
from test_layers import FILES, IMPORTS, ROOT, imported_names, module_name, nodes_of

CONVENTIONAL = {"__init__.py", "cli.py", "conftest.py"}
LARGEST_SHARE_OF_IMPORTS = 0.065
MOST_FIELDS_BY_POSITION = 4

# What is known in one place -> how it shows in a source, and where it may stand.
KNOWN_ONCE = {
    # Whoever writes or compares a config.json of others knows the spelling too; who reads one asks ModelConfig.
    "the spellings of config.json": (
        r"\"torch_dtype\"|\"rope_parameters\"",
        ("nemo_longpo/model_directory/", "nemo_longpo/shards/fingerprint.py", "conversion/", "data_tools/engines/hf"),
    ),
    "the mark of an error sentence": (r"longpo: error", ("nemo_longpo/errors.py",)),
    "how a step's process is started and stopped": (
        r"subprocess\.Popen\(|os\.killpg",
        ("nemo_longpo/steps/process.py",),
    ),
}


def test_no_file_name_more_than_twice():
    folders = {file.relative_to(ROOT).parts[0] for file in FILES} | {"benchmarks", "tests"}
    names = Counter(file.name for folder in folders for file in (ROOT / folder).rglob("*.py"))
    repeated = {name: count for name, count in names.items() if count > 2 and name not in CONVENTIONAL}
    assert not repeated, f"say in the name what these files hold: {repeated}"


def test_no_circle_of_imports():
    """Also not through imports inside functions."""
    modules = {module_name(file) for file in FILES}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for file, _, _, name in IMPORTS:
        importer = module_name(ROOT / file)
        imported = name if name in modules else name.rpartition(".")[0]
        # The root package offers names of all others, and a package's face those of its files.
        if imported in modules - {"nemo_longpo", importer} and importer != "nemo_longpo":
            graph[importer].add(imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("these import each other: " + " <- ".join(error.args[1]))


def test_share_of_import_lines():
    lines = imports = 0
    for file in FILES:
        lines += len(file.read_text(encoding="utf-8").splitlines())
        nodes = [node for node in nodes_of(file) if isinstance(node, ast.Import | ast.ImportFrom)]
        imports += sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in nodes)
    assert imports / lines <= LARGEST_SHARE_OF_IMPORTS, "small files that change together may be one"


def test_dataclasses_of_many_fields_are_keyword_only():
    """Inherited fields count too."""
    classes = {
        f"{module_name(file)}.{node.name}": (file, node)
        for file in FILES
        for node in nodes_of(file)
        if isinstance(node, ast.ClassDef)
    }
    imported = {file: {name.rpartition(".")[2]: name for _, name in imported_names(file)} for file in FILES}

    def decorator(node: ast.ClassDef) -> str:
        return next((text for text in map(ast.unparse, node.decorator_list) if "dataclass" in text), "")

    def fields(name: str) -> set[str]:
        """Those before a `KW_ONLY`."""
        if name not in classes:
            return set()
        file, node = classes[name]
        items = [item for item in node.body if isinstance(item, ast.AnnAssign) and decorator(node)]
        by_position = itertools.takewhile(lambda item: ast.unparse(item.annotation) != "KW_ONLY", items)
        own = {ast.unparse(item.target) for item in by_position if "ClassVar" not in ast.unparse(item.annotation)}
        for base in node.bases:
            first, dot, rest = ast.unparse(base).partition("[")[0].partition(".")
            own |= fields(imported[file].get(first, f"{module_name(file)}.{first}") + dot + rest)
        return own

    positional = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"
        for name, (file, node) in classes.items()
        if (text := decorator(node)) and "kw_only=True" not in text and len(fields(name)) > MOST_FIELDS_BY_POSITION
    ]
    assert not positional, f"write @dataclass(frozen=True, kw_only=True), and the fields by name: {positional}"


@pytest.mark.parametrize("what", KNOWN_ONCE)
def test_known_in_one_place(what):
    pattern, places = KNOWN_ONCE[what]
    files = {str(file.relative_to(ROOT)) for file in FILES if re.search(pattern, file.read_text(encoding="utf-8"))}
    elsewhere = sorted(file for file in files if not file.startswith(places))
    assert files, "nobody says it: the pattern is out of date"
    assert not elsewhere, f"{what} is known in {places}; ask there"
