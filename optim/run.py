"""What a training run keeps in its folder, so that it can be killed at any point and go on as if nothing had been.

state.pt                weights, optimizer, position in the data, random states; replaced atomically
log.jsonl               a line per optimizer step
trajectory/*.safetensors  every k-th x
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optim.checkpoint import save_checkpoint, written_atomically

__all__ = ["Run"]


class Run:
    """The folder of one run; made if missing.

    Args:
        folder: where.
        signature: what the run depends on. A state that was kept under another is refused.
    """

    def __init__(self, folder: str | Path, signature: dict[str, Any]) -> None:
        self._folder = Path(folder)
        self._signature = signature
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log = self._folder / "log.jsonl"

    def load(self) -> dict[str, Any] | None:
        """The state kept last, or None. The log is cut to where it was then.

        Raises:
            ValueError: it is of a run with other settings.
        """
        path = self._folder / "state.pt"
        if not path.exists():
            self._log.unlink(missing_ok=True)
            return None
        state = torch.load(path, weights_only=True)
        before = state.pop("signature")
        changed = [k for k in {**before, **self._signature} if before.get(k) != self._signature.get(k)]
        if changed:
            raise ValueError(
                f"run={str(self._folder)!r} was begun with another {', '.join(changed)}: go on with the same, or "
                "give another folder"
            )
        with open(self._log, "ab") as log:
            log.truncate(state.pop("log_length"))
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Keep ``state`` in place of the last one."""
        length = self._log.stat().st_size if self._log.exists() else 0
        whole = {**state, "signature": self._signature, "log_length": length}
        with written_atomically(self._folder / "state.pt") as partial:
            torch.save(whole, partial)

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to the log. NaN is written as null."""
        plain = {k: None if isinstance(v, float) and v != v else v for k, v in line.items()}
        with open(self._log, "a", encoding="utf-8") as log:
            log.write(json.dumps(plain) + "\n")

    def snapshot(self, model: nn.Module, gradients: int) -> None:
        """Keep the present weights as a point of the trajectory."""
        path = self._folder / "trajectory" / f"{gradients:08}.safetensors"
        save_checkpoint(path, model, {"gradients": gradients})
