"""Long loops run through ``progress(iterable, description)``, so that a caller may show how far they are.

``tqdm.tqdm`` has that signature. The default shows nothing: only the command line prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Progress", "silent"]

Progress = Callable[..., Iterable[Any]]


def silent(iterable: Iterable[Any], description: str) -> Iterable[Any]:
    """No progress shown."""
    return iterable
