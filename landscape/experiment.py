"""One problem trained by several optimizers that spend the same number of gradients.

This is where ``landscape`` and ``optim`` meet; the analyses know nothing of how a checkpoint came about.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.checkpoints import Checkpoint, load_checkpoint
from landscape.problems import Problem
from landscape.progress import Progress, silent
from optim import EntropyAdam, EntropySGD, train
from optim.checkpoint import save_checkpoint
from optim.training import cosine

__all__ = ["OPTIMIZERS", "summary", "train_at_equal_budget"]


def _sgd(model: nn.Module, weight_decay: float, seed: int) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=weight_decay)


def _adam(model: nn.Module, weight_decay: float, seed: int) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=weight_decay)


def _entropy_sgd(model: nn.Module, weight_decay: float, seed: int) -> torch.optim.Optimizer:
    options = _inner_loop(seed)
    return EntropySGD(
        model.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=weight_decay, L=20, **options
    )


def _entropy_adam(model: nn.Module, weight_decay: float, seed: int) -> torch.optim.Optimizer:
    return EntropyAdam(model.parameters(), lr=1e-2, weight_decay=weight_decay, L=5, **_inner_loop(seed))


def _inner_loop(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "gamma": 1e-4,
        "scoping": 1e-3,
        "langevin_lr": 0.1,
        "noise": 1e-4,
        "diagnostics": True,
        "generator": generator,
    }


def _sam(model: nn.Module, weight_decay: float, seed: int) -> torch.optim.Optimizer:
    try:
        from pytorch_optimizer import SAM
    except ImportError as error:
        raise ValueError("optimizer='SAM' is pytorch_optimizer's: pip install pytorch_optimizer") from error

    class ClosureSAM(SAM):
        """SAM whose step takes its first gradient, too, from the closure, on the same mini-batch."""

        gradients_per_step = 2
        same_batch = True

        def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
            with torch.enable_grad():
                loss = closure()
            super().step(closure)  # type: ignore[arg-type]  # it takes a tensor
            return loss

    return ClosureSAM(
        model.parameters(),
        torch.optim.SGD,
        rho=0.05,
        lr=0.1,
        momentum=0.9,
        nesterov=True,
        weight_decay=weight_decay,
    )


# Entropy-SGD's settings are the paper's for MNIST, SGD's step is the inner loop's eta' = 0.1, and SAM's rho is that
# of Foret et al. 2021. None was tuned to win.
OPTIMIZERS: dict[str, Callable[[nn.Module, float, int], torch.optim.Optimizer]] = {
    "SGD": _sgd,
    "Entropy-SGD": _entropy_sgd,
    "Adam": _adam,
    "Entropy-Adam": _entropy_adam,
    "SAM": _sam,
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
    seeds: int = 1,
    progress: Progress = silent,
) -> list[Checkpoint]:
    """Train the network once per optimizer, from the same weights on the same order of examples.

    The budget is ``epochs`` passes over the data, counted in mini-batch gradients and rounded up to whole steps of
    all the optimizers: SGD takes as many steps, Entropy-SGD a twentieth of them. The learning rate falls to 0 along
    a cosine for all.

    Beside each checkpoint a folder of its name keeps the run's log, and what it takes to go on where it
    was killed.

    Args:
        problem: its training data must be a pair of tensors.
        folder: a checkpoint ``<optimizer>.safetensors`` is written for each, with several seeds
            ``<optimizer>-seed<seed>.safetensors``, unless it is there already from the same settings.
        optimizers: keys of ``OPTIMIZERS``.
        epochs: passes over the data.
        batch_size: examples per gradient.
        weight_decay: for all optimizers.
        seed: of the initial weights, the order of the examples, dropout and the Langevin noise.
        seeds: train once for each of so many seeds, from ``seed`` on.
        progress: called as ``progress(iterable, description)``; ``tqdm.tqdm`` fits.

    Returns:
        The checkpoints, named as their files; all seeds of one optimizer, then of the next.

    Raises:
        ValueError: an unknown optimizer; a checkpoint in ``folder`` from other settings.
    """
    for name in optimizers:
        if name not in OPTIMIZERS:
            raise ValueError(f"optimizer={name!r}: give one of {', '.join(OPTIMIZERS)}")
    if not isinstance(problem.train, tuple) or problem.loss is None:
        raise ValueError(
            f"problem {problem.name!r} has training data of type {type(problem.train).__name__} and the loss "
            f"{problem.loss}: training takes a pair of tensors (inputs, targets), so that all optimizers see them in "
            "the same order, and a loss(outputs, targets)"
        )
    costs = [
        getattr(OPTIMIZERS[name](problem.build(seed), weight_decay, seed), "gradients_per_step", 1)
        for name in optimizers
    ]
    # rounded up to whole steps of every optimizer, so that all spend the same to the gradient
    whole = math.lcm(*costs)
    gradients = whole * math.ceil(epochs * math.ceil(len(problem.train[1]) / batch_size) / whole)
    checkpoints = []
    for name in optimizers:
        for each in range(seed, seed + seeds):
            path = Path(folder) / f"{name if seeds == 1 else f'{name}-seed{each}'}.safetensors"
            recipe: dict[str, Any] = {
                "problem": problem.name,
                "recipe": name,
                "epochs": epochs,
                "batch_size": batch_size,
                "weight_decay": weight_decay,
                "seed": each,
            }
            if path.exists():
                _check_recipe(path, recipe)
            else:
                model = problem.build(each)
                record = train(
                    model,
                    OPTIMIZERS[name](model, weight_decay, each),
                    problem.loss,
                    problem.train,
                    problem.test,
                    gradients=gradients,
                    batch_size=batch_size,
                    generator=torch.Generator().manual_seed(each),
                    schedule=cosine,
                    run=path.with_suffix(""),
                    evaluate_every=max(1, gradients // 20),
                    progress=lambda steps, _, path=path: progress(steps, f"train {path.stem}"),
                )
                save_checkpoint(path, model, {**recipe, **record.metadata()})
            checkpoints.append(load_checkpoint(path))
    return checkpoints


def summary(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """A line per optimizer: gradients spent, and test loss and accuracy as mean ± standard deviation over seeds."""
    lines = []
    for name in dict.fromkeys(c.metadata["recipe"] for c in checkpoints):
        runs = [c.metadata for c in checkpoints if c.metadata["recipe"] == name]
        shown = f"{name:12} {runs[0]['gradients']} gradients, {len(runs)} seed{'s' * (len(runs) > 1)}"
        for key in runs[0]["test"]:
            values = [run["test"][key] for run in runs]
            spread = f" ± {statistics.stdev(values):.4f}" if len(runs) > 1 else ""
            shown += f", test {key} {statistics.mean(values):.4f}{spread}"
        lines.append(shown)
    return lines


def _check_recipe(path: Path, recipe: dict[str, Any]) -> None:
    found = load_checkpoint(path).metadata
    changed = [key for key, value in recipe.items() if found.get(key) != value]
    if changed:
        raise ValueError(
            f"{str(path)!r} was trained with another {', '.join(changed)}: overwrite it or give another folder"
        )
