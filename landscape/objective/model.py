"""A user's network, loss and data as one function f of the flat vector theta."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from landscape.objective.evaluation.batch_loss import Evaluation
from landscape.objective.evaluation.preparation import check_options, prepare
from landscape.objective.functional import as_module
from landscape.objective.mean_loss import MeanLoss
from landscape.objective.notes import notes_on
from landscape.objective.preflight import Preflight, preflight

__all__ = ["ModelObjective"]


class ModelObjective(MeanLoss):
    """The mean loss of a network over data, as an Objective.

    It owns copies of the weights and buffers and uses the network's code: while f is evaluated, its tensors replace
    those in the user's modules, which are restored afterwards, also after an error. Two objectives may share one
    network, but not in two threads at the same time. The network is in evaluation mode, so dropout is off.

    The constructor evaluates one micro-batch a few times, to check that the loss depends on theta in every tensor, is
    deterministic, and is a mean over examples. ``docs/your_network.md`` lists what is accepted, what is refused, and
    the option for each case.

    Args:
        model: the network. Parameters with ``requires_grad=False`` stay fixed. With ``params``, a function
            ``model(params, *inputs)`` of a dictionary of tensors.
        loss: a criterion of ``torch.nn`` or ``torch.nn.functional`` (or any ``nn.Module``), called as
            ``loss(outputs, targets)`` for batches ``(inputs, targets)`` or inputs alone, which then are the targets; or
            any other callable, called as ``loss(outputs, batch)``; or None if the outputs are the loss or have it as
            ``.loss`` (Hugging Face). It must be a mean over the batch's examples; ``reduction="sum"`` is divided by
            their number. Modules in it are copied like the network, with their parameters fixed.
        data: a pair of tensors ``(inputs, targets)``, or an iterable of batches (a DataLoader), read once and stored.
        forward: ``forward(model, batch) -> outputs``. Default: ``model(inputs)`` for a tuple or tensor,
            ``model(**batch)`` for a mapping.
        batch_size: examples per micro-batch when ``data`` is a pair of tensors. ``"auto"``: as many as save 16 MB in a
            forward pass (about a CPU's caches; 1 GB on a GPU), or up to 128 that save no more than 512 MB. Always 128
            with ``batch_norm="batch"``.
        batch_norm: ``"frozen"`` keeps the running statistics, ``"recalibrated"`` computes them, and the vectors of
            spectral normalisation, again at every theta (derivatives treat them as constants), ``"batch"`` uses those
            of each batch.
        calibration: the data for ``"recalibrated"``, for test losses the training data. Default: ``data``.
        weight_decay: adds weight_decay/2 ||theta||^2 to f.
        graph_memory: bytes of graphs of first backward passes that ``hvp`` and ``gnvp`` may each cache, which makes
            every product after the first at the same theta 1.5 to 2 times faster. 0 caches none. Default: a quarter of
            the memory that is free at the first product.
        count: a function of a batch that returns its weight in the mean. Default: its number of examples, the first
            dimension that its tensors have in common.
        whole_batches: never splits a batch, for losses that are not a mean over examples: f then depends on these
            batches. A pair of tensors is one batch, or batches of ``batch_size``.
        noise: ``"frozen"`` evaluates each batch with the same random numbers. None refuses networks that draw any.
        mode: ``"eval"``, or ``"train"`` for losses that exist in training mode only. In both, BatchNorm follows
            ``batch_norm`` and dropout is off.
        dtype: of all floating tensors. Default: that of the network, or float32 if that is half precision.
        params: the tensors of a network that is a function; trainable are those that require gradients, or all floating
            ones if none does.

    Attributes:
        theta: the weights of ``model`` when the objective was made, shape (n,).
        space: the names and shapes of the tensors in theta.
        examples: the number of examples in ``data``.
        load_notes: what was done to fit the names and dtypes of the checkpoint it is at, in sentences.
        fixed_entries: indices of the entries of theta to which autograd gives no gradient, as the rows of an
            embedding's ``padding_idx``: f ignores theta there and uses the network's own values.

    Raises:
        TypeError: ``model``, ``loss`` or ``data`` is of an unsupported type.
        ValueError: no trainable parameter; empty data; parameters of several dtypes or devices; a loss
            that does not depend on theta, is not deterministic, or is not a mean over examples; an unknown option.

    Example:
        The mean squared error (w - 3)^2 of a model that outputs w:

        >>> model = nn.Linear(1, 1, bias=False)
        >>> f = ModelObjective(model, nn.MSELoss(), (torch.ones(4, 1), torch.full((4, 1), 3.0)))
        >>> w = torch.tensor([5.0])
        >>> f.value(w), f.gradient(w), f.hvp(w, torch.ones(1))
        (4.0, tensor([4.]), tensor([2.]))
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        loss: Callable[..., Tensor] | None,
        data: Any,
        *,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        batch_size: int | str = "auto",
        batch_norm: str = "frozen",
        calibration: Any = None,
        weight_decay: float = 0.0,
        graph_memory: int | str = "auto",
        count: Callable[[Any], Any] | None = None,
        whole_batches: bool = False,
        noise: str | None = None,
        mode: str = "eval",
        dtype: torch.dtype | None = None,
        params: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_options(batch_norm, batch_size, graph_memory, noise, mode)
        evaluation = Evaluation(
            model if params is None else as_module(model, params),  # type: ignore[arg-type]
            loss,
            forward=forward,
            count=count,
            frozen_noise=noise == "frozen",
            training=mode == "train",
            dtype=dtype,
        )
        frozen = noise is not None
        batches, calibrating = prepare(
            evaluation, data, calibration, batch_size, batch_norm, whole=whole_batches, frozen=frozen
        )
        super().__init__(
            evaluation,
            batches,
            calibrating,
            weight_decay=weight_decay,
            batch_norm=batch_norm,
            graph_memory=graph_memory,
            whole_batches=whole_batches,
            noise=noise,
            mode=mode,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What is changed in the network and its data, and what is held fixed, in sentences."""
        return tuple(notes_on(self))

    def preflight(self, generator: torch.Generator | None = None) -> Preflight:
        """Find obstacles to second derivatives, and check one Hessian-vector product by an independent method.

        Raises:
            ValueError: the network cannot be differentiated twice.
        """
        return preflight(self, generator or torch.Generator().manual_seed(0))
