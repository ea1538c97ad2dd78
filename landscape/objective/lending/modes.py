"""The mode of modules while they are lent, and overrides of attributes that matter in training only."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["EMBEDDINGS", "attribute_overrides", "has_mode", "training_mode"]

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
# never in training mode: other options control BatchNorm, dropout and spectral normalisation
_ALWAYS_EVAL = (
    nn.modules.batchnorm._NormBase,
    nn.modules.dropout._DropoutNd,
    nn.utils.parametrizations._SpectralNorm,
    nn.RReLU,
)


def has_mode(module: nn.Module) -> bool:
    """Whether it is a module of torch that behaves differently in training mode."""
    return isinstance(module, (*_ALWAYS_EVAL, nn.RNNBase, nn.MultiheadAttention))


def training_mode(module: nn.Module, training: bool) -> bool:
    """Whether to put the module into training mode, given that of the network."""
    hooks = getattr(module, "_forward_pre_hooks", {}).values()
    own = isinstance(module, _ALWAYS_EVAL) or any(type(hook).__name__ == "SpectralNorm" for hook in hooks)
    return training and not own


def attribute_overrides(module: nn.Module) -> dict[str, Any]:
    """Attributes that replace the module's own while it is lent."""
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return {"dropout": 0.0}
    if isinstance(module, _PARALLEL):
        # no replicas, and no hooks of the reducer on the user's own parameters
        return {"forward": module.module}
    if isinstance(module, EMBEDDINGS):
        # sparse gradients have no second derivative, and scaled gradients are not the derivative
        return {"sparse": False, "scale_grad_by_freq": False}
    return {}
