"""Weight matching: permutes the hidden units of b so that its weights are as near as possible to those of a.

The function of a network does not depend on the order of its hidden units, so its weights are one of many equivalent
points. With P_l the permutation of layer l (P_0 and the last are the identity), the one nearest to a minimises

    D^2 = sum_l ||W_l^a - P_l W_l^b P_{l-1}'||^2,   equally maximises   sum_l <W_l^a, P_l W_l^b P_{l-1}'>_F,

biases and BatchNorm's weights counted as rows of W_l. In one P_l, with the others fixed, this is a linear assignment
problem, solved exactly; sweeping over the layers in random order until none changes is coordinate ascent to a local
optimum (Ainsworth, Hayase & Srinivasa 2023, arXiv:2209.04836, algorithm 1). D^2 never rises. Which one is found depends
on the order: the joint problem over all layers is NP-hard.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from landscape.checkpoints import Checkpoint
from landscape.checkpoints.values import equal
from landscape.connectivity.units import Structure, structure_of
from landscape.objective import ModelObjective
from landscape.objective.tensors import network_at_theta
from landscape.randomness import generator_or_new

__all__ = ["Matching", "match_weights"]

# Relative to the product of the norms: gains below this are rounding errors of the sums
_ROUNDING = 1e-12
_CHECKED = 8  # examples on which the outputs before and after are compared


@dataclass(frozen=True)
class Matching:
    """A checkpoint with its hidden units in another's order."""

    checkpoint: Checkpoint  # b permuted: the same function
    permutations: dict[str, np.ndarray]  # hidden layer -> p, (units,): unit i is unit p[i] of b
    squared_distance_before: float  # ||a - b||^2 over all parameters
    squared_distance: float  # ||a - P b||^2
    sweeps: int  # through all layers; the last one changed nothing
    # max |z' - z| / max |z| over the outputs z of b and z' of the permuted b; NaN where no inputs were given
    output_change: float


def match_weights(
    network: nn.Module | ModelObjective,
    checkpoint_a: Checkpoint,
    checkpoint_b: Checkpoint,
    *,
    inputs: Any = None,
    generator: torch.Generator | None = None,
) -> Matching:
    """Permute the hidden units of b so that its weights come as near as possible to those of a.

    Covered are multilayer perceptrons and plain convolutional networks: Linear, Conv and BatchNorm layers one after
    another, with activations, pooling, dropout and flattening between them.

    Args:
        network: the network of both checkpoints, or an objective with it.
        checkpoint_a: the target, which is not changed.
        checkpoint_b: the checkpoint to permute.
        inputs: examples on which to check that the permuted network has the same outputs, and that rows of a given
            length, as in ``x.view(-1, 400)``, are examples. Default: some of the objective's data; for a bare network
            none.
        generator: of the order of the layers in each sweep. Default: seeded by the operating system.

    Returns:
        Matching, whose ``checkpoint`` has the name of b with the suffix ``-matched``.

    Raises:
        ValueError: a layer or operation that is not covered, which is named; checkpoints that do not fit the network
            or are not finite; a permuted network with other outputs, which its graph does not explain.

    Reference:
        Ainsworth, Hayase & Srinivasa 2023, arXiv:2209.04836.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> a = Checkpoint.of(network, "a")
        >>> tensors = dict(a.tensors)
        >>> for name in ("0.weight", "0.bias"):
        ...     tensors[name] = tensors[name].flip(0)
        >>> tensors["2.weight"] = tensors["2.weight"].flip(1)
        >>> found = match_weights(network, a, Checkpoint("b", tensors))
        >>> found.permutations["0"], found.squared_distance
        (array([7, 6, 5, 4, 3, 2, 1, 0]), 0.0)
    """
    if isinstance(network, ModelObjective):
        with network_at_theta(network) as lent:  # with nothing kept that cannot be copied, such as activations
            model = copy.deepcopy(lent)
    else:
        model = network
    structure = structure_of(model, checked=inputs is not None or isinstance(network, ModelObjective))
    before, target = (_loaded(model, checkpoint) for checkpoint in (checkpoint_b, checkpoint_a))
    a, b = _weights(target), _weights(before)
    permutations, sweeps = _ascend(structure, a, b, generator_or_new(generator))

    tensors = {
        name: structure.permuted(name, value, permutations) if isinstance(value, Tensor) else value
        for name, value in Checkpoint.of(before).tensors.items()  # by the network's names, whatever the file's are
    }
    matched = Checkpoint(f"{checkpoint_b.name}-matched", tensors, checkpoint_b.metadata)
    after = _loaded(model, matched)
    _check_permuted(structure, before, after, permutations)
    return Matching(
        checkpoint=matched,
        permutations={layer: order.numpy() for layer, order in permutations.items()},
        squared_distance_before=_squared_distance(a, b),
        squared_distance=_squared_distance(a, _weights(after)),
        sweeps=sweeps,
        output_change=_output_change(network, inputs, before, after),
    )


