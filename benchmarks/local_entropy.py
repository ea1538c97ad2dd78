"""Local entropy: truth beside estimate where it is known, and what it costs on networks.

    python benchmarks/local_entropy.py [MNIST]    # the folder with MNIST's four IDX files; without it no LeNet

Known are quadratics, in closed form, and functions of one and two weights, by a sum over a grid. Of the digits MLP the
last row of each radius is annealed SMC with four times the moves, the nearest to the truth that we have. F~ holds
beta f(x), which says nothing of the ball: what the ball costs is the excess, -F~/beta - f(x), in units of the loss.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from networks import medians, trained_digits_mlp, trained_lenet
from torch import Tensor, nn

from landscape import Hessian, ModelObjective, eigenpairs, local_entropy
from landscape.local_entropy.smc.moves import move
from landscape.local_entropy.smc.potential import Potential
from landscape.objective.batched import vmapped
from landscape.results import LocalEntropy

FEWER = {"populations": 4, "chains": 2, "moves": 8, "tol": 0.2}  # for LeNet


@dataclass(frozen=True)
class Known:
    """An Objective of one formula, which gives the losses (...) and gradients (..., n) of weights (..., n)."""

    formula: Callable[[Tensor], tuple[Tensor, Tensor]]
    size: int
    dtype: torch.dtype = torch.float64
    device: ClassVar[torch.device] = torch.device("cpu")

    def value(self, theta: Tensor) -> float:
        return float(self.formula(theta)[0])

    def gradient(self, theta: Tensor) -> Tensor:
        return self.formula(theta)[1]

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        loss, gradient = self.formula(theta)
        return float(loss), gradient

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        return torch.func.jvp(self.gradient, (theta,), (v,))[1]


def quadratic(h: Tensor, minimum: Tensor) -> Known:
    """f(x) = 1/2 (x - m)' diag(h) (x - m)."""
    return Known(lambda x: ((h * (x - minimum) ** 2).sum(-1) / 2, h * (x - minimum)), len(h), h.dtype)


def double_well() -> Known:
    """f(x) = (x^2 - 1)^2 / 4."""
    return Known(lambda x: (((x**2 - 1) ** 2).sum(-1) / 4, x * (x**2 - 1)), 1)


