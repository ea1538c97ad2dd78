"""An objective moved to another checkpoint in place, for walks through many of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from landscape.checkpoints import Checkpoint

if TYPE_CHECKING:
    from landscape.objective.model import ModelObjective

__all__ = ["move_to"]


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
