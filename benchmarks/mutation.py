"""Small faults put into the numerics, one at a time: does a test find each?

    python benchmarks/mutation.py --count 60 --seed 0 landscape/spectrum/trace.py tests/test_trace.py [more pairs]

Each fault changes one operator, comparison or number of a module; then the test files run on a copy of the tree until
one fails. What survives is printed with its line: either a test is missing, or the fault changes no result.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
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


def survives(tree: Path, module: Path, source: str, tests: list[str]) -> bool:
    """Whether the tests pass with that source; those that hang have found the fault."""
    (tree / module).write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        return (
            subprocess.run(command, cwd=tree, env=_environment(tree), capture_output=True, timeout=600).returncode == 0
        )
    except subprocess.TimeoutExpired:
        return False


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}


def main() -> None:
    """Print each fault that survives, and how many were found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=20, help="of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("pairs", nargs="+", help="MODULE TESTS[,TESTS]")
    options = parser.parse_args()
    found = total = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".venv", ".git", "runs"))
        for name, tests in zip(options.pairs[::2], options.pairs[1::2], strict=True):
            source = (ROOT / name).read_text()
            count = sum(len(faults(node)) for node in ast.walk(ast.parse(source)))
            for i in random.Random(options.seed).sample(range(count), min(count, options.count)):
                parsed = ast.parse(source)
                node, field, value = [fault for n in ast.walk(parsed) for fault in faults(n)][i]
                line = source.splitlines()[node.lineno - 1].strip()
                setattr(node, field, value)
                total += 1
                if survives(tree, Path(name), ast.unparse(parsed), tests.split(",")):
                    print(f"{name}:{node.lineno}: {line}   ->   {ast.unparse(node)}", flush=True)
                else:
                    found += 1
            (tree / name).write_text(source)
    print(f"{found} of {total} faults were found")


if __name__ == "__main__":
    main()
