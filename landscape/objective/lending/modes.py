"""How modules are set while they are lent: their mode, and tricks of training that are none of f's."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["EMBEDDINGS", "has_mode", "mode_of", "settings_of"]

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
# never in training mode, since BatchNorm, dropout and spectral normalisation have policies of their own
_IN_EVALUATION = (
    nn.modules.batchnorm._NormBase,
    nn.modules.dropout._DropoutNd,
    nn.utils.parametrizations._SpectralNorm,
    nn.RReLU,
)


def has_mode(module: nn.Module) -> bool:
    """Whether it is one of torch's that does something else in training mode."""
    return isinstance(module, (*_IN_EVALUATION, nn.RNNBase, nn.MultiheadAttention))


def mode_of(module: nn.Module, training: bool) -> bool:
    """Whether the module is in training mode in a network that is so or not."""
    hooks = getattr(module, "_forward_pre_hooks", {}).values()
    own = isinstance(module, _IN_EVALUATION) or any(type(hook).__name__ == "SpectralNorm" for hook in hooks)
    return training and not own


def settings_of(module: nn.Module) -> dict[str, Any]:
    """Attributes that the module has while it is lent, whatever its own are."""
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return {"dropout": 0.0}
    if isinstance(module, _PARALLEL):
        # replicas, and the reducer's hooks on the user's own parameters, have no part in an analysis
        return {"forward": module.module}
    if isinstance(module, EMBEDDINGS):
        # sparse gradients have no second derivative, scaled ones are no derivative
        return {"sparse": False, "scale_grad_by_freq": False}
    return {}