def logistic(examples: int = 60) -> Known:
    """f(w) = 1/N sum_i log(1 + exp(-y_i x_i'w)), with two weights."""
    inputs = torch.randn(examples, 2, generator=seeded(0), dtype=torch.float64)
    signs = torch.randint(0, 2, (examples,), generator=seeded(1)).double() * 2 - 1
    signed = signs[:, None] * inputs

    def formula(w: Tensor) -> tuple[Tensor, Tensor]:
        margins = w @ signed.T
        return nn.functional.softplus(-margins).mean(-1), -torch.sigmoid(-margins) @ signed / examples

    return Known(formula, 2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_quadratic(a: Tensor, u: Tensor) -> float:
    """F~ = -1/2 sum (log(1 + a) + a u^2 / (1 + a)) of phi(z) = 1/2 sum a (z - u)^2."""
    return -float((a.log1p() + a * u**2 / (1 + a)).sum()) / 2


def on_grid(f: Known, x: Tensor, radius: float, beta: float) -> float:
    """F~ of one or two weights by the trapezoidal rule, whose error is that of rounding for such smooth densities."""
    z, width = torch.linspace(-8, 8, 401, dtype=torch.float64), 0.04
    points = torch.cartesian_prod(*[z] * len(x)).reshape(-1, len(x))
    log_density = -(points**2).sum(1) / 2 - beta * f.formula(x + radius * points)[0]
    return float(log_density.logsumexp(0)) + len(x) * np.log(width / np.sqrt(2 * np.pi))


def table(*names: str) -> None:
    print(f"\n| {' | '.join(names)} |\n|{'---|' * len(names)}", flush=True)


def row(*cells: object) -> None:
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


def quadratics() -> None:
    """Ten sharp directions, in whitened coordinates (beta = r = 1), among ever more that are nearly flat."""
    table("n", "H", "start", "truth", "F~", "z", "bracket", "temperature steps", "acceptance", "gradients", "seconds")
    for n in (10, 1_000, 100_000):
        for name, last in (("definite", 0.5), ("indefinite", -0.5)):
            a = torch.full((n,), 1e-4)  # float32, as networks are
            a[:8], a[8:10] = torch.from_numpy(np.geomspace(1, 30, 8)), last
            u = torch.where(torch.arange(n) < 10, 0.5, 0.0)
            f, x, truth = quadratic(a, u), torch.zeros(n), of_quadratic(a.double(), u.double())
            rate = acceptance(f, a, u)
            for pairs in (0, 4):
                found = local_entropy(
                    f, x, radius=1.0, beta=1.0, method="smc", pairs=pairs, moves=16, tol=0.1, generator=seeded(0)
                )
                inside = found.lower <= truth <= found.upper
                row(
                    f"{n:,}",
                    name,
                    f"{pairs} pairs" if pairs else "q",
                    f"{truth:.3f}",
                    f"{found.value:.3f} ± {found.stderr:.3f}",
                    f"{(found.value - truth) / found.stderr:+.1f}",
                    f"{found.lower:.2f} to {found.upper:.2f}" + ("" if inside else ", missed"),
                    len(found.schedule) - 1,
                    f"{rate:.2f}",
                    f"{found.cost.gradients:,}",
                    f"{found.cost.seconds:.1f}",
                )


def acceptance(f: Known, a: Tensor, u: Tensor, step: float = 0.04, draws: int = 20, rounds: int = 50) -> float:
    """Of the first move of exact draws of the Gibbs measure, by one step size for all n: SMC would adapt its own."""
    potential, generator = Potential(f, torch.zeros_like(u), 1.0, 1.0), seeded(1)
    rates = []
    for _ in range(rounds):
        at = potential(a * u / (1 + a) + potential.normal(draws, generator) / (1 + a).sqrt())
        rates.append(move(potential, at, 1.0, step, generator)[1])
    return float(np.mean(rates))


def coverage(seeds: int = 200) -> None:
    """How often the 95 % interval of Student's t, and the bracket, hold the truth."""
    table("problem", "truth", "mean error", "RMS error", "RMS of stderr", "in 95 % interval", "in bracket", "seconds")
    a, u = torch.tensor([20.0, 3.0, -0.3], dtype=torch.float64), torch.tensor([1.0, 0.5, 0.5], dtype=torch.float64)
    double = torch.float64
    for name, f, x, radius, beta in (
        ("quadratic, 3 weights", quadratic(a, u), torch.zeros(3, dtype=double), 1.0, 1.0),
        ("logistic regression, 2 weights", logistic(), torch.tensor([1.0, -1.0], dtype=double), 1.5, 60.0),
        ("double well, 1 weight", double_well(), torch.tensor([0.3], dtype=double), 0.8, 20.0),
    ):
        truth = of_quadratic(a, u) if f.size == 3 else on_grid(f, x, radius, beta)
        start = time.perf_counter()
        runs = [
            local_entropy(
                f,
                x,
                radius=radius,
                beta=beta,
                method="smc",
                pairs=0,
                moves=8,
                tol=1.0,
                generator=seeded(seed),
            )
            for seed in range(seeds)
        ]
        errors, stderrs = np.array([run.value for run in runs]) - truth, np.array([run.stderr for run in runs])
        within = [low <= truth <= high for low, high in (run.interval(0.95) for run in runs)]
        bracketed = [run.lower <= truth <= run.upper for run in runs]
        row(
            name,
            f"{truth:.4f}",
            f"{errors.mean():+.4f} ± {errors.std(ddof=1) / np.sqrt(seeds):.4f}",
            f"{np.sqrt((errors**2).mean()):.4f}",
            f"{np.sqrt((stderrs**2).mean()):.4f}",
            f"{100 * np.mean(within):.1f} %",
            f"{100 * np.mean(bracketed):.1f} %",
            f"{time.perf_counter() - start:.0f}",
        )


ESTIMATES = ("radius", "estimate", "F~", "stderr", "bracket", "excess", "drift", "R-hat", "gradients", "seconds")


def estimate(name: str, found: LocalEntropy) -> None:
    """One row: errors relative to |F~|, drift in its standard errors."""
    dash, known = "-", np.isfinite(found.drift)
    row(
        f"{found.radius:g}",
        name if found.reliable else f"{name}, not reliable",
        f"{found.value:.2f}",
        f"{100 * found.stderr / abs(found.value):.2f} %",
        f"{100 * (found.upper - found.lower) / abs(found.value):.1f} %" if known else dash,
        f"{found.excess:.5f} ± {found.excess_stderr:.5f}",
        f"{found.drift / found.drift_stderr:+.1f}" if known else dash,
        f"{found.r_hat:.2f}" if known else dash,
        f"{found.cost.gradients:,} + {found.cost.products:,} products + {found.cost.values:,} losses",
        f"{found.cost.seconds:.1f}",
    )


def digits(f: ModelObjective) -> dict[float, LocalEntropy]:
    """The longest run at each radius."""
    table(*ESTIMATES)
    longest = {}
    for radius in (0.1, 0.3):
        for name, options in (
            ("Laplace", {"method": "laplace"}),
            ("Monte Carlo", {"method": "monte_carlo", "samples": 4096}),
            ("SMC from q", {"method": "smc", "pairs": 0}),
            ("SMC from 20 pairs", {"method": "smc"}),
            ("SMC from 60 pairs", {"method": "smc", "pairs": 60}),
            (
                "SMC from 60 pairs, 4 x the moves",
                {"method": "smc", "pairs": 60, "moves": 128, "budget": 10**6},
            ),
        ):
            longest[radius] = local_entropy(f, f.theta, radius=radius, **options, generator=seeded(0))
            estimate(name, longest[radius])
    return longest


def sgld(f: ModelObjective, longest: dict[float, LocalEntropy]) -> None:
    table("radius", "moves", "F~", "estimated bias by its step size", "F~ minus that of SMC", "gradients", "seconds")
    for radius, smc in longest.items():
        for moves in (32, 64):
            found = local_entropy(f, f.theta, radius=radius, method="sgld", moves=moves, generator=seeded(0))
            row(
                radius,
                moves,
                f"{found.value:.2f} ± {found.stderr:.2f}",
                f"{found.step_size_bias:+.2f} ± {found.step_size_bias_stderr:.2f}",
                f"{found.value - smc.value:+.2f} ± {np.hypot(found.stderr, smc.stderr):.2f}",
                f"{found.cost.gradients:,}",
                f"{found.cost.seconds:.1f}",
            )


def lenet(model: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Three radii, which share their eigenpairs."""
    start = time.perf_counter()
    f = ModelObjective(model, nn.CrossEntropyLoss(), images)
    pairs = eigenpairs(Hessian(f), 20, which="largest", generator=seeded(0))
    found_in = time.perf_counter() - start
    table(*ESTIMATES)
    for radius in (0.01, 0.03, 0.05):
        found = local_entropy(f, f.theta, radius=radius, method="smc", pairs=pairs, **FEWER, generator=seeded(0))
        estimate("SMC from 20 pairs", found)
    print(
        f"\nLeNet, f(x) = {f.value(f.theta):.4f}, beta = {f.examples}: {time.perf_counter() - start:.0f} s in all, of "
        f"which {found_in:.0f} s for {pairs.products} products that find the eigenpairs"
    )


def at_once(name: str, model: nn.Module, data: tuple[Tensor, Tensor], particles: int) -> None:
    """A gradient where several are wanted: one after the other, and by vmap, which SMC uses for perceptrons."""
    f = ModelObjective(model, nn.CrossEntropyLoss(), data)
    points, (together, _) = torch.stack([f.theta] * particles), vmapped(f)
    times = medians(
        {
            "one after the other": lambda: [f.value_and_gradient(point) for point in points],
            "vmap": lambda: together(points),
        }
    )
    for how, seconds in times.items():
        row(
            name, particles, how, f"{1e3 * seconds / particles:.2f} ms", f"{seconds / times['one after the other']:.2f}"
        )


def main() -> None:
    start = time.perf_counter()
    print(f"{torch.get_num_threads()} threads")
    quadratics()
    coverage()
    model, data, _ = trained_digits_mlp()
    f = ModelObjective(model, nn.CrossEntropyLoss(), data)
    print(f"\nDigits MLP: f(x) = {f.value(f.theta):.4f}, beta f(x) = {f.examples * f.value(f.theta):.1f}")
    sgld(f, digits(f))
    images = trained_lenet(sys.argv[1]) if len(sys.argv) > 1 else None
    if images:
        lenet(*images)
    table("network", "particles", "gradients", "time of each", "relative")
    at_once("digits MLP", model, data, 32)
    if images:
        at_once("LeNet", *images, 4)
    print(f"\nin all {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
