"""Find the problem that a string on the command line names."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        data: the folder of its data, passed to a function that takes an argument.

    Raises:
        ValueError: nothing of that name; data missing or not accepted; a function that does not return a Problem.
    """
    function, folder = (BUILT_IN[spec], None) if spec in BUILT_IN else _load(spec)
    parameters = inspect.signature(function).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) > 1:
        raise ValueError(
            f"problem={spec!r} takes {len(required)} arguments: a problem function takes none, or a folder"
        )
    if required and required[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise ValueError(
            f"problem={spec!r} needs {required[0].name}= by name: give it a default, or take a folder by position"
        )
    if required and data is None:
        raise ValueError(f"problem={spec!r} takes a folder of data: give --data FOLDER")
    if data is not None and not required:
        raise ValueError(f"data={str(data)!r}: the problem {spec!r} takes no folder, so leave it out")
    problem = _run(spec, lambda: function(data) if required else function(), folder)
    if not isinstance(problem, Problem):
        raise ValueError(
            f"problem={spec!r} returned a {type(problem).__name__}: return a "
            "landscape.problems.Problem(name, model, loss, train, test)"
        )
    return problem


def _load(spec: str) -> tuple[Callable[..., Any], Path]:
    """The function, and the folder from which its code may import."""
    where, colon, name = spec.rpartition(":")
    if not colon:
        raise ValueError(
            f"problem={spec!r} is unknown: give one of {', '.join(BUILT_IN)}, or package.module:function, or "
            "path/to/file.py:function"
        )
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise ValueError(f"problem={spec!r}: cannot import {where!r}, which is no file")
        folder = Path(where).resolve().parent  # so that files beside it can be imported
        module = _run(spec, lambda: _load_file(Path(where)), folder)
    else:
        folder = Path.cwd()  # which is not in sys.path of a console script
        module = _run(spec, lambda: _import(spec, where), folder)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"problem={spec!r}: {where} has no function {name!r}")
    return function, folder


class _NothingFoundError(ValueError):
    """The module named on the command line does not exist; not an error in the user's code."""


def _run(spec: str, code: Callable[[], Any], folder: Path | None) -> Any:
    """Run the user's code, with ``folder`` in ``sys.path``; None for our own code.

    Errors in the user's code become a RuntimeError, whose traceback the command line shows.
    """
    if folder is None:
        return code()  # the messages of our own errors are sufficient
    try:
        with _importable(folder):
            return code()
    except _NothingFoundError:
        raise
    except Exception as error:
        raise RuntimeError(f"problem={spec!r} raised {type(error).__name__}: {error}") from error


def _import(spec: str, where: str) -> Any:
    nothing = _NothingFoundError(f"problem={spec!r}: cannot import {where!r}, of which nothing is found")
    if not all(part.isidentifier() for part in where.split(".")):
        raise nothing
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if f"{where}.".startswith(f"{error.name}."):  # the module itself, or a package that contains it
            raise nothing from error
        raise  # a module that the user's module imports is missing


def _load_file(path: Path) -> Any:
    # a unique name, so that a user's json.py does not replace the json module
    name = f"_landscape_problem_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as import does: pickle and dataclasses need it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before
