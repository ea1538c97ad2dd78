"""Access to the network of an objective and to all its tensors, including those that are not part of theta."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from landscape.checkpoints import Checkpoint
from landscape.objective.lending.named_tensors import buffers_of
from landscape.objective.model import ModelObjective

__all__ = ["checkpoint_of", "fixed_tensors", "move_to", "network_at_theta", "statistics"]


@contextmanager
def network_at_theta(f: ModelObjective) -> Iterator[nn.Module]:
    """Context in which the user's network has the tensors of ``f``, at its ``theta``.

    Gradients in ``.grad`` are on our tensors too, and are discarded at the end.
    """
    network, kernels = f._at_theta(), f._evaluation.kernels
    try:
        with network.lent() as model, kernels.running():
            yield model
    finally:
        for weight in network.weights:
            weight.grad = None


def checkpoint_of(f: ModelObjective, name: str = "network") -> Checkpoint:
    """A copy of the network's tensors, at theta."""
    with network_at_theta(f) as model:
        return Checkpoint.of(model, name)


def move_to(f: ModelObjective, checkpoint: Checkpoint, *, spectral: bool = False) -> None:
    """Set the weights (as ``.theta``) and buffers of ``f`` to those of ``checkpoint``, in place.

    The in-place version of ``f.at(checkpoint)``, for an objective that no other code uses.

    Args:
        f: the objective.
        checkpoint: the checkpoint.
        spectral: whether to compute the vectors of spectral normalisation for its weights, instead of loading them.

    Raises:
        ValueError: names or shapes do not fit.
    """
    f._curvature.clear()
    load_notes = f._network.load(checkpoint)  # changes the flat vector too, whose views the parameters are
    f.theta, f.load_notes = f._network.flat.clone(), (*checkpoint.notes, *load_notes)
    f._evaluation.buffers_changed()
    if spectral:
        f._evaluation.update_spectral_vectors()
    f._recalibrate()


def statistics(f: ModelObjective) -> dict[str, Tensor]:
    """The buffers that are computed from weights and data: BatchNorm's statistics, spectral normalisation's vectors."""
    evaluation = f._evaluation
    return buffers_of(evaluation.network, [*evaluation.norms, *evaluation.spectral])


def fixed_tensors(f: ModelObjective, *, with_statistics: bool) -> dict[str, Tensor]:
    """Buffers and non-trainable parameters by name, with or without those of :func:`statistics`.

    The fixed entries of theta are included under the name "held".
    """
    left_out = {*f.space.names, *(() if with_statistics else statistics(f))}
    named = {name: t for name, t in f._evaluation.network.named_tensors().items() if name not in left_out}
    return {**named, "held": f.theta[f.fixed_entries]} if len(f.fixed_entries) else named
