"""A checkpoint on disk: one safetensors file, its JSON metadata in the file's own header.

The tensors are the model's ``state_dict()``. One file, written beside its place and then renamed, so
that a reader finds a whole checkpoint or none, and weights never part from what is said of them.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

__all__ = ["save_checkpoint", "written_atomically"]


def save_checkpoint(path: str | Path, model: nn.Module, metadata: Mapping[str, Any]) -> Path:
    """Write ``model.state_dict()`` and JSON-able ``metadata`` to ``path``, atomically.

    Args:
        path: where the file goes; its folder is made if missing.
        model: its parameters and buffers are written, tied ones under each of their names.
        metadata: anything ``json.dumps`` takes; each top-level value becomes one header entry.

    Returns:
        The path written.
    """
    path = Path(path)
    # safetensors refuses tensors that share memory, as tied weights do
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    header = {key: json.dumps(value) for key, value in metadata.items()}
    with written_atomically(path) as partial:
        save_file(tensors, partial, metadata=header)
    return path


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to, which becomes ``path`` once the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
