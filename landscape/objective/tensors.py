"""The network of an objective with its tensors: for what calls networks itself, and for what theta does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from landscape.checkpoints import Checkpoint
from landscape.objective.lending.named import buffers_of
from landscape.objective.model import ModelObjective

__all__ = ["fixed_tensors", "move_to", "network_at_theta", "state_of", "statistics"]


@contextmanager
def network_at_theta(f: ModelObjective) -> Iterator[nn.Module]:
    """Within it the user's network has the tensors of ``f``, at its ``theta``.

    Gradients that are left in ``.grad`` are ours too, and let go of at the end.
    """
    network, kernels = f._at_theta(), f._evaluation.kernels
    try:
        with network.lent() as model, kernels.running():
            yield model
    finally:
        for weight in network.weights:
            weight.grad = None


def state_of(f: ModelObjective, name: str = "network") -> Checkpoint:
    """A copy of the network's tensors, at theta."""
    with network_at_theta(f) as model:
        return Checkpoint.of(model, name)


def move_to(f: ModelObjective, checkpoint: Checkpoint, *, spectral: bool = False) -> None:
    """Give ``f`` the weights (as ``.theta``) and buffers of ``checkpoint``.

    The same function as ``f.at(checkpoint)``, without copies: for an objective that nobody else holds.

    Args:
        f: the objective.
        checkpoint: the one.
        spectral: whether the vectors of spectral normalisation are found for its weights, whatever it says.

    Raises:
        ValueError: names or shapes do not fit.
    """
    f._curvature.forget()
    told = f._network.load(checkpoint)  # the parameters are views of the flat vector, which so moves with them
    f.theta, f.told = f._network.flat.clone(), (*checkpoint.notes, *told)
    f._evaluation.moved()
    if spectral:
        f._evaluation.find_spectral_vectors()
    f._recalibrate()


def statistics(f: ModelObjective) -> dict[str, Tensor]:
    """The buffers that belong to the weights: BatchNorm's statistics, the vectors of spectral normalisation."""
    evaluation = f._evaluation
    return buffers_of(evaluation.network, [*evaluation.norms, *evaluation.spectral])


def fixed_tensors(f: ModelObjective, *, with_statistics: bool) -> dict[str, Tensor]:
    """Parameters that are not trainable and buffers, by name, those of ``statistics`` among them or not.

    With the entries of theta that are held fixed, under the name "held".
    """
    left_out = {*f.space.names, *(() if with_statistics else statistics(f))}
    named = {name: t for name, t in f._evaluation.network.named_tensors().items() if name not in left_out}
    return {**named, "held": f.theta[f.held]} if len(f.held) else named
