"""The axes of a network's tensors that index its hidden units, and so may be permuted together.

The units of a hidden layer are dimension 0 of its weight and bias and of the BatchNorm after it, and dimension 1 of the
weight of the layer that they feed. Activations, dropout and pooling act on each unit separately. After flattening, a
unit is a block of neighbouring features: the positions of its channel. The units are propagated through the network's
graph (``torch.fx``); an operation on hidden units that is not known to commute with their permutation raises an error
that names it, since a permutation might change the function.
"""

from __future__ import annotations

import copy
import operator
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

__all__ = ["Axis", "Structure", "structure_of"]

_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}  # with their numbers of spatial dimensions
_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
# layers, and functions or methods by name, that act on each entry or on each channel separately
_ENTRY_LAYERS = {
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid, nn.Mish),
    *(nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, nn.Threshold, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
}
_ENTRY_FUNCTIONS = {
    *("celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish", "relu"),
    *("relu_", "relu6", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh", "contiguous"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"),
}
_CHANNEL_LAYERS = {
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
}
_CHANNEL_FUNCTIONS = {
    f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for d in _CONVOLUTIONS.values()
}


@dataclass(frozen=True)
class Axis:
    """Dimension ``dim`` of a tensor indexes the units of ``layer``, each as ``block`` neighbouring entries."""

    layer: str
    dim: int
    block: int = 1


@dataclass(frozen=True)
class Structure:
    """The hidden units of a network, and the dimensions that index them."""

    units: dict[str, int]  # hidden layer -> how many units it has
    axes: dict[str, list[Axis]]  # parameter or buffer -> its dimensions that index hidden units

    def permuted(
        self, name: str, tensor: Tensor, permutations: Mapping[str, Tensor], *, skip: str | None = None
    ) -> Tensor:
        """The tensor with unit ``permutations[layer][i]`` at place i, for all layers except ``skip``."""
        for axis in self.axes.get(name, ()):
            if axis.layer != skip:
                order = permutations[axis.layer][:, None] * axis.block + torch.arange(axis.block)
                tensor = tensor.index_select(axis.dim, order.flatten().to(tensor.device))
        return tensor


@dataclass(frozen=True)
class _Units:
    """The units of a hidden layer in a tensor of the graph, always along dimension 1."""

    layer: str
    spatial: int  # dimensions after that one; 0 where the units are features
    blocks: bool = False  # whether a unit may be several neighbouring features, after flattening


def structure_of(network: nn.Module, *, checked: bool) -> Structure:
    """Find the hidden units of a multilayer perceptron or plain convolutional network.

    Args:
        network: a network of Linear, Conv and BatchNorm layers in sequence.
        checked: whether the outputs of a permuted network will be compared, so that a length in its forward, as in
            ``x.view(-1, 400)``, may be assumed to be the number of features of one example.

    Raises:
        ValueError: it has no hidden units, cannot be traced, or has a layer or operation that is not covered, which is
            named.
    """
    network = copy.deepcopy(network).eval()  # tracing calls its forward
    shared = _shared(network)
    if shared:
        raise ValueError(f"the parameters {shared} are one tensor: weight matching does not cover shared parameters")
    try:
        graph = fx.Tracer().trace(network)
    except Exception as cause:  # a forward may fail in any way on symbols
        raise ValueError(
            f"{type(network).__name__} cannot be traced by torch.fx ({cause}): weight matching needs a forward without "
            "branches on its data"
        ) from cause
    found = _UnitPropagation(network, graph, checked)
    for node in graph.nodes:
        found.visit(node)
    if not found.units:
        raise ValueError(f"{type(network).__name__} has no hidden layer: there is nothing to permute")
    return Structure(found.units, dict(found.axes))


def _shared(network: nn.Module) -> list[str]:
    """The names of the first parameter that has several names."""
    names = defaultdict(list)
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return next((each for each in names.values() if len(each) > 1), [])


