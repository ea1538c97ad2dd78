"""BatchNorm under optimizers that look at the loss in other places than the weights they keep.

During a step of Entropy-SGD (or SAM) the network runs at x', so running statistics gathered then are those of no
network that is kept. They are held during the step, and gathered anew before every evaluation, as the paper does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim.swa_utils import update_bn

__all__ = ["hold_running_statistics", "refresh_batch_norm"]


def refresh_batch_norm(model: nn.Module, loader: Iterable[Any]) -> None:
    """Gather BatchNorm's running statistics anew at the present weights, with dropout off.

    Batches weigh by their number of examples, where ``update_bn`` alone weighs all alike.

    Args:
        model: its mode is put back as it was.
        loader: batches, either inputs or tuples that begin with them; they are moved to the model's device.
    """
    modes = {module: module.training for module in model.modules()}
    device = next((p.device for p in model.parameters()), None)
    update_bn(loader, _OnlyNormsTrain(model), device=device)
    for module, mode in modes.items():
        module.training = mode


class _OnlyNormsTrain(nn.Module):
    """``update_bn`` asks for training mode; only BatchNorm gets it, dropout does not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen = 0

    def train(self, mode: bool = True) -> _OnlyNormsTrain:
        self.model.eval()
        for norm in _norms(self.model):
            norm.train(mode)
        return self

    def forward(self, inputs: Any) -> Any:
        self.seen += len(inputs)
        for norm in _norms(self.model):  # running <- running + momentum (batch's - running)
            norm.momentum = len(inputs) / self.seen
        return self.model(inputs)


@contextmanager
def hold_running_statistics(model: nn.Module) -> Iterator[None]:
    """Within, training mode normalises by each batch but leaves the running statistics alone."""
    norms = _norms(model)
    kept = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # running <- (1 - 0) running + 0 batch
    try:
        yield
    finally:
        for norm, (momentum, seen) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(seen)


def _norms(model: nn.Module) -> list[Any]:
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
