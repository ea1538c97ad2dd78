"""A training loop whose budget is counted in gradients.

A step of SGD spends one mini-batch gradient, a step of Entropy-SGD L of them. Optimizers are
compared fairly when they spend the same number of gradients, so that is the unit of the budget and of
the learning-rate schedule. The loop counts the closure's calls; what an optimizer says that a step costs
only decides how many steps fit.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optim.batch_norm import hold_running_statistics
from optim.batches import Batches, Data
from optim.evaluation import Criterion, accuracy_of, evaluate
from optim.run import Run

__all__ = ["TrainingRecord", "constant", "cosine", "train"]


@dataclass(frozen=True)
class TrainingRecord:
    """What was trained, what it spent and what it reached."""

    optimizer: str
    settings: dict[str, Any]  # the optimizer's defaults
    seed: int  # of the generator that shuffled the examples
    batch_size: int | None  # None where the data came in batches
    gradients: int  # mini-batch gradients spent
    steps: int  # optimizer steps taken
    seconds: float
    train: dict[str, float]  # loss, and accuracy for classifiers
    test: dict[str, float]  # likewise

    def metadata(self) -> dict[str, Any]:
        """The record as JSON-able values, for a checkpoint's header."""
        return asdict(self)


def constant(fraction: float) -> float:
    """Learning-rate factor 1 at every fraction of the budget."""
    return 1.0