class _UnitPropagation:
    """Propagates the units of each hidden layer through the graph, node by node."""

    def __init__(self, network: nn.Module, graph: fx.Graph, checked: bool) -> None:
        self._checked = checked
        self.units: dict[str, int] = {}
        self.axes: dict[str, list[Axis]] = defaultdict(list)
        self._modules = dict(network.named_modules())
        self._parameters = {name for name, _ in network.named_parameters()}
        self._units_of: dict[fx.Node, _Units] = {}  # other nodes have no hidden units: inputs, outputs and sizes
        self._called: set[str] = set()
        self._hidden: set[fx.Node] = set()  # nodes that a later layer with weights depends on
        for node in reversed(graph.nodes):
            if any(user in self._hidden or self._has_weights(user) for user in node.users):
                self._hidden.add(node)

    def visit(self, node: fx.Node) -> None:
        sources = [self._units_of[source] for source in node.all_input_nodes if source in self._units_of]
        if node.op == "get_attr" and node.target in self._parameters:
            _refuse(f"the parameter {node.target!r}", "it is used outside a layer")
        if node.op == "output" and sources:
            _refuse(f"layer {sources[0].layer!r}", "its hidden units are also an output of the network")
        if len(sources) > 1:
            layers = " and ".join(repr(units.layer) for units in sources)
            _refuse(f"operation {_name(node)!r}", f"it joins the hidden units of layers {layers}")
        units = sources[0] if sources else None
        if node.op == "call_module":
            units = self._after_module(node, units)
        elif units is not None:
            units = self._after_function(node, units)
        if units is not None:
            self._units_of[node] = units

    def _has_weights(self, node: fx.Node) -> bool:
        return node.op == "call_module" and type(self._module(node)) in {nn.Linear, *_CONVOLUTIONS}

    def _module(self, node: fx.Node) -> Any:
        return self._modules[str(node.target)]

    def _after_module(self, node: fx.Node, units: _Units | None) -> _Units | None:
        module, name = self._module(node), str(node.target)
        what, kind = f"layer {name!r} ({type(module).__name__})", type(module)
        own = {tensor for tensor, _ in (*module.named_parameters(), *module.named_buffers())}
        if own and name in self._called:
            _refuse(what, "it is called twice")
        self._called.add(name)
        if self._has_weights(node) and own <= {"weight", "bias"}:
            return self._after_weights(node, what, units)
        if kind in _NORMS:
            if units is not None:
                block = self._block(what, module.num_features, units)
                for tensor in ("weight", "bias", "running_mean", "running_var"):
                    if getattr(module, tensor) is not None:
                        self.axes[f"{name}.{tensor}"].append(Axis(units.layer, 0, block))
            return units
        if own:
            _refuse(what, "only Linear, Conv and BatchNorm layers may have parameters or buffers")
        if units is None or kind in _ENTRY_LAYERS:
            return units
        if kind in _CHANNEL_LAYERS and units.spatial:
            return units
        if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            return _flattened(units)
        _refuse(what, f"it acts on the hidden units of layer {units.layer!r}")

    def _after_weights(self, node: fx.Node, what: str, units: _Units | None) -> _Units | None:
        module, name = self._module(node), str(node.target)
        spatial = _CONVOLUTIONS.get(type(module), 0)
        if getattr(module, "groups", 1) != 1:
            _refuse(what, f"it has groups={module.groups}")
        if units is not None:
            if units.spatial != spatial:
                _refuse(what, f"the units of layer {units.layer!r} have {units.spatial} spatial dimensions before it")
            block = self._block(what, module.in_channels if spatial else module.in_features, units)
            self.axes[f"{name}.weight"].append(Axis(units.layer, 1, block))
        if node not in self._hidden:
            return None
        self.units[name] = module.out_channels if spatial else module.out_features
        for tensor in ("weight", "bias"):
            if getattr(module, tensor) is not None:
                self.axes[f"{name}.{tensor}"].append(Axis(name, 0))
        return _Units(name, spatial)

    def _block(self, what: str, features: int, units: _Units) -> int:
        """The number of features of each unit."""
        block, rest = divmod(features, self.units[units.layer])
        if rest or not block or (block > 1 and not units.blocks):
            _refuse(what, f"its {features} features are not the {self.units[units.layer]} units of {units.layer!r}")
        return block

    def _after_function(self, node: fx.Node, units: _Units) -> _Units | None:
        name = _name(node)
        if name in {"size", "dim"} or (name == "getattr" and node.args[1] == "shape"):
            return None  # numbers, which no permutation changes
        if name in _ENTRY_FUNCTIONS or (name in _CHANNEL_FUNCTIONS and units.spatial):
            return units
        if name == "flatten" and _arguments(node, start_dim=0, end_dim=-1) == [1, -1]:
            return _flattened(units)
        if name in {"view", "reshape"}:
            shape: Any = (*node.args[1:], *node.kwargs.values())
            shape = shape[0] if len(shape) == 1 and isinstance(shape[0], list | tuple) else shape
            if len(shape) == 2 and (isinstance(shape[0], int) or _are_examples(shape[0])):
                # a shape of two numbers does not show that a row is an example, unless its length is unchanged
                unchanged = not units.spatial and not units.blocks and shape[1] == self.units[units.layer]
                if isinstance(shape[0], int) and not (unchanged or self._checked):
                    _refuse(
                        f"operation {name!r} on the hidden units of layer {units.layer!r}",
                        f"its shape {shape} does not say whether its rows are examples, so write "
                        f"{name}(x.size(0), -1), or give inputs on which to see it",
                    )
                return _flattened(units)
        if name == "mean" and units.spatial:
            over, kept = _arguments(node, dim=(), keepdim=False)
            dims = {d % (units.spatial + 2) for d in ([over] if isinstance(over, int) else over or ())}
            if dims == set(range(2, units.spatial + 2)):
                return units if kept else _Units(units.layer, 0)
        _refuse(f"operation {name!r}", f"it acts on the hidden units of layer {units.layer!r}")


def _flattened(units: _Units) -> _Units:
    return _Units(units.layer, 0, blocks=True) if units.spatial else units


def _are_examples(length: Any) -> bool:
    """Whether an entry of a shape is the length of dimension 0."""
    return (
        isinstance(length, fx.Node)
        and length.args[1:] == (0,)
        and (length.target == "size" or length.target is operator.getitem)
    )


def _name(node: fx.Node) -> str:
    """The name of a torch function or tensor method; of other functions, with their module."""
    if isinstance(node.target, str):
        return node.target
    name = node.target.__name__
    if node.target in (getattr(torch, name, None), getattr(nn.functional, name, None), getattr):
        return name
    return f"{node.target.__module__}.{name}"


def _arguments(node: fx.Node, **defaults: Any) -> list[Any]:
    """The arguments of a function of a tensor, without the tensor."""
    given = dict(zip(defaults, node.args[1:], strict=False)) | node.kwargs
    return [given.get(name, default) for name, default in defaults.items()]


def _refuse(what: str, why: str) -> NoReturn:
    raise ValueError(
        f"{what} is not covered by weight matching: {why}. It covers chains of Linear, Conv and BatchNorm layers with "
        "activations, pooling, dropout and flattening between them"
    )
