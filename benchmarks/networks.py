"""The networks, data and timings that the benchmarks share."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from landscape import ModelObjective, Problem
from landscape.problems import digits_mlp, mnist_lenet
from optim import train
from optim.training import cosine


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.short = nn.Sequential()
        if stride > 1:
            self.short = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.short(x))


def resnet20() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """He et al.'s ResNet-20 with BatchNorm, untrained, and 256 random images in CIFAR's shape: for timings alone."""
    torch.manual_seed(0)
    widths, layers = (16, 32, 64), [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for before, width in zip((16, *widths), widths, strict=False):
        layers += [_Block(before, width, 1 if before == width else 2), _Block(width, width, 1), _Block(width, width, 1)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return network.eval(), (torch.randn(256, 3, 32, 32), torch.randint(0, 10, (256,)))


def trained_lenet(folder: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The paper's LeNet, 131,220 weights, after three epochs of SGD on MNIST, and 1,024 of its training images."""
    problem = mnist_lenet(folder)
    x, y = problem.train
    return _trained(problem, epochs=3), (x[:1024], y[:1024])


def medians(functions: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Seconds of each, the median over rounds in which all take their turn, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if round_:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def trained_digits_mlp() -> tuple[nn.Module, tuple[Tensor, Tensor], np.ndarray]:
    """The digits MLP, 2,410 weights, after SGD, 500 of its training images, and all eigenvalues, in float64."""
    problem = digits_mlp()
    model = _trained(problem, epochs=50)
    x, y = (part[:500] for part in problem.train)
    f = ModelObjective(copy.deepcopy(model).double(), problem.loss, (x.double(), y))
    hessian = torch.stack([f.hvp(f.theta, e) for e in torch.eye(f.size, dtype=torch.float64)])
    return model, (x, y), torch.linalg.eigvalsh(hessian).numpy()


def _trained(problem: Problem, epochs: int) -> nn.Module:
    model = problem.build(seed=0)
    train(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
        problem.loss,
        problem.train,
        problem.test,
        gradients=epochs * -(-len(problem.train[1]) // 128),
        generator=torch.Generator().manual_seed(0),
        schedule=cosine,
    )
    return model.eval()
