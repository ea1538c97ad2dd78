"""The import table of CONTRIBUTING.md is the truth: each module imports what it lists, and no more."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _table() -> dict[str, set[str]]:
    rows = re.findall(r"^\| `([\w/.]+)` \|[^|]*\| ([^|]*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    return {name: set(re.findall(r"`?([\w.]+)`?", allowed)) for name, allowed in rows}


def _unit(path: Path) -> str:
    """The table's row for a file: packages within ``landscape`` are one row."""
    parts = path.relative_to(ROOT).parts
    if parts[0] == "optim":
        return "optim/"
    return f"landscape/{parts[1]}/" if len(parts) > 2 else f"landscape/{parts[1]}"


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    """The module a file imports from: each dot but the first is a package further up from the file's own."""
    package = path.relative_to(ROOT).parent.parts
    above = package[: len(package) - node.level + 1] if node.level else ()
    return ".".join([*above, *filter(None, [node.module])])


def _imports(path: Path, text: str | None = None) -> set[str]:
    """The units of ours that a file imports, without itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text() if text is None else text)):
        if isinstance(node, ast.ImportFrom):
            source = _absolute(node, path)
            modules = [f"landscape.{alias.name}" for alias in node.names] if source == "landscape" else [source]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        for module in modules:
            parts = module.split(".")
            if parts[0] == "optim":
                found.add("optim")
            elif parts[0] == "landscape" and len(parts) > 1:
                found.add(parts[1])
    return found - {_unit(path).removeprefix("landscape/").strip("/").removesuffix(".py")}


FILES = [
    path
    for package in ("landscape", "optim")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.relative_to(ROOT).as_posix() != "landscape/__init__.py"
]


@pytest.mark.parametrize(
    ("file", "relative", "absolute"),
    [
        ("landscape/report.py", "from .results import Line", "from landscape.results import Line"),
        ("landscape/report.py", "from . import results, store", "from landscape import results, store"),
        ("landscape/problems/find.py", "from ..objective import data", "from landscape.objective import data"),
        ("landscape/problems/find.py", "from .. import store", "from landscape import store"),
        ("landscape/problems/find.py", "from . import problem", "from landscape.problems import problem"),
        ("optim/run.py", "from .entropy import EntropyOptimizer", "from optim.entropy import EntropyOptimizer"),
    ],
)
def test_relative_imports_count_as_absolute_ones(file, relative, absolute):
    assert _imports(ROOT / file, relative) == _imports(ROOT / file, absolute)
    names = {"results", "store", "objective"} & set(re.findall(r"\w+", relative))
    assert _imports(ROOT / file, relative) == names  # without the file's own unit


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_are_those_of_the_table(path):
    table = _table()
    unit = _unit(path)
    assert unit in table, f"{unit} has no row"
    unlisted = set() if "all" in table[unit] else _imports(path) - table[unit]
    assert not unlisted, f"{unit} imports {unlisted}"


def test_the_table_lists_no_more_than_there_is():
    imports: dict[str, set[str]] = {}
    for path in FILES:
        imports.setdefault(_unit(path), set()).update(_imports(path))
    for unit, allowed in _table().items():
        assert unit in imports, f"{unit} is no file of ours"
        if "all" not in allowed:
            unused = allowed - imports[unit]
            assert not unused, f"{unit} may import {unused}, but does not"


def test_files_are_read_in_one_sitting():
    for path in FILES:
        lines = len(path.read_text().splitlines())
        assert lines <= 340, f"{path} has {lines} lines"


def test_nothing_prints_but_the_command_line():
    for path in FILES:
        if path.name != "cli.py":
            calls = [
                node.func.id
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            ]
            assert "print" not in calls, path
