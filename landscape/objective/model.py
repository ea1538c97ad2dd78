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

    It owns its weights and buffers and borrows the network's code: while f is evaluated, its tensors stand in the
    user's modules, which are as before afterwards, whatever happens. Two objectives over one network may take turns;
    two threads may not. The network is in evaluation mode, so dropout is off.

    When it is made, one micro-batch is evaluated a few times: the loss must follow theta, be the same twice, and be the
    mean of its parts. ``docs/your_network.md`` says what is taken, what is refused, and the option for each.

    Args:
        model: the network. Parameters with ``requires_grad=False`` stay fixed. With ``params``, a function
            ``model(params, *inputs)`` of a dictionary of tensors.
        loss: a criterion of ``torch.nn`` or ``torch.nn.functional`` (or any ``nn.Module``), called as
            ``loss(outputs, targets)`` for batches ``(inputs, targets)`` or inputs alone, which then are the targets; or
            any other callable, called as ``loss(outputs, batch)``; or None for outputs that are or carry their own
            ``.loss`` (Hugging Face). It must be a mean over the batch's examples; ``reduction="sum"`` is divided by
            their number. Modules that it is or refers to are owned like the network, their parameters fixed.
        data: a pair of tensors ``(inputs, targets)``, or an iterable of batches (a DataLoader), read once and kept.
        forward: ``forward(model, batch) -> outputs``. Default: ``model(inputs)`` for a tuple or tensor,
            ``model(**batch)`` for a mapping.
        batch_size: examples evaluated at once when ``data`` is a pair of tensors. ``"auto"``: as many as hold 16 MB in
            a forward pass (about a CPU's caches; 1 GB on a GPU), or up to 128 that hold no more than 512 MB. Always 128
            with ``batch_norm="batch"``.
        batch_norm: ``"frozen"`` keeps the running statistics, ``"recalibrated"`` gathers them, and the vectors of
            spectral normalisation, again at every theta (derivatives hold them fixed), ``"batch"`` uses each batch's.
        calibration: the data on which they are gathered again, for test losses the training data. Default: ``data``.
        weight_decay: adds weight_decay/2 ||theta||^2 to f.
        graph_memory: bytes that ``hvp`` and ``gnvp`` may each hold of the graphs of their first backward passes, which
            makes every product after the first at the same theta 1.5 to 2 times faster. 0 keeps none. Default: a
            quarter of the memory that is free when the first product is asked for.
        count: how many examples a batch weighs, a function of the batch. Default: its tensors' common first dimension.
        whole_batches: takes each batch as it is and never splits it, for losses of a batch as such: f then belongs to
            these batches. A pair of tensors is one batch, or as ``batch_size`` says.
        noise: ``"frozen"`` has each batch evaluated with the same random numbers. None refuses networks that draw some.
        mode: ``"eval"``, or ``"train"`` for losses that exist in training mode only. BatchNorm is as ``batch_norm``
            says and dropout off in both.
        dtype: in which all is evaluated. Default: the network's own, or float32 where that is half precision.
        params: the tensors of a network that is a function; trainable are those that require gradients, or all floating
            ones if none does.

    Attributes:
        theta: the weights of ``model`` when this was made, shape (n,).
        space: the names and shapes that theta is made of.
        examples: the number of examples in ``data``.
        told: what was done to the checkpoint that it is at, to make its names and dtypes fit.
        held: the entries of theta that autograd holds fixed, as rows of an embedding's ``padding_idx``: whatever theta
            says, f has them at the network's own.

    Raises:
        TypeError: ``model``, ``loss`` or ``data`` is of no kind that is taken.
        ValueError: no trainable parameter; empty data; parameters of several dtypes or devices; a loss
            that does not follow theta, is not the same twice, or is no mean over examples; an unknown option.

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
        """What is done to the network and its data, and what of them is held fixed, in sentences."""
        return tuple(notes_on(self))

    def preflight(self, generator: torch.Generator | None = None) -> Preflight:
        """What stands in the way of second derivatives here, and one product checked by other means.

        Raises:
            ValueError: the network cannot be differentiated twice.
        """
        return preflight(self, generator or torch.Generator().manual_seed(0))