def cosine(fraction: float) -> float:
    """Learning-rate factor (1 + cos(pi * fraction)) / 2: 1 at the start of the budget, 0 at its end."""
    return (1 + math.cos(math.pi * fraction)) / 2


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Criterion,
    train_data: Data,
    test_data: Data,
    *,
    gradients: int,
    generator: torch.Generator,
    batch_size: int = 128,
    schedule: Callable[[float], float] = constant,
    hold_batch_norm: bool = True,
    run: str | Path | None = None,
    save_every: int = 500,
    evaluate_every: int | None = None,
    trajectory_every: int | None = None,
    progress: Callable[..., Iterable[int]] = lambda steps, description: steps,
) -> TrainingRecord:
    """Train ``model`` in place until the next step would spend more than ``gradients`` gradients.

    Args:
        model: the network, on the device where it is to be trained.
        optimizer: any whose ``step`` takes a closure. Where it has them, ``gradients_per_step`` says what a step
            spends (else one gradient), and ``same_batch`` whether all closure calls of a step are to see one
            mini-batch, as SAM's must (else each sees a fresh one, as Entropy-SGD's must).
        loss: ``loss(outputs, targets)``, a mean over the batch.
        train_data: a pair of tensors ``(inputs, targets)``, shuffled anew each epoch into batches of ``batch_size``;
            or an iterable of such batches, read again and again (a DataLoader).
        test_data: likewise, for evaluation only.
        gradients: the budget, in mini-batch gradients.
        generator: of the shuffling; it also seeds dropout.
        batch_size: examples per gradient, for a pair of tensors.
        schedule: factor of the learning rate by the fraction of the budget spent.
        hold_batch_norm: whether BatchNorm's running statistics are left alone by the steps, whose gradients may be
            taken elsewhere than at the weights that are kept. Either way they are gathered anew to evaluate.
        run: a folder for the log, the trajectory and what it takes to go on; a run found there is gone on with.
        save_every: gradients between two states kept there.
        evaluate_every: gradients between two evaluations in the log.
        trajectory_every: gradients between two weights kept there.
        progress: called as ``progress(steps, description)``; ``tqdm.tqdm`` fits, and is shown the mini-batch loss and
            accuracy, and gamma.

    Returns:
        A TrainingRecord; its losses and accuracies are of the whole data in evaluation mode.

    Raises:
        ValueError: a budget below one step; empty data; a run of other settings.
        FloatingPointError: the loss stopped being finite.
    """
    per_step = getattr(optimizer, "gradients_per_step", 1)
    name = type(optimizer).__name__
    if gradients < per_step:
        raise ValueError(
            f"gradients={gradients}: one step of {name} spends {per_step}, so give a budget of at least that"
        )
    if isinstance(test_data, tuple) and len(test_data[1]) == 0:
        raise ValueError("test_data is empty: give at least one example")
    seed = generator.initial_seed()
    settings = {k: v for k, v in optimizer.defaults.items() if isinstance(v, int | float | bool | str)}
    loop = _Loop(model, optimizer, loss, Batches(train_data, batch_size, generator))
    folder = None
    if run is not None:
        signature = {
            "optimizer": name,
            **settings,
            "gradients": gradients,
            "batch_size": batch_size,
            "seed": seed,
            "network": str([(key, tuple(value.shape)) for key, value in model.state_dict().items()]),
            "train_data": _digest(train_data),
        }
        folder = Run(run, signature)
    rates = [group["lr"] for group in optimizer.param_groups]

    # dropout draws from the global generators only: lend them a seed, then give them back as they were
    with torch.random.fork_rng(devices=[loop.device] if loop.device.type == "cuda" else []):
        torch.manual_seed(seed)
        if folder and (state := folder.load()):
            loop.load_state_dict(state)
        elif folder and trajectory_every:
            folder.snapshot(model, 0)
        try:
            bar = progress(range(loop.steps, gradients // per_step), name)
            for _ in bar:
                if loop.spent + loop.last_cost > gradients:
                    break
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * schedule(loop.spent / gradients)
                before = loop.spent
                line = loop.step(hold_batch_norm)

                def due(every: int | None, before: int = before) -> bool:
                    return every is not None and loop.spent // every > before // every

                if hasattr(bar, "set_postfix"):
                    bar.set_postfix(loop.shown(line), refresh=False)
                if folder is None:
                    continue
                if due(evaluate_every):
                    for split, data in (("train", train_data), ("test", test_data)):
                        found = evaluate(model, loss, data, calibration=train_data)
                        line |= {f"{split}_{key}": value for key, value in found.items()}
                if due(trajectory_every):
                    folder.snapshot(model, loop.spent)
                folder.log(line)
                if due(save_every):
                    folder.save(loop.state_dict())
            if folder:
                folder.save(loop.state_dict())
        finally:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
    reached = {
        split: evaluate(model, loss, data, calibration=train_data)
        for split, data in (("train", train_data), ("test", test_data))
    }
    if not math.isfinite(reached["train"]["loss"]):
        raise FloatingPointError(f"the training loss is {reached['train']['loss']} at the end: lower the learning rate")
    return TrainingRecord(
        optimizer=name,
        settings=settings,
        seed=seed,
        batch_size=batch_size if isinstance(train_data, tuple) else None,
        gradients=loop.spent,
        steps=loop.steps,
        seconds=loop.seconds,
        **reached,
    )


class _Loop:
    """The state of a training loop: what a step changes, and what must be kept to go on from there."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Criterion, batches: Batches) -> None:
        self.model, self.optimizer, self.loss, self.batches = model, optimizer, loss, batches
        self.device = next(model.parameters()).device
        self.spent = self.steps = 0
        self.last_cost = 1
        self.seconds = 0.0
        self._same_batch = getattr(optimizer, "same_batch", False)
        self._batch: tuple[Tensor, Tensor] | None = None
        self._outputs: tuple[Tensor, Tensor] | None = None  # of the last closure call, with its targets

    def step(self, hold_batch_norm: bool) -> dict[str, Any]:
        """One optimizer step; returns what the log says of it."""
        start, before = time.perf_counter(), self.spent
        self.model.train()
        self._batch = None
        with hold_running_statistics(self.model) if hold_batch_norm else nullcontext():
            value = float(self.optimizer.step(self._closure))  # type: ignore[arg-type]  # a tensor serves
        self.steps += 1
        self.last_cost = self.spent - before
        self.seconds += time.perf_counter() - start
        rate = self.optimizer.param_groups[0]["lr"]
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} after {self.spent} gradients of {type(self.optimizer).__name__} with "
                f"lr={rate}: lower the learning rate"
            )
        return {
            "step": self.steps,
            "loss": value,
            "lr": rate,
            **(getattr(self.optimizer, "diagnostics", None) or {}),
            "gradients": self.spent,
        }

    def _closure(self) -> Tensor:
        if self._batch is None or not self._same_batch:
            inputs, targets = next(self.batches)
            self._batch = inputs.to(self.device), targets.to(self.device)
        inputs, targets = self._batch
        self.optimizer.zero_grad()
        outputs = self.model(inputs)
        value = self.loss(outputs, targets)
        value.backward()
        self.spent += 1
        self._outputs = outputs.detach(), targets
        return value.detach()

    def shown(self, line: dict[str, Any]) -> dict[str, str]:
        """For a progress bar."""
        shown = {"loss": f"{line['loss']:.3f}"}
        if self._outputs is not None and not math.isnan(accuracy := accuracy_of(*self._outputs)):
            shown["accuracy"] = f"{accuracy:.2f}"
        if "gamma" in (group := self.optimizer.param_groups[0]):
            shown["gamma"] = f"{group['gamma']:.1e}"
        return shown

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "spent": self.spent,
            "steps": self.steps,
            "last_cost": self.last_cost,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batches"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        self.spent, self.steps, self.last_cost = state["spent"], state["steps"], state["last_cost"]
        self.seconds = state["seconds"]


def _digest(data: Data) -> str:
    """SHA-256 of a pair of tensors; an iterable has none, and its runs cannot be gone on with anyway."""
    sha = hashlib.sha256()
    for tensor in data if isinstance(data, tuple) else ():
        sha.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
