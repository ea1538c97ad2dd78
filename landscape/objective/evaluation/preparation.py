"""From the user's arguments to batches in the fastest size and memory format, with all checks of network and loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from landscape.objective.data.batches import Batches, can_be_split, rows_of
from landscape.objective.data.layout import channels_last
from landscape.objective.data.parts import batch_kind, select
from landscape.objective.data.reading import is_pair, read_batches
from landscape.objective.evaluation.batch_loss import Evaluation
from landscape.objective.evaluation.batch_norm import POLICIES
from landscape.objective.evaluation.folding import foldable
from landscape.objective.evaluation.generators import preserve_rng_state
from landscape.objective.evaluation.kernels import with_graph
from landscape.objective.evaluation.loss import check_call, check_mean
from landscape.objective.evaluation.memory import DEFAULT_MICRO_BATCH, micro_batch_size

__all__ = ["check_options", "prepare"]


def check_options(batch_norm: str, batch_size: int | str, graph_memory: int | str, noise: Any, mode: str) -> None:
    """Check the values of the options.

    Raises:
        ValueError: an unknown value.
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


def _first_examples(batch: Any) -> Any:
    """The first few examples of a batch; all of it if it cannot be split."""
    return select(batch, torch.arange(min(8, rows_of(batch) or 0))) if can_be_split(batch) else batch


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
    """The batches of the data and of the calibration data; arguments as in ModelObjective.

    Raises:
        TypeError, ValueError: as ModelObjective, for data and loss.
    """
    network = evaluation.network
    # data are converted to another dtype if the network is
    read = partial(
        read_batches,
        device=network.flat.device,
        dtype=network.dtype if network.converted else None,
        count=evaluation.count,
    )
    size: int | None = batch_size if isinstance(batch_size, int) else None if whole else DEFAULT_MICRO_BATCH
    batches = read(data, size)
    evaluation.reset_seen(batches)
    first = batches[0][0]
    check_call(evaluation.loss, first)
    if evaluation.count is None and not whole:
        check_mean(evaluation.loss, batches)
    with preserve_rng_state():
        evaluation.inspect(first, frozen=frozen)
        if not (whole or frozen):
            kinds = {batch_kind(evaluation.check_mean([batch for batch, _ in batches]))}
        if batch_norm == "batch":
            network.use_batch_statistics(evaluation.norms)
        elif batch_size == "auto" and is_pair(data) and not whole:
            size = micro_batch_size(evaluation.loss_on, *batches[0], network.flat)
            batches = read(data, size)
        if batch_norm != "batch":
            evaluation.folds = foldable(
                network, evaluation.running, evaluation.loss_while_lent, _first_examples(batches[0][0])
            )
        batches = channels_last(batches, network, evaluation.folds, evaluation.loss_on, _first_examples)
        evaluation.reset_seen(batches)  # which also frees the batches that were used for checks only
    if not (whole or frozen or batch_norm == "batch"):
        evaluation.seen.checked_kinds = kinds
    return batches, batches if calibration is None else read(calibration, size)
