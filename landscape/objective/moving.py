"""An objective at its own weights again, or moved to those of another checkpoint."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from landscape.checkpoints import Checkpoint

if TYPE_CHECKING:
    from landscape.objective.model import ModelObjective

__all__ = ["move_to", "own_network"]


def move_to(objective: ModelObjective, checkpoint: Checkpoint) -> None:
    """Give ``objective`` the weights (as ``.theta``) and buffers of ``checkpoint``.

    The same function as ``objective.at(checkpoint)`` without its price, which is that of several evaluations: so for an
    objective that nobody else holds.

    Raises:
        ValueError: names or shapes do not fit the network.
    """
    objective._hessians.forget()
    objective._gauss_newtons.forget()
    checkpoint.load_into(objective._model)  # the parameters are views of the flat vector, which so moves with them
    objective.theta = objective._flat.clone()
    objective._recalibrate()


def own_network(objective: ModelObjective, patterns: Sequence[str] = ("*",)) -> nn.Module:
    """A copy of the network at ``objective.theta``, wherever f was evaluated last.

    Args:
        objective: whose network.
        patterns: which parameters stay trainable, as in a shell.

    Raises:
        ValueError: a pattern fits no name.
    """
    names = objective.space.names
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"pattern {pattern!r} fits no parameter: the names are {', '.join(names)}")
    model = copy.deepcopy(objective._model)
    named = dict(model.named_parameters())
    for name, value in objective.space.views(objective.theta).items():
        named[name].data.copy_(value)
        named[name].requires_grad_(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
    return model
