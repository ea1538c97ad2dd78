"""Small faults put into the numerics, one at a time: does a test find each?

    python benchmarks/mutation.py --count 60 --seed 0 landscape/sums.py "tests/test_sums.py -k exact" [more]

Each fault changes one operator, comparison or number of a module, but none in the words of an error or a name, nor the
default of an argument; then pytest runs on a copy of the tree until a test fails. What survives is printed with its
line: either a test is missing, or the fault changes no result. Each run is forked from a process that has imported the
libraries, but nothing of ours.
"""

import argparse
import ast
import multiprocessing
import os
import random
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LIBRARIES = ("torch", "scipy.stats", "matplotlib.pyplot", "seaborn", "xarray", "arviz_stats.base", "pytest")
SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.Mod: ast.Add,
         ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
         ast.And: ast.Or, ast.Or: ast.And, ast.USub: ast.UAdd, ast.Is: ast.IsNot, ast.IsNot: ast.Is}  # fmt: skip


def faults(node: ast.AST) -> list[tuple[ast.AST, str, object]]:
    """The (node, field, new value) that make a fault of a node."""
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.UnaryOp) and type(node.op) in SWAPS:
        return [(node, "op", SWAPS[type(node.op)]())]
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        return [(node, "ops", [SWAPS[type(node.ops[0])](), *node.ops[1:]])]
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return [(node, "value", node.value + 1)]
    return []


def drawn(node: ast.AST) -> Iterator[ast.AST]:
    """A node and those below it of which faults are made."""
    if not isinstance(node, ast.Raise | ast.JoinedStr | ast.arguments):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from drawn(child)


def survives(tree: Path, module: Path, source: str, tests: str) -> bool:
    """Whether the tests pass with that source; those that hang have found the fault."""
    (tree / module).write_text(source)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(tree, tests))
    process.start()
    process.join(300)
    if process.exitcode is None:
        process.kill()
    return process.exitcode == 0


def _run(tree: Path, tests: str) -> None:
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.path[:] = [str(tree), *(path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "benchmarks"))]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    # two versions of a source within a second would share their bytecode
    sys.dont_write_bytecode = True
    os._exit(import_module("pytest").main(["-q", "-x", "-p", "no:cacheprovider", *shlex.split(tests)]))


def main() -> None:
    """Print each fault that survives, and how many were found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=20, help="of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("pairs", nargs="+", help="MODULE and pytest's ARGUMENTS for it")
    options = parser.parse_args()
    for library in _LIBRARIES:
        import_module(library)
    found = total = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".venv", ".git", "runs"))
        for name, tests in zip(options.pairs[::2], options.pairs[1::2], strict=True):
            source = (ROOT / name).read_text()
            if not survives(tree, Path(name), ast.unparse(ast.parse(source)), tests):
                raise SystemExit(f"{tests}: fails without any fault")
            count = sum(len(faults(node)) for node in drawn(ast.parse(source)))
            here = found, total
            for i in random.Random(options.seed).sample(range(count), min(count, options.count)):
                parsed = ast.parse(source)
                node, field, value = [fault for n in drawn(parsed) for fault in faults(n)][i]
                line = source.splitlines()[node.lineno - 1].strip()
                setattr(node, field, value)
                total += 1
                if survives(tree, Path(name), ast.unparse(parsed), tests):
                    print(f"{name}:{node.lineno}: {line}   ->   {ast.unparse(node)}", flush=True)
                else:
                    found += 1
            (tree / name).write_text(source)
            print(f"{name}: {found - here[0]} of {total - here[1]}, of {count} there are", flush=True)
    print(f"{found} of {total} faults were found")


if __name__ == "__main__":
    main()
