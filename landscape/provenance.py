"""What a comparison was made of, and whether its checkpoints can be compared at all."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from landscape.checkpoints import Checkpoint, unwrapped
from landscape.objective import ModelObjective
from landscape.problems import Problem

__all__ = ["check_checkpoints", "check_fixed_tensors", "provenance_of"]


def check_checkpoints(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise ValueError unless there is one at least, and all have names and weights of their own."""
    names = [c.name for c in checkpoints]
    if not names:
        raise ValueError("checkpoints is empty: give at least one")
    if len(set(names)) < len(names):
        raise ValueError(f"checkpoints are named {names}: give each a name of its own")
    for name in names:
        if not name or name.startswith(".") or "/" in name or name == "measures":
            raise ValueError(f"checkpoint name {name!r}: names are folders in the store, so no '/', and not 'measures'")
    known: dict[str, str] = {}
    for checkpoint in checkpoints:
        twin = known.setdefault(checkpoint.digest(), checkpoint.name)
        if twin != checkpoint.name:
            raise ValueError(f"checkpoints {twin!r} and {checkpoint.name!r} hold the same weights: give one of them")


def check_fixed_tensors(checkpoints: Sequence[Checkpoint], f: ModelObjective) -> None:
    """On a line only theta moves and BatchNorm's statistics are gathered anew: the rest must be the same."""
    statistics = (".running_mean", ".running_var", ".num_batches_tracked")
    trainable = set(unwrapped(dict.fromkeys(f.space.names)))
    for checkpoint in checkpoints[1:]:
        for name, tensor in checkpoint.tensors.items():
            moves = name in trainable or f".{name}".endswith(statistics)
            if not moves and not torch.equal(tensor, checkpoints[0].tensors[name]):
                raise ValueError(
                    f"checkpoints {checkpoints[0].name!r} and {checkpoint.name!r} differ in {name!r}, which is not "
                    "trainable, so that theta is not all of their difference: make it trainable, or compare "
                    "checkpoints that share it"
                )


def provenance_of(
    checkpoints: Sequence[Checkpoint], problem: Problem, train: ModelObjective, test: ModelObjective
) -> dict[str, Any]:
    """Versions, machine, sizes and hashes, as JSON-able values."""
    return {
        "versions": {name: version(name) for name in ("landscape-toolkit", "torch", "numpy")},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {train.device}",
        "problem": problem.name,
        "weights": train.size,
        "examples": {"train": train.examples, "test": test.examples},
        "sha256": {
            "checkpoints": {c.name: c.digest() for c in checkpoints},
            "train": train.data_digest(),
            "test": test.data_digest(),
        },
    }
