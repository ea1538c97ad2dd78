"""f and its gradient at a batch of thetas are those at each theta."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import ModelObjective
from landscape.objective import batched
from landscape.objective.batched import values_and_gradients

N = 30


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(outputs: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(N, 4, generator=seeded(), dtype=torch.float64)
    return x, torch.randint(0, outputs, (N,), generator=seeded(1))


def perceptron(*between: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), *between, nn.Linear(6, 3)).double()


def normalised() -> nn.Module:
    """With running statistics that are not those of a fresh layer."""
    model = perceptron(nn.BatchNorm1d(6), nn.ReLU())
    model[1].running_mean.uniform_(-1, 1, generator=seeded())
    return model


def thetas(f: ModelObjective, count: int = 5) -> torch.Tensor:
    return f.theta + 0.3 * torch.randn(count, f.size, generator=seeded(2), dtype=f.dtype)


def sequential(f: ModelObjective, x: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    values, gradients = zip(*(f.value_and_gradient(row) for row in x), strict=True)
    return np.array(values), torch.stack(gradients)


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each evaluation of a single theta."""
    seen: list[int] = []
    original = ModelObjective.value_and_gradient
    monkeypatch.setattr(
        ModelObjective, "value_and_gradient", lambda self, theta: (seen.append(1), original(self, theta))[1]
    )
    return seen


@pytest.mark.parametrize(
    "model",
    [perceptron(nn.Tanh()), perceptron(nn.LayerNorm(6), nn.ReLU(), nn.Dropout(0.5)), normalised()],
    ids=["tanh", "layer norm, dropout", "batch norm"],
)
@pytest.mark.parametrize("batch_size", [N, 7])
def test_perceptrons_are_evaluated_at_all_rows_at_once(
    model: nn.Module, batch_size: int, evaluations: list[int]
) -> None:
    f = ModelObjective(model, nn.CrossEntropyLoss(), data(), batch_size=batch_size, weight_decay=0.1)
    x = thetas(f)
    expected = sequential(f, x)
    every, _ = values_and_gradients(f)
    evaluations.clear()
    values, gradients = every(x)
    assert not evaluations
    # float64 in another order of operations; gradients are sums that cancel
    np.testing.assert_allclose(values, expected[0], rtol=1e-12)
    torch.testing.assert_close(gradients, expected[1], rtol=1e-10, atol=1e-12)
    assert not gradients.requires_grad


def test_rows_that_the_caches_do_not_hold_together_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    f = ModelObjective(perceptron(nn.Tanh()), nn.CrossEntropyLoss(), data())
    x = thetas(f)
    whole = values_and_gradients(f)[0](x)
    monkeypatch.setattr(batched, "cache_budget", lambda device: 1.0)
    values, gradients = values_and_gradients(f)[0](x)
    np.testing.assert_allclose(values, whole[0], rtol=1e-12)  # rounding, as above
    torch.testing.assert_close(gradients, whole[1], rtol=1e-10, atol=1e-12)


class Branching(nn.Module):
    """Its way through depends on its numbers, which vmap cannot follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.detach().sum()) > 0 else 2 * x


class Wrong(torch.autograd.Function):
    """x -> 2 x, whose batching rule says x."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: object) -> None:
        pass

    @staticmethod
    def backward(ctx: object, slope: torch.Tensor) -> torch.Tensor:
        return 2 * slope

    @staticmethod
    def vmap(info: object, dims: tuple[int | None, ...], x: torch.Tensor) -> tuple[torch.Tensor, int | None]:
        return x, dims[0]


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Wrong.apply(x)


@pytest.mark.parametrize("between", [Branching(), Doubled()], ids=["cannot be batched", "is batched wrongly"])
def test_what_vmap_does_otherwise_is_evaluated_in_turn(between: nn.Module, evaluations: list[int]) -> None:
    # whole, since one branches on all of a batch
    f = ModelObjective(perceptron(between), nn.CrossEntropyLoss(), data(), whole_batches=True)
    x = thetas(f)
    expected = sequential(f, x)
    every, _ = values_and_gradients(f)
    evaluations.clear()
    values, gradients = every(x)
    assert len(evaluations) == len(x)
    np.testing.assert_array_equal(values, expected[0])
    assert torch.equal(gradients, expected[1])


def test_convolutions_and_recalibrated_statistics_are_evaluated_in_turn(evaluations: list[int]) -> None:
    torch.manual_seed(0)
    convolutional = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 4), nn.Flatten()).double()
    for f in (
        ModelObjective(convolutional, nn.CrossEntropyLoss(), data()),
        ModelObjective(normalised(), nn.CrossEntropyLoss(), data(), batch_norm="recalibrated"),
    ):
        every, _ = values_and_gradients(f)
        evaluations.clear()
        every(thetas(f))
        assert len(evaluations) == 5
