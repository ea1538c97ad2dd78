"""One problem trained by several optimizers that spend the same number of gradients.

This is where ``landscape`` and ``optim`` meet; the analyses know nothing of how a checkpoint came about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape.checkpoints import Checkpoint, load_checkpoint
from landscape.problems import Problem
from landscape.progress import Progress, silent
from optim import EntropySGD, train
from optim.checkpoint import save_checkpoint
from optim.training import cosine

__all__ = ["OPTIMIZERS", "train_at_equal_budget"]


def _sgd(model: nn.Module, weight_decay: float, seed: int) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=weight_decay)


def _entropy_sgd(model: nn.Module, weight_decay: float, seed: int) -> torch.optim.Optimizer:
    return EntropySGD(
        model.parameters(),
        lr=1.0,
        momentum=0.9,
        nesterov=True,
        weight_decay=weight_decay,
        L=20,
        gamma=1e-4,
        scoping=1e-3,
        langevin_lr=0.1,
        noise=1e-4,
        generator=torch.Generator().manual_seed(seed),
    )


# Entropy-SGD's settings are the paper's for MNIST. SGD's step is the inner loop's, eta' = 0.1.
OPTIMIZERS: dict[str, Callable[[nn.Module, float, int], torch.optim.Optimizer]] = {
    "SGD": _sgd,
    "Entropy-SGD": _entropy_sgd,
}


def train_at_equal_budget(
    problem: Problem,
    folder: str | Path,
    *,
    optimizers: Sequence[str] = ("SGD", "Entropy-SGD"),
    epochs: int = 200,
    batch_size: int = 128,
    weight_decay: float = 1e-3,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Checkpoint]:
    """Train the network once per optimizer, from the same weights on the same order of examples.

    The budget is ``epochs`` passes over the data, counted in mini-batch gradients: SGD takes as many
    steps, Entropy-SGD a twentieth of them. The learning rate falls to 0 along a cosine for all.

    Args:
        problem: its training data must be a pair of tensors.
        folder: a checkpoint ``<optimizer>.safetensors`` is written for each, unless it is there
            already from the same settings.
        optimizers: keys of ``OPTIMIZERS``.
        epochs: passes over the data.
        batch_size: examples per gradient.
        weight_decay: for all optimizers.
        seed: of the initial weights, the order of the examples, dropout and the Langevin noise.
        progress: called as ``progress(iterable, description)``; ``tqdm.tqdm`` fits.

    Returns:
        The checkpoints, named after the optimizers.

    Raises:
        ValueError: an unknown optimizer; a checkpoint in ``folder`` from other settings.
    """
    for name in optimizers:
        if name not in OPTIMIZERS:
            raise ValueError(f"optimizer={name!r}: give one of {', '.join(OPTIMIZERS)}")
    if not isinstance(problem.train, tuple):
        raise ValueError(
            f"problem {problem.name!r} has training data of type {type(problem.train).__name__}: give a pair "
            "of tensors (inputs, targets), so that all optimizers can see them in the same order"
        )
    gradients = epochs * math.ceil(len(problem.train[1]) / batch_size)
    checkpoints = []
    for name in optimizers:
        path = Path(folder) / f"{name}.safetensors"
        recipe: dict[str, Any] = {
            "problem": problem.name,
            "recipe": name,
            "epochs": epochs,
            "batch_size": batch_size,
            "weight_decay": weight_decay,
            "seed": seed,
        }
        if path.exists():
            _check_recipe(path, recipe)
        else:
            model = problem.build(seed)
            record = train(
                model,
                OPTIMIZERS[name](model, weight_decay, seed),
                problem.loss,
                problem.train,
                problem.test,
                gradients=gradients,
                batch_size=batch_size,
                generator=torch.Generator().manual_seed(seed),
                schedule=cosine,
                progress=lambda steps, _, name=name: progress(steps, f"train {name}"),
            )
            save_checkpoint(path, model, {**recipe, **record.metadata()})
        checkpoints.append(load_checkpoint(path))
    return checkpoints


def _check_recipe(path: Path, recipe: dict[str, Any]) -> None:
    found = load_checkpoint(path).metadata
    changed = [key for key, value in recipe.items() if found.get(key) != value]
    if changed:
        raise ValueError(
            f"{str(path)!r} was trained with another {', '.join(changed)}: overwrite it or give "
            "another folder"
        )
