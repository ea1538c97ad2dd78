"""Rivals that need an environment of their own: a process there waits between the rounds for its turn."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

__all__ = ["elsewhere"]


@contextmanager
def elsewhere(
    python: str, prepare: Callable[..., Callable[..., object]], given: tuple[Any, ...], *needed: Callable[..., Any]
) -> Iterator[Callable[..., Any]]:
    """The function that ``prepare(*given)`` returns there, of what JSON can hold.

    Args:
        python: the interpreter of that environment, in which there is no module of ours.
        prepare: complete together with ``needed``: its source goes there, where only torch and sys are imported.
        given: goes there through a file. A network must be of torch's own modules, as ``torch.fx`` writes it.
        needed: functions that ``prepare`` calls.
    """
    sources = [inspect.getsource(function) for function in (*needed, prepare, _serve)]
    program = "\n".join(["from __future__ import annotations\nimport sys\nimport torch", *sources])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "given.pt"
        torch.save(given, path)
        command = [python, "-c", f"{program}\n_serve({prepare.__name__})", str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin
            assert process.stdout

            def ask(*question: object) -> Any:
                print(json.dumps(question), file=process.stdin, flush=True)
                return json.loads(process.stdout.readline())

            yield ask
            process.stdin.close()


def _serve(prepare: Callable[..., Callable[..., object]]) -> None:
    """A line of JSON for each that comes in. It runs there."""
    import contextlib
    import io
    import json

    def quietly(function: Callable[..., Any], *arguments: object) -> Any:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return function(*arguments)

    answer = quietly(prepare, *torch.load(sys.argv[1], weights_only=False))
    for line in sys.stdin:
        print(json.dumps(quietly(answer, *json.loads(line))), flush=True)
