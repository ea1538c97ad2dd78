"""From what the user gives to batches laid out as is fastest, with the network's treatment of them looked at."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from landscape.objective.data.batches import can_be_split, rows_of
from landscape.objective.data.layout import channels_last
from landscape.objective.data.parts import kind_of, taken
from landscape.objective.data.reading import is_pair, read_batches
from landscape.objective.evaluation.batch_loss import Evaluation
from landscape.objective.evaluation.batch_norm import POLICIES
from landscape.objective.evaluation.folding import foldable
from landscape.objective.evaluation.generators import generators_kept
from landscape.objective.evaluation.kernels import with_graph
from landscape.objective.evaluation.loss import check_call, check_mean
from landscape.objective.evaluation.memory import USUAL, examples_at_once

__all__ = ["check_options", "prepare"]

Batches = list[tuple[Any, float]]


def check_options(batch_norm: str, batch_size: int | str, graph_memory: int | str, noise: Any, mode: str) -> None:
    """Refuse unknown ones.

    Raises:
        ValueError: one is.
    """
    if batch_norm not in POLICIES:
        raise ValueError(f"batch_norm={batch_norm!r}: give one of {POLICIES}")
    if batch_size != "auto" and (isinstance(batch_size, str) or batch_size < 1):
        raise ValueError(f"batch_size={batch_size!r}: give a number of examples, at least 1, or 'auto'")
    if graph_memory != "auto" and (isinstance(graph_memory, str) or graph_memory < 0):
        raise ValueError(f"graph_memory={graph_memory!r}: give a number of bytes, 0 or more, or 'auto'")
    if noise not in (None, "frozen"):
        raise ValueError(f"noise={noise!r}: give 'frozen', or None to have random networks refused")
    if mode not in ("eval", "train"):
        raise ValueError(f"mode={mode!r}: give 'eval', or 'train' for losses that exist in training mode only")


def _few(batch: Any) -> Any:
    """Some of its examples, where a look is all that is asked for."""
    return taken(batch, torch.arange(min(8, rows_of(batch) or 0))) if can_be_split(batch) else batch


@with_graph
def prepare(
    evaluation: Evaluation,
    data: Any,
    calibration: Any,
    batch_size: int | str,
    batch_norm: str,
    *,
    whole: bool,
    frozen: bool,
) -> tuple[Batches, Batches]:
    """The batches of the data and of the calibration; arguments as ModelObjective has them.

    Raises:
        TypeError, ValueError: as ModelObjective does of data and loss.
    """
    network = evaluation.network
    # what conversion the network undergoes, its data do as well
    read = partial(
        read_batches,
        device=network.flat.device,
        dtype=network.dtype if network.converted else None,
        count=evaluation.count,
    )
    together: int | None = batch_size if isinstance(batch_size, int) else None if whole else USUAL
    batches = read(data, together)
    evaluation.meet_anew(batches)
    first = batches[0][0]
    check_call(evaluation.loss, first)
    if evaluation.count is None and not whole:
        check_mean(evaluation.loss, batches)
    with generators_kept():
        evaluation.examine(first, frozen=frozen)
        if not (whole or frozen):
            kinds = {kind_of(evaluation.check_mean([batch for batch, _ in batches]))}
        if batch_norm == "batch":
            network.take_batch_statistics(evaluation.norms)
        elif batch_size == "auto" and is_pair(data) and not whole:
            together = examples_at_once(evaluation.loss_on, *batches[0], network.flat)
            batches = read(data, together)
        if batch_norm != "batch":
            evaluation.folds = foldable(network, evaluation.running, evaluation.loss_while_lent, _few(batches[0][0]))
        batches = channels_last(batches, network, evaluation.folds, evaluation.loss_on, _few)
        evaluation.meet_anew(batches)  # and let go of those that were only looked at
    if not (whole or frozen or batch_norm == "batch"):
        evaluation.met.means = kinds
    return batches, batches if calibration is None else read(calibration, together)
