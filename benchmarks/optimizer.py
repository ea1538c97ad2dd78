"""What a step of Entropy-SGD costs beyond its gradients, in time and memory.

    python benchmarks/optimizer.py

Time: a step's own work is its time less that of the closure calls in it, so that the machine's noise in the
gradients, which is as large as what is measured, drops out. What the step does to the closures (it empties caches) is
the slowdown of a call inside a step against calls alone, just before and after. Both are medians, as shares of the
gradients alone; in all = 1 + own work + slowdown. Beside ours stands a plain port of Algorithm 1, one tensor at a time.

Memory: the process's peak beyond that of plain gradients, in copies of the parameters; x, mu and two momenta are 4.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from landscape.problems.mnist import lenet
from optim import EntropySGD

CALLS = 1200  # closure calls in steps, and as many alone, per row


def closure_of(model: nn.Module, batch: int = 128) -> Callable[[], torch.Tensor]:
    """A mini-batch gradient, always of the same batch: the optimizers are timed, not the data."""
    x, y = torch.randn(batch, 1, 28, 28), torch.randint(0, 10, (batch,))

    def closure() -> torch.Tensor:
        for p in model.parameters():
            p.grad = None
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


class PlainPort:
    """Algorithm 1 as one would first write it."""

    def __init__(self, params: list[nn.Parameter], L: int) -> None:  # noqa: N803
        self.params, self.L = params, L

    def step(self, closure: Callable[[], torch.Tensor]) -> None:
        x = [p.detach().clone() for p in self.params]
        mu = [p.detach().clone() for p in self.params]
        for _ in range(self.L):
            closure()
            with torch.no_grad():
                for p, a, m in zip(self.params, x, mu, strict=True):
                    d = p.grad - 1e-4 * (a - p)
                    p -= 0.1 * d
                    p += math.sqrt(0.1) * 1e-4 * torch.randn_like(p)
                    m.copy_(0.25 * m + 0.75 * p)
        with torch.no_grad():
            for p, a, m in zip(self.params, x, mu, strict=True):
                p.copy_(a - (a - m))


def cost(step: Callable[[Callable[[], torch.Tensor]], object], closure: Callable, L: int) -> tuple[float, float, float]:  # noqa: N803
    """One gradient in ms, and own work and slowdown of one optimizer as shares of L gradients alone."""
    alone: list[float] = []
    inside: list[float] = []
    own: list[float] = []

    def timed(into: list[float]) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            start = time.perf_counter()
            loss = closure()
            into.append(time.perf_counter() - start)
            return loss

        return call

    for _ in range(max(1, CALLS // L)):
        for _ in range(L // 2):
            timed(alone)()
        before = len(inside)
        start = time.perf_counter()
        step(timed(inside))
        own.append(time.perf_counter() - start - sum(inside[before:]))
        for _ in range(L - L // 2):
            timed(alone)()
    gradient = statistics.median(alone)
    return 1e3 * gradient, statistics.median(own) / (L * gradient), statistics.median(inside) / gradient - 1


def table(L: int) -> None:  # noqa: N803
    """A row per optimizer."""
    model = lenet()
    closure = closure_of(model)
    params = list(model.parameters())
    for name, step in {
        "Entropy-SGD": EntropySGD(params, 1.0, momentum=0.9, nesterov=True, L=L).step,
        "Entropy-SGD, inner momentum": EntropySGD(params, 1.0, momentum=0.9, L=L, langevin_momentum=0.9).step,
        "Entropy-SGD, diagnostics": EntropySGD(params, 1.0, momentum=0.9, L=L, diagnostics=True).step,
        "plain port": PlainPort(params, L).step,
    }.items():
        gradient, own, slowdown = cost(step, closure, L)
        print(
            f"| {name} | {L} | {gradient:.1f} ms | {own:.3f} | {slowdown:+.3f} | {1 + own + slowdown:.3f} |", flush=True
        )


def noise() -> float:
    """The time of drawing LeNet's normal numbers once, as a share of a gradient."""
    model = lenet()
    closure = closure_of(model)
    generator = torch.Generator()
    spent = [torch.zeros_like(p) for p in model.parameters()]
    gradients, draws = [], []
    for _ in range(100):
        for into, work in ((gradients, closure), (draws, lambda: [p.normal_(generator=generator) for p in spent])):
            start = time.perf_counter()
            work()
            into.append(time.perf_counter() - start)
    return statistics.median(draws) / statistics.median(gradients)


SIZE = 10_000_000  # floats, 40 MB


def peak(kind: str) -> int:
    """Bytes at most, in this process, of gradients alone or of Entropy-SGD steps, on one large parameter."""
    p = nn.Parameter(torch.zeros(1))

    def closure() -> torch.Tensor:
        p.grad = None
        loss = (p * 2).sum()
        loss.backward()
        return loss

    def entropy_sgd() -> EntropySGD:
        return EntropySGD([p], 1.0, momentum=0.9, L=3, langevin_momentum=0.9)

    entropy_sgd().step(closure)  # whatever code is loaded and compiled on the way counts in neither
    p = nn.Parameter(torch.zeros(SIZE))
    optimizer = entropy_sgd()
    for _ in range(3):
        optimizer.step(closure) if kind == "step" else closure()
    # in kB; ru_maxrss would not do, since a process inherits that of its parent, which has timed LeNet by then
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    if len(sys.argv) > 1:
        print(peak(sys.argv[1]))
        return
    torch.manual_seed(0)
    print("| optimizer | L | gradient | own work | slowdown | in all |\n|---|---|---|---|---|---|")
    for L in (20, 5):  # noqa: N806
        table(L)
    print(f"\nDrawing the noise alone: {noise():.3f} of a gradient")
    gradients, step = (
        int(subprocess.run([sys.executable, __file__, kind], check=True, capture_output=True, text=True).stdout)
        for kind in ("gradients", "step")
    )
    print(f"\nExtra memory with both momenta: {(step - gradients) / (4 * SIZE):.2f} copies of the parameters")


if __name__ == "__main__":
    main()
