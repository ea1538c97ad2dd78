"""What a step of Entropy-SGD costs beyond its gradients, in time and memory.

    python benchmarks/optimizer.py

Time: the median over rounds of (a step of L inner steps) / (L calls of the same closure), measured in turn in every
round, so that a drift of the machine hits both alike. Beside ours stands a plain port of Algorithm 1, one tensor at a
time. Memory: the process's peak beyond that of plain gradients, in copies of the parameters.
"""

from __future__ import annotations

import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from landscape.problems.mnist import lenet
from optim import EntropySGD

ROUNDS = 31


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


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def time_ratios(L: int) -> dict[str, float]:  # noqa: N803
    """Medians of step / (L gradients)."""
    model = lenet()
    closure = closure_of(model)
    params = list(model.parameters())
    steps = {
        "Entropy-SGD": EntropySGD(params, 1.0, momentum=0.9, nesterov=True, L=L).step,
        "Entropy-SGD, inner momentum": EntropySGD(params, 1.0, momentum=0.9, L=L, langevin_momentum=0.9).step,
        "Entropy-SGD, diagnostics": EntropySGD(params, 1.0, momentum=0.9, L=L, diagnostics=True).step,
        "plain port": PlainPort(params, L).step,
    }
    ratios: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            # gradients before and after, so that a linear drift cancels
            before = seconds(lambda: [closure() for _ in range(L)])
            ours = seconds(lambda step=step: step(closure))
            after = seconds(lambda: [closure() for _ in range(L)])
            ratios[name].append(ours / ((before + after) / 2))
    return {name: statistics.median(values) for name, values in ratios.items()}


SIZE = 10_000_000  # floats, 40 MB


def peak(kind: str) -> int:
    """Bytes at most, in this process, of gradients alone or of Entropy-SGD steps, on one large parameter."""
    p = nn.Parameter(torch.zeros(SIZE))

    def closure() -> torch.Tensor:
        p.grad = None
        loss = (p * 2).sum()
        loss.backward()
        return loss

    step: Callable[[], object] = closure
    if kind == "step":
        optimizer = EntropySGD([p], 1.0, momentum=0.9, L=3, langevin_momentum=0.9)
        step = lambda: optimizer.step(closure)  # noqa: E731
    for _ in range(3):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    if len(sys.argv) > 1:
        print(peak(sys.argv[1]))
        return
    torch.manual_seed(0)
    print("| | L = 20 | L = 5 |\n|---|---|---|")
    twenty, five = time_ratios(20), time_ratios(5)
    for name in twenty:
        print(f"| {name} | {twenty[name]:.3f} | {five[name]:.3f} |")
    gradients, step = (
        int(subprocess.run([sys.executable, __file__, kind], check=True, capture_output=True, text=True).stdout)
        for kind in ("gradients", "step")
    )
    print(f"\nExtra memory with both momenta: {(step - gradients) / (4 * SIZE):.2f} copies of the parameters")


if __name__ == "__main__":
    main()
