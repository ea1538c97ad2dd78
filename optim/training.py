"""A training loop whose budget is counted in gradients.

A step of SGD spends one mini-batch gradient, a step of Entropy-SGD L of them. Optimizers are
compared fairly when they spend the same number of gradients, so that is the unit of the budget and of
the learning-rate schedule. The loop counts the closure's calls; it trusts no optimizer's word.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["TrainingRecord", "constant", "cosine", "evaluate", "train"]

Data = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]
Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrainingRecord:
    """What was trained, what it spent and what it reached."""

    optimizer: str
    settings: dict[str, Any]  # the optimizer's defaults
    seed: int  # of the generator that shuffled the examples
    batch_size: int
    gradients: int  # mini-batch gradients spent
    steps: int  # optimizer steps taken
    seconds: float
    train: dict[str, float]  # loss, accuracy
    test: dict[str, float]  # loss, accuracy

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
    progress: Callable[..., Iterable[int]] = lambda steps, description: steps,
) -> TrainingRecord:
    """Train ``model`` in place until the next step would spend more than ``gradients`` gradients.

    Args:
        model: the network, on the device where it is to be trained.
        optimizer: any whose ``step`` takes a closure. It spends ``optimizer.gradients_per_step``
            gradients a step where it has that attribute (Entropy-SGD), else one.
        loss: ``loss(outputs, targets)``, a mean over the batch.
        train_data: a pair of tensors ``(inputs, targets)``, shuffled anew each epoch into batches of
            ``batch_size``; or an iterable of such batches, read again and again (a DataLoader).
        test_data: likewise, for evaluation only.
        gradients: the budget, in mini-batch gradients.
        generator: of the shuffling; it also seeds dropout.
        batch_size: examples per gradient, for a pair of tensors.
        schedule: factor of the learning rate by the fraction of the budget spent.
        progress: called as ``progress(steps, description)``; ``tqdm.tqdm`` fits.

    Returns:
        A TrainingRecord; its losses and accuracies are of the whole data in evaluation mode, with
        BatchNorm statistics recomputed on the training data first, as the paper does.

    Raises:
        ValueError: a budget below one step; empty data.
        FloatingPointError: the loss stopped being finite.
    """
    per_step = getattr(optimizer, "gradients_per_step", 1)
    if gradients < per_step:
        raise ValueError(
            f"gradients={gradients}: one step of {type(optimizer).__name__} spends {per_step}, "
            "so give a budget of at least that"
        )
    seed = generator.initial_seed()
    device = next(model.parameters()).device
    batches = _endless_batches(train_data, batch_size, generator)
    rates = [group["lr"] for group in optimizer.param_groups]
    spent = 0

    def closure() -> Tensor:
        nonlocal spent
        inputs, targets = next(batches)
        optimizer.zero_grad()
        value = loss(model(inputs.to(device)), targets.to(device))
        value.backward()
        spent += 1
        return value.detach()

    start = time.perf_counter()
    steps = gradients // per_step
    name = type(optimizer).__name__
    model.train()
    # dropout draws from the global generators only: lend them a seed, then give them back as they were
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for _ in progress(range(steps), name):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(spent / gradients)
            value = float(optimizer.step(closure))  # type: ignore[arg-type]  # a tensor serves as a float
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss is {value} after {spent} gradients of {name} with "
                    f"lr={rates[0]}: lower the learning rate"
                )
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    seconds = time.perf_counter() - start
    refresh_batch_norm(model, train_data)
    return TrainingRecord(
        optimizer=name,
        settings={k: v for k, v in optimizer.defaults.items() if isinstance(v, int | float | bool)},
        seed=seed,
        batch_size=batch_size,
        gradients=spent,
        steps=steps,
        seconds=seconds,
        train=evaluate(model, loss, train_data),
        test=evaluate(model, loss, test_data),
    )


@torch.no_grad()
def evaluate(model: nn.Module, loss: Criterion, data: Data) -> dict[str, float]:
    """Mean loss and accuracy over all of ``data``, in evaluation mode; the mode is then put back."""
    device = next(model.parameters()).device
    mode = model.training
    model.eval()
    total, correct, examples = 0.0, 0, 0
    for inputs, targets in _batches(data):
        outputs, targets = model(inputs.to(device)), targets.to(device)
        total += float(loss(outputs, targets)) * len(targets)
        correct += int((outputs.argmax(1) == targets).sum())
        examples += len(targets)
    model.train(mode)
    return {"loss": total / examples, "accuracy": correct / examples}


@torch.no_grad()
def refresh_batch_norm(model: nn.Module, data: Data) -> None:
    """Recompute BatchNorm's running statistics at the present weights, with dropout off.

    Training leaves them as an average over past weights, for Entropy-SGD even over the inner iterates x'.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    device = next(model.parameters()).device
    mode = model.training
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    for inputs, _ in _batches(data):
        model(inputs.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(mode)


def _batches(data: Data, size: int = 1024) -> Iterable[tuple[Tensor, Tensor]]:
    """The data once, in order."""
    if isinstance(data, tuple):
        inputs, targets = data
        return zip(inputs.split(size), targets.split(size), strict=True)
    return data


def _endless_batches(data: Data, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch; a pair of tensors is shuffled at the start of each."""
    while True:
        if isinstance(data, tuple):
            inputs, targets = data
            order = torch.randperm(len(targets), generator=generator)
            epoch: Iterable[tuple[Tensor, Tensor]] = (
                (inputs[i], targets[i]) for i in order.split(size) if len(i) > 0
            )
        else:
            epoch = data
        count = 0
        for count, batch in enumerate(epoch, start=1):  # noqa: B007
            yield batch
        if count == 0:
            raise ValueError("train_data is empty: give at least one example")