def _loaded(model: nn.Module, checkpoint: Checkpoint) -> nn.Module:
    """A copy with the checkpoint's weights, on the CPU."""
    copied = copy.deepcopy(model).cpu().eval()
    checkpoint.load_into(copied)
    for name, parameter in copied.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ValueError(
                f"checkpoint {checkpoint.name!r} is not finite in {name!r}: give one that has not diverged"
            )
    return copied


def _check_permuted(
    structure: Structure, before: nn.Module, after: nn.Module, permutations: Mapping[str, Tensor]
) -> None:
    """Raise ValueError unless ``after`` has all tensors permuted: a network may override ``state_dict``."""
    found = _tensors(after)
    for name, tensor in _tensors(before).items():
        if not equal(structure.permuted(name, tensor, permutations), found[name]):
            raise ValueError(
                f"the state_dict of {type(before).__name__} does not keep {name} in another order, so no checkpoint of "
                "it can hold hidden units in the order of another: give a network that does not override state_dict"
            )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().double() for name, parameter in model.named_parameters()}


def _squared_distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(float((a[name] - b[name]).square().sum()) for name in a)


def _ascend(
    structure: Structure, a: Mapping[str, Tensor], b: Mapping[str, Tensor], generator: torch.Generator
) -> tuple[dict[str, Tensor], int]:
    """The permutations at a local optimum, and the number of sweeps."""
    layers = list(structure.units)
    permutations = {layer: torch.arange(units) for layer, units in structure.units.items()}
    origin = {name: torch.zeros_like(weight) for name, weight in a.items()}
    rounding = _ROUNDING * math.sqrt(_squared_distance(a, origin) * _squared_distance(b, origin))
    sweeps, changed = 0, True
    while changed:
        sweeps, changed = sweeps + 1, False
        for i in torch.randperm(len(layers), generator=generator).tolist():
            products = _products(structure, layers[i], a, b, permutations)
            places, best = linear_sum_assignment(products, maximize=True)
            gain = (products[places, best] - products[places, permutations[layers[i]]]).sum()
            if gain > rounding:
                permutations[layers[i]] = torch.from_numpy(best)
                changed = True
    return permutations, sweeps


def _products(
    structure: Structure,
    layer: str,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    permutations: dict[str, Tensor],
) -> np.ndarray:
    """<weights of unit i of a, weights of unit j of b> for one layer, (units, units); the others are permuted."""
    units = structure.units[layer]
    total = torch.zeros(units, units, dtype=torch.float64)
    for name, axes in structure.axes.items():
        for axis in axes:
            if axis.layer == layer and name in a:  # buffers follow, and do not count
                moved = structure.permuted(name, b[name], permutations, skip=layer)
                rows = (tensor.movedim(axis.dim, 0).reshape(units, -1) for tensor in (a[name], moved))
                total += next(rows) @ next(rows).T
    return total.numpy()


@torch.no_grad()
def _output_change(network: nn.Module | ModelObjective, inputs: Any, before: nn.Module, after: nn.Module) -> float:
    """The largest difference of the outputs, relative to the largest output; ValueError if it exceeds rounding."""
    if inputs is not None:
        outputs = [model(_first_examples(inputs)) for model in (before, after)]
    elif isinstance(network, ModelObjective):
        few = _first_examples(network._batches[0][0])
        outputs = [network._evaluation.forward(model, few) for model in (before, after)]
    else:
        return math.nan
    z, moved = (torch.cat(_flatten_outputs(each)).double() for each in outputs)
    change = float((moved - z).abs().max()) / (float(z.abs().max()) or 1.0)
    # another order of summation moves last digits, which the layers may enlarge; a wrong permutation moves the first
    if not change <= math.sqrt(torch.finfo(next(before.parameters()).dtype).eps):
        raise ValueError(
            f"the permuted network's outputs differ by {change:.1e} of the largest: its forward does something with "
            "hidden units that its traced graph does not show, or its outputs are not finite"
        )
    return change


def _first_examples(item: Any) -> Any:
    """The first examples of a batch, on the CPU."""
    if isinstance(item, Tensor):
        return item[:_CHECKED].cpu()
    if isinstance(item, Mapping):
        return {key: _first_examples(value) for key, value in item.items()}
    return tuple(_first_examples(value) for value in item) if isinstance(item, tuple) else item


def _flatten_outputs(item: Any) -> list[Tensor]:
    """All tensors in a network's outputs, flattened."""
    if isinstance(item, Tensor):
        return [item.flatten()]
    items = item.values() if isinstance(item, Mapping) else item if isinstance(item, list | tuple) else ()
    return [flat for each in items for flat in _flatten_outputs(each)]
