"""Sentences about how a network and its loss are evaluated: what is fixed, switched off, or converted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from landscape.objective.evaluation.loss import reduction_of
from landscape.objective.mean_loss import MeanLoss

__all__ = ["AttentionCalls", "notes_on"]


def notes_on(f: MeanLoss) -> list[str]:
    """One sentence for each change."""
    return [*f.load_notes, *_of_wrappers(f._evaluation.network.modules), *_of_modules(f), *_of_tensors(f), *_of_f(f)]


def _of_wrappers(modules: list[nn.Module]) -> list[str]:
    notes = []
    if any(map(_is_compiled, modules)):
        notes.append("compiled code runs eagerly, since its backward pass cannot be differentiated")
    if any(isinstance(m, nn.DataParallel | nn.parallel.DistributedDataParallel) for m in modules):
        notes.append("the module inside DataParallel or DistributedDataParallel is evaluated, in this process alone")
    if any(isinstance(m, torch.jit.ScriptModule) for m in modules):
        notes.append("parts are TorchScript: of their attributes only parameters and buffers are restored")
    return notes


def _of_modules(f: MeanLoss) -> list[str]:
    modules = f._evaluation.network.modules
    dropout = sum(_dropout_rate(m) > 0 for m in modules)
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules)
    recurrent = sum(isinstance(m, nn.RNNBase) for m in modules)
    notes = []
    if dropout:
        notes.append(f"dropout is off in {dropout} layers")
    if norms:
        notes.append(f"BatchNorm is {f.batch_norm!r} in {norms} layers, whatever mode the network was in")
    if f._evaluation.spectral:
        kept = "recomputed at every theta" if f.batch_norm == "recalibrated" else "kept, as in evaluation mode"
        notes.append(f"the vectors of spectral normalisation are {kept}, in {len(f._evaluation.spectral)} layers")
    if recurrent:
        notes.append(f"cuDNN is off for {recurrent} recurrent layers, as its kernels have no second derivative")
    if any(getattr(m, "sparse", False) is True for m in modules if isinstance(m, nn.Embedding | nn.EmbeddingBag)):
        notes.append("embeddings have dense gradients here, as sparse ones have no second derivative")
    return notes


def _of_tensors(f: MeanLoss) -> list[str]:
    notes = []
    if f._evaluation.network.converted:
        notes.append(f"the network and its data are evaluated in {f.dtype}")
    theirs = {id(p) for p in f._evaluation.network.model.parameters()}
    own = [p for m in f._evaluation.network.modules for p in m.parameters(recurse=False) if id(p) not in theirs]
    if own:
        count = sum(p.numel() for p in {id(p): p for p in own}.values())
        notes.append(f"{count} parameters of the loss, which are not the network's, are kept fixed")
    for name, row in f._evaluation.inspection.padding_rows.items():
        notes.append(f"row {row} of {name}, its padding_idx, is kept fixed, since it has no gradient")
    if f._evaluation.kernels.has_substitutes:
        notes.append("forward reads parameters from outside its modules, where those of the objective are substituted")
    if updated := f._evaluation.network.mutated_buffers:
        notes.append(
            f"{updated} buffers are updated in forward: every evaluation starts from the values of the checkpoint"
        )
    if f._evaluation.mutates_batches:
        notes.append("forward writes into its batch: every evaluation gets a copy")
    return notes


def _of_f(f: MeanLoss) -> list[str]:
    notes = []
    if reduction_of(f._evaluation.loss) == "sum":
        notes.append("the loss is a sum, divided by the number of examples")
    if f.whole_batches:
        notes.append(f"f is defined on these {len(f._batches)} batches: the loss is evaluated on each as a whole")
    if f.noise is not None:
        notes.append("random numbers are the same at every evaluation: f is defined for these and for these batches")
    if f.mode == "train":
        notes.append("the network is in training mode, except for normalisation and dropout")
    return notes


def _is_compiled(module: nn.Module) -> bool:
    if "torch._dynamo" not in sys.modules:
        return False
    own = vars(module).get("forward")
    return (
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(own, "_torchdynamo_orig_callable")
    )


def _dropout_rate(module: nn.Module) -> float:
    """The dropout probability of a layer."""
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return module.dropout
    return module.p if isinstance(module, nn.modules.dropout._DropoutNd) else 0.0


class AttentionCalls(TorchFunctionMode):
    """Counts the calls of fused attention in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += function is nn.functional.scaled_dot_product_attention
        return function(*args, **(kwargs or {}))

    def notes(self) -> list[str]:
        """A note if there were any calls."""
        if not self.count:
            return []
        return ["attention runs under torch's MATH kernel, as the fused ones have no second derivative"]
