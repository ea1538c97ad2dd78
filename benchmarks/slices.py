"""The cost of planes of the loss, compared with a plain loop, loss-landscapes and Landscaper.

    python benchmarks/slices.py MNIST --landscaper PYTHON    # the folder with MNIST's four IDX files
    python benchmarks/slices.py MNIST --tried                # alternatives that were rejected

In each round each package evaluates the same plane by its own function: 5 x 5 points (LeNet) or 3 x 3 (ResNet-20)
represent the 21 x 21 of a plot. Micro-batches are of 128, the fastest size for the plain loop and so for the other
packages; ours uses its default, and 256 in a further row. "Forward" is the time of the user's network in micro-batches
of 128, without a loss and without changing the weights. The truth is the network in float64 at each point. All
processes keep freed memory.

Landscaper scales each tensor of a direction to the norm sqrt(numel), and the whole to the norm of theta, so all
packages get such directions. It needs NumPy 1.26, so PYTHON is the interpreter of another environment; the network is
passed through a file written by torch.fx, with the same modules and calls.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import loss_landscapes
import numpy as np
import torch
from elsewhere import elsewhere
from networks import medians, resnet20, trained_digits_mlp, trained_lenet
from torch import Tensor, nn

from landscape import ModelObjective, plane, random_direction

STEP = 0.1  # of the directions
BATCH = 128


@dataclass(frozen=True)
class Square:
    """A network, its data, and the plane through it that all packages evaluate."""

    points: int  # a side; an odd number, so that the middle is theta
    model: nn.Module
    data: tuple[Tensor, Tensor]
    theta: Tensor
    d1: Tensor
    d2: Tensor

    @classmethod
    def of(cls, points: int, model: nn.Module, data: tuple[Tensor, Tensor]) -> Square:
        generator = torch.Generator().manual_seed(0)
        tensors = [p.detach() for p in model.parameters()]
        theta = torch.cat([t.flatten() for t in tensors])
        directions = []
        for _ in range(2):
            pieces = [torch.randn(t.numel(), generator=generator) for t in tensors]
            d = torch.cat([piece * len(piece) ** 0.5 / piece.norm() for piece in pieces])
            directions.append(d * theta.norm() / d.norm())
        return cls(points, model, data, theta, *directions)

    @property
    def coordinates(self) -> np.ndarray:
        return STEP * np.arange(-(self.points // 2), self.points // 2 + 1)

    def at(self, a: float, b: float, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A new network there."""
        model = copy.deepcopy(self.model).to(dtype)
        theta, d1, d2 = (part.to(dtype) for part in (self.theta, self.d1, self.d2))
        nn.utils.vector_to_parameters(theta + a * d1 + b * d2, model.parameters())
        return model

    def truth(self) -> np.ndarray:
        x, y = self.data
        data = (x.double(), y)
        t = self.coordinates
        return np.array([[mean_loss(self.at(a, b, torch.float64), data, BATCH) for b in t] for a in t])


@torch.no_grad()
def mean_loss(network: Callable[[Tensor], Tensor], data: tuple[Tensor, Tensor], batch: int) -> float:
    """In micro-batches."""
    x, y = data
    parts = zip(x.split(batch), y.split(batch), strict=True)
    return sum(float(torch.nn.functional.cross_entropy(network(u), v)) * len(v) for u, v in parts) / len(y)


@torch.no_grad()
def forward(square: Square) -> None:
    for _ in range(square.points**2):
        for x in square.data[0].split(BATCH):
            square.model(x)


def plain_loop(square: Square) -> Callable[[], np.ndarray]:
    model, t = copy.deepcopy(square.model), square.coordinates

    def loss(a: float, b: float) -> float:
        nn.utils.vector_to_parameters(square.theta + a * square.d1 + b * square.d2, model.parameters())
        return mean_loss(model, square.data, BATCH)

    return lambda: np.array([[loss(a, b) for b in t] for a in t])


def ours(square: Square, batch_size: int | str = "auto") -> Callable[[], np.ndarray]:
    """The loss and the accuracy, their standard errors, and each class's accuracy."""
    f = ModelObjective(square.model, nn.CrossEntropyLoss(), square.data, batch_size=batch_size)
    t = square.coordinates
    return lambda: plane(f, square.theta, square.d1, square.d2, t, t).loss


