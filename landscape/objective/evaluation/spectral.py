"""Spectral normalisation away from the weights that its vectors belong to.

A layer W / sigma, sigma = u'W v, keeps u and v, the leading singular vectors of W by power iterations in training. At
other weights they can be kept, as in evaluation mode, or found again. Between two networks only the latter makes sense:
averaged vectors are those of no matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["find_vectors", "spectral_layers"]


def spectral_layers(modules: Iterable[nn.Module]) -> dict[nn.Module, Callable[[], None]]:
    """The modules that hold vectors, each with what finds them again, called while the network is lent."""
    found: dict[nn.Module, Callable[[], None]] = {}
    for module in modules:
        for hook in module._forward_pre_hooks.values() if hasattr(module, "_forward_pre_hooks") else ():
            if type(hook).__name__ == "SpectralNorm":
                found[module] = _of_hook(module, hook)
        for parametrizations in getattr(module, "parametrizations", {}).values() if _parametrized(module) else ():
            for i, each in enumerate(parametrizations):
                if isinstance(each, nn.utils.parametrizations._SpectralNorm) and i == 0:
                    found[each] = _of_parametrization(parametrizations, each)
    return found


@torch.no_grad()
def find_vectors(layers: Mapping[nn.Module, Callable[[], None]]) -> None:
    """Those of the weights as they are."""
    for again in layers.values():
        again()


def _parametrized(module: nn.Module) -> bool:
    return isinstance(getattr(module, "parametrizations", None), nn.ModuleDict)


def _of_hook(module: nn.Module, hook: Any) -> Callable[[], None]:
    def again() -> None:
        matrix = hook.reshape_weight_to_matrix(getattr(module, f"{hook.name}_orig"))
        _leading(matrix, getattr(module, f"{hook.name}_u"), getattr(module, f"{hook.name}_v"))

    return again


def _of_parametrization(parametrizations: Any, norm: Any) -> Callable[[], None]:
    def again() -> None:
        weight = parametrizations.original
        if weight.dim() > 1:  # a vector is divided by its norm
            _leading(norm._reshape_weight_to_matrix(weight), norm._u, norm._v)

    return again


def _leading(matrix: Tensor, u: Tensor, v: Tensor) -> None:
    """The leading singular vectors of ``matrix`` into u and v, by the smaller of its two Gram matrices."""
    wide = matrix.double() if matrix.device.type != "mps" else matrix
    tall = wide.shape[0] >= wide.shape[1]
    gram = wide.T @ wide if tall else wide @ wide.T
    leading = torch.linalg.eigh(gram).eigenvectors[:, -1]
    other = wide @ leading if tall else wide.T @ leading
    other = other / other.norm().clamp_min(torch.finfo(wide.dtype).tiny)
    left, right = (other, leading) if tall else (leading, other)
    if float(left @ u.to(left)) < 0:  # as near as may be to what was there
        left, right = -left, -right
    u.copy_(left)
    v.copy_(right)
