"""The folder table of CONTRIBUTING.md is the truth: each imports what it lists, and no more, in one direction."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import landscape

ROOT = Path(__file__).parent.parent
FILES = [path for package in ("landscape", "optim") for path in sorted((ROOT / package).rglob("*.py"))]


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path): path for path in FILES}


def _unit(module: str) -> str:
    """The table's row of a module: folders within ``landscape`` are one."""
    package, *inner = module.split(".")
    if package == "optim" or not inner:
        return package
    return inner[0]


def _imports(path: Path, text: str | None = None) -> set[str]:
    """The modules of ours that a file imports, in functions and for type checkers alone as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text() if text is None else text)):
        if isinstance(node, ast.ImportFrom):
            # each dot but the first is a package further up from the file's own
            package = path.relative_to(ROOT).parent.parts
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in MODULES else source)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {module for module in found if module in MODULES}


IMPORTS = {module: _imports(path) for module, path in MODULES.items()}


def _between_units() -> dict[str, set[str]]:
    units: dict[str, set[str]] = {}
    for module, imported in IMPORTS.items():
        if module != "landscape":
            unit = _unit(module)
            units.setdefault(unit, set()).update({_unit(other) for other in imported} - {unit})
    return units


def _table() -> dict[str, set[str]]:
    rows = re.findall(r"^\| `([\w/.]+)` \|[^|]*\| ([^|]*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    names = (row.removeprefix("landscape/").strip("/").removesuffix(".py") for row, _ in rows)
    return {name: set(re.findall(r"\w+", allowed)) for name, (_, allowed) in zip(names, rows, strict=True)}


@pytest.mark.parametrize(
    ("file", "relative", "absolute"),
    [
        ("landscape/report/page.py", "from ..results import Line", "from landscape.results import Line"),
        ("landscape/report/page.py", "from .. import results, plots", "from landscape import results, plots"),
        ("landscape/problems/find.py", "from . import problem", "from landscape.problems import problem"),
        ("landscape/problems/find.py", "if x:\n  from ..objective import model", "import landscape.objective.model"),
        ("optim/run.py", "from .entropy import EntropyOptimizer", "from optim.entropy import EntropyOptimizer"),
    ],
)
def test_relative_imports_and_conditional_ones_count(file: str, relative: str, absolute: str) -> None:
    assert _imports(ROOT / file, relative) == _imports(ROOT / file, absolute) != set()


def test_folders_import_what_the_table_lists() -> None:
    assert _between_units() == _table()


def test_the_table_stands_in_the_order_of_imports() -> None:
    order = [name for name in _table() if name != "optim"]
    for unit, imported in _between_units().items():
        for other in imported - {"optim"}:
            assert order.index(other) < order.index(unit), f"{unit} imports {other}, which stands below it"


def test_no_file_imports_itself_by_way_of_others() -> None:
    TopologicalSorter(IMPORTS).prepare()  # which raises CycleError


def test_the_top_of_landscape_is_seen_at_a_glance() -> None:
    assert len([path for path in (ROOT / "landscape").glob("*.py") if path.name != "__init__.py"]) <= 8


def test_what_a_room_exports_is_what_its_name_gives() -> None:
    """No module hides the function of its name."""
    for name in landscape.__all__:
        assert callable(getattr(landscape, name)), name


def test_files_are_read_in_one_sitting() -> None:
    for path in FILES:
        lines = len(path.read_text().splitlines())
        assert lines <= 300, f"{path} has {lines} lines"


def test_nothing_prints_but_the_command_line() -> None:
    for path in FILES:
        if path.name != "cli.py":
            calls = [
                node.func.id
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            ]
            assert "print" not in calls, path