def with_loss_landscapes(square: Square) -> Callable[[], np.ndarray]:
    """Its rows 1, 3, ... are shifted by a step: shifted back here, with NaN for the missing point."""
    middle = square.points // 2
    # it steps along the second direction before it measures
    corner = square.at(-STEP * middle, -STEP * (middle + 1))
    ends = square.at(STEP * (middle + 1), -STEP * (middle + 1)), square.at(-STEP * middle, STEP * middle)

    def losses() -> np.ndarray:
        found = loss_landscapes.planar_interpolation(
            corner,
            *ends,
            lambda wrapped: mean_loss(wrapped.forward, square.data, BATCH),
            steps=square.points,
            deepcopy_model=True,
        )
        found[1::2] = np.column_stack([found[1::2, 1:], np.full(square.points // 2, np.nan)])
        return found

    return losses


def keep_memory() -> None:
    """From here on this process gives freed memory back to itself alone, not to the system.

    Else each layer's outputs are paid for again, page by page, in one process more than in another, depending on what
    it did before: one and a half times the time on ResNet-20, or more.
    """
    import ctypes  # here, since Landscaper's process runs it too

    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, at its largest
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD


def landscaper_losses(model: nn.Module, data: object, batch: int, options: dict[str, object]) -> Callable[[], object]:
    """Landscaper's plane. It runs in Landscaper's environment."""
    import landscaper.compute

    keep_memory()
    return lambda: landscaper.compute.compute_loss_landscape(
        model, data, scalar_fn=lambda model, data: mean_loss(model, data, batch), device="cpu", **options
    )[0].tolist()


@contextmanager
def with_landscaper(square: Square, python: str) -> Iterator[Callable[[], np.ndarray]]:
    """Noise is added to its largest loss, which so becomes NaN."""
    shapes = [p.shape for p in square.model.parameters()]
    directions = [
        [piece.view(shape) for piece, shape in zip(d.split([s.numel() for s in shapes]), shapes, strict=True)]
        for d in (square.d1, square.d2)
    ]
    options = {"dirs": directions, "dim": 2, "steps": square.points, "distance": STEP * square.points / 2}
    given = (torch.fx.symbolic_trace(square.model), square.data, BATCH, options)
    with elsewhere(python, landscaper_losses, given, mean_loss, keep_memory) as ask:

        def losses() -> np.ndarray:
            found = np.array(ask())
            found[found == found.max()] = np.nan
            return found

        yield losses


def speeds(name: str, square: Square, rivals: dict[str, Callable[[], np.ndarray]], rounds: int) -> None:
    truth = square.truth()
    times = medians({"forward": partial(forward, square), **rivals}, rounds)
    for who, losses in {"forward": None, **rivals}.items():
        error = f"{np.nanmax(abs(losses() / truth - 1)):.0e}" if losses else ""
        speed, ratio = square.points**2 / times[who], times[who] / times["forward"]
        print(f"| {name} | {who} | {speed:.1f} | {ratio:.2f} | {error} |", flush=True)
    peers = [times[who] for who in rivals if who in ("loss-landscapes", "Landscaper")]
    for who in ("ours", "ours, 256 at once"):
        print(f"{who}: {min(peers) / times[who]:.2f} times the points per second of the faster peer", flush=True)


def race(name: str, square: Square, python: str | None, rounds: int) -> None:
    rivals = {
        "ours": ours(square),
        "ours, 256 at once": ours(square, batch_size=256),
        "plain loop": plain_loop(square),
        "loss-landscapes": with_loss_landscapes(square),
    }
    print("\n| network | by | points per second | forward | largest relative error |\n|---|---|---|---|---|")
    if python is None:
        speeds(name, square, rivals, rounds)
        return
    with with_landscaper(square, python) as landscaper:
        speeds(name, square, {**rivals, "Landscaper": landscaper}, rounds)


def adaptive(name: str, model: nn.Module, data: tuple[Tensor, Tensor], seeds: int) -> None:
    """Filter-normalised planes of 21 x 21 at tol = 1 %, compared with the full ones."""
    f = ModelObjective(model, nn.CrossEntropyLoss(), data)
    t = np.linspace(-1, 1, 21)
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        d1, d2 = (random_direction(f, f.theta, generator=generator) for _ in range(2))
        full = plane(f, f.theta, d1, d2, t, t, unit="filter")
        some = plane(f, f.theta, d1, d2, t, t, unit="filter", tol=0.01, generator=generator)
        error, held_out = (np.max(abs(some.loss - full.loss)), some.held_out_error) / np.ptp(full.loss)
        evaluations = int(some.evaluated.sum())
        print(
            f"| {name}, seed {seed} | {evaluations} | {full.loss.size / evaluations:.1f} | {100 * error:.2f} % | "
            f"{100 * held_out:.2f} % | {full.cost.seconds:.1f} s | {some.cost.seconds:.1f} s |",
            flush=True,
        )


def tried(name: str, model: nn.Module, data: tuple[Tensor, Tensor], rounds: int = 5) -> None:
    """Other methods to evaluate the loss at one point."""
    x, y = data
    f = ModelObjective(model, nn.CrossEntropyLoss(), data, batch_size=256)
    last = (x.to(memory_format=torch.channels_last), y)
    torch.compiler.config.force_disable_caches = True  # to measure the time of the first compilation
    compiled = torch.compile(copy.deepcopy(model).to(memory_format=torch.channels_last))
    half = copy.deepcopy(model).bfloat16()
    four = {k: torch.stack([v.detach()] * 4) for k, v in model.named_parameters()}
    buffers = dict(model.named_buffers())
    at_four = torch.vmap(
        lambda weights, u: torch.func.functional_call(model, {**buffers, **weights}, (u,)), in_dims=(0, None)
    )
    with torch.no_grad():
        first, rest = [model[0](part) for part in last[0].split(BATCH)], model[1:]

    @torch.no_grad()
    def first_layer_is_linear() -> float:
        """The first layer's outputs at theta + b d are those at theta plus b times those of d: one sum per point."""
        outputs = (rest(z.add(z, alpha=1e-9)) for z in first)
        return float(nn.functional.cross_entropy(torch.cat(list(outputs)), y))

    @torch.no_grad()
    def vmap_over_four() -> float:
        return float(nn.functional.cross_entropy(torch.cat([at_four(four, u)[0] for u in x.split(BATCH)]), y))

    def on_one_thread() -> float:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return f.value(f.theta)
        finally:
            torch.set_num_threads(threads)

    ways: dict[str, Callable[[], float]] = {
        "ours, 256 at once": lambda: f.value(f.theta),
        "the same on one thread": on_one_thread,
        "channels last alone": lambda: mean_loss(model, last, BATCH),
        "torch.compile, channels last": lambda: mean_loss(compiled, last, BATCH),
        "bfloat16": lambda: mean_loss(lambda u: half(u.bfloat16()).float(), last, BATCH),
        "vmap over 4 points": vmap_over_four,
        "first layer as a sum": first_layer_is_linear,
    }
    start = time.perf_counter()
    ways["torch.compile, channels last"]()
    print(f"compiling {name} took {time.perf_counter() - start:.0f} s", flush=True)
    print("\n| network | one point by | time | relative error |\n|---|---|---|---|")
    truth, times = ways["ours, 256 at once"](), medians(ways, rounds)
    for who, way in ways.items():
        seconds = times[who] / (4 if way is vmap_over_four else 1)
        print(f"| {name} | {who} | {1e3 * seconds:.0f} ms | {abs(way() / truth - 1):.0e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mnist", help="the folder with MNIST's four IDX files")
    parser.add_argument("--landscaper", metavar="PYTHON", help="the interpreter of an environment with Landscaper")
    parser.add_argument("--tried", action="store_true", help="measure the rejected alternatives only")
    given = parser.parse_args()
    keep_memory()
    lenet, images = trained_lenet(given.mnist)
    if given.tried:
        tried("LeNet", lenet, images)
        tried("ResNet-20", *resnet20())
        return
    race("LeNet", Square.of(5, lenet, images), given.landscaper, rounds=9)
    race("ResNet-20", Square.of(3, *resnet20()), given.landscaper, rounds=9)
    print("\n| plane | evaluations of 441 | times fewer | largest error | held-out says | full | adaptive |")
    print("|---|---|---|---|---|---|---|")
    adaptive("LeNet", lenet, images, seeds=1)
    digits, examples, _ = trained_digits_mlp()
    adaptive("digits MLP", digits, examples, seeds=3)


if __name__ == "__main__":
    main()
