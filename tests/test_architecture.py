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


def _imports(path: Path) -> set[str]:
    """The units of ours that a file imports, without itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports escape this table, so write the whole name"
            modules = [node.module or ""]
            if node.module == "landscape":
                modules = [f"landscape.{alias.name}" for alias in node.names]
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
        imports.setdefault(_unit(path), set()).update(_imports(path) - {"optim"} | (_imports(path) & {"optim"}))
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
