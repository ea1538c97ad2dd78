"""From what a user types for a problem to the problem."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from landscape.problems.digits import digits_cnn, digits_mlp
from landscape.problems.mnist import mnist_fc, mnist_lenet
from landscape.problems.problem import Problem

__all__ = ["BUILT_IN", "find_problem"]

BUILT_IN: dict[str, Callable[..., Problem]] = {
    function.__name__: function for function in (digits_cnn, digits_mlp, mnist_lenet, mnist_fc)
}


def find_problem(spec: str, data: str | Path | None = None) -> Problem:
    """The problem that ``spec`` names.

    Args:
        spec: a built-in name; or ``package.module:function``; or ``path/to/file.py:function``.
        data: handed to a function that takes an argument, the folder of its data.

    Raises:
        ValueError: nothing of that name; data missing or not wanted; a function that returns no Problem.
    """
    function = BUILT_IN.get(spec) or _load(spec)
    wants_data = len(inspect.signature(function).parameters) > 0
    if wants_data and data is None:
        raise ValueError(f"problem={spec!r} takes a folder of data: give --data FOLDER")
    if data is not None and not wants_data:
        raise ValueError(f"data={str(data)!r}: the problem {spec!r} takes no folder, so leave it out")
    problem = function(data) if wants_data else function()
    if not isinstance(problem, Problem):
        raise ValueError(
            f"problem={spec!r} returned a {type(problem).__name__}: return a "
            "landscape.problems.Problem(name, model, loss, train, test)"
        )
    return problem


def _load(spec: str) -> Callable[..., Any]:
    where, colon, name = spec.rpartition(":")
    if not colon:
        raise ValueError(
            f"problem={spec!r} is unknown: give one of {', '.join(BUILT_IN)}, or "
            "package.module:function, or path/to/file.py:function"
        )
    try:
        module = _load_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ValueError(f"problem={spec!r}: cannot import {where!r} ({error})") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"problem={spec!r}: {where} has no function {name!r}")
    return function


def _load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # as an import would: pickling and dataclasses look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module
