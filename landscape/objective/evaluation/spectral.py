"""Spectral normalisation at other weights than those its vectors were computed for.

A layer W / sigma, sigma = u'W v, stores u and v, the leading singular vectors of W, found by power iteration during
training. At other weights they can be kept, as in evaluation mode, or computed again. Between two networks they have
to be computed again, since averaged vectors are not singular vectors of any matrix on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["compute_vectors", "spectral_layers"]


def spectral_layers(modules: Iterable[nn.Module]) -> dict[nn.Module, Callable[[], None]]:
    """The modules with spectral normalisation, each with a function that recomputes u and v while it is lent."""
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
def compute_vectors(layers: Mapping[nn.Module, Callable[[], None]]) -> None:
    """Recompute u and v of all layers at the current weights."""
    for recompute in layers.values():
        recompute()


def _parametrized(module: nn.Module) -> bool:
    return isinstance(getattr(module, "parametrizations", None), nn.ModuleDict)


def _of_hook(module: nn.Module, hook: Any) -> Callable[[], None]:
    def recompute() -> None:
        matrix = hook.reshape_weight_to_matrix(getattr(module, f"{hook.name}_orig"))
        _set_leading_vectors(matrix, getattr(module, f"{hook.name}_u"), getattr(module, f"{hook.name}_v"))

    return recompute


def _of_parametrization(parametrizations: Any, norm: Any) -> Callable[[], None]:
    def recompute() -> None:
        weight = parametrizations.original
        if weight.dim() > 1:  # a vector is divided by its norm
            _set_leading_vectors(norm._reshape_weight_to_matrix(weight), norm._u, norm._v)

    return recompute


def _set_leading_vectors(matrix: Tensor, u: Tensor, v: Tensor) -> None:
    """Write the leading singular vectors of ``matrix`` into u and v, from the smaller of its two Gram matrices."""
    wide = matrix.double() if matrix.device.type != "mps" else matrix
    tall = wide.shape[0] >= wide.shape[1]
    gram = wide.T @ wide if tall else wide @ wide.T
    leading = torch.linalg.eigh(gram).eigenvectors[:, -1]
    other = wide @ leading if tall else wide.T @ leading
    other = other / other.norm().clamp_min(torch.finfo(wide.dtype).tiny)
    left, right = (other, leading) if tall else (leading, other)
    if float(left @ u.to(left)) < 0:  # keep the sign of the previous vectors
        left, right = -left, -right
    u.copy_(left)
    v.copy_(right)
