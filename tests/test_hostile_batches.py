"""Batches unlike the first, small losses, kinks, and whatever else only a later evaluation shows."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape import Checkpoint, ModelObjective
from landscape.objective.contract import number
from tests.problems import DOUBLE, seeded

LOSS = nn.CrossEntropyLoss()
X = torch.randn(48, 6, generator=seeded(0), dtype=DOUBLE)
Y = torch.randint(0, 3, (48,), generator=seeded(1))


def _two() -> list[dict[str, Any]]:
    return [{"x": X[:24], "y": Y[:24], "k": 0}, {"x": X[24:], "y": Y[24:], "k": 1}]


def _of(outputs: Tensor, batch: Any) -> Tensor:
    return functional.cross_entropy(outputs, batch["y"])


class _ByKind(nn.Module):
    """Two layers, whose batches of kind 1 go another way."""

    def __init__(self, other: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.bn, self.h = nn.Linear(6, 5).double(), nn.BatchNorm1d(5).double(), nn.Linear(5, 3).double()
        self.bn.running_mean.normal_()  # type: ignore[union-attr]
        self.bn.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        self.other = [other]

    def forward(self, x: Tensor, y: Tensor, k: int) -> Tensor:
        return self.other[0](self, x) if k else self.h(torch.tanh(self.bn(self.l(x))))


def _sequences(model: nn.Module, lengths: tuple[int, ...], **options: Any) -> ModelObjective:
    data = [(torch.randint(0, 20, (24, n), generator=seeded(n)), Y[:24]) for n in lengths]
    return ModelObjective(model, options.pop("loss", LOSS), data, **options)


class _Sequence(nn.Module):
    def __init__(self, drop: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.e, self.h, self.drop = nn.Embedding(20, 6).double(), nn.Linear(6, 3).double(), [drop]

    def forward(self, i: Tensor) -> Tensor:
        z = self.e(i)
        return self.h((self.drop[0](z) if i.shape[1] > 16 else z).mean(1))


# --- 2: batches of another structure than the first -------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["value", "gradient", "hvp"])
def test_noise_in_later_batches_alone_is_refused_and_draws_nothing(ask: str) -> None:
    f = _sequences(_Sequence(lambda z: functional.dropout(z, 0.3)), (10, 60))
    before = torch.get_rng_state()
    for _ in range(2):  # as long as it is asked
        with pytest.raises(ValueError, match="noise='frozen'"):
            {"value": f.value, "gradient": f.gradient, "hvp": lambda t: f.hvp(t, t)}[ask](f.theta)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_in_later_batches_alone_can_be_frozen_or_without_effect() -> None:
    model = _Sequence(lambda z: functional.dropout(z, 0.3))
    before = torch.get_rng_state()
    f = _sequences(model, (10, 60), noise="frozen")
    assert f.value(f.theta) == f.value(f.theta)
    assert torch.equal(torch.get_rng_state(), before)
    g = _sequences(_Sequence(lambda z: z + 0 * torch.randn(1)), (10, 60))
    before = torch.get_rng_state()
    assert g.value(g.theta) == g.value(g.theta)
    g.hvp(g.theta, g.theta)
    assert torch.equal(torch.get_rng_state(), before)


def _contrastive(outputs: Tensor, batch: Any) -> Tensor:
    if batch[0].shape[1] <= 16:
        return functional.cross_entropy(outputs, batch[1])
    return functional.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))


def test_a_loss_of_a_batch_as_such_in_later_batches_alone_is_refused() -> None:
    model = _Sequence(lambda z: z)
    f = _sequences(model, (10, 60), loss=_contrastive)
    for _ in range(2):
        with pytest.raises(ValueError, match="whole_batches=True"):
            f.value(f.theta)
    g = _sequences(model, (10, 60), loss=_contrastive, whole_batches=True)
    expected = sum(number(_contrastive(model(b[0]), b)) for b, _ in g._batches) / 2
    assert g.value(g.theta) == pytest.approx(expected, rel=1e-12)


def test_padding_in_later_buckets_alone_is_refused() -> None:
    """A mean over tokens, whose first bucket of equal sequences hides that."""

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        return functional.cross_entropy(outputs.movedim(2, 1), batch[1])

    def bucket(n: int, *, padded: bool) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(0, 20, (8, n), generator=seeded(n))
        labels = tokens.masked_fill(torch.arange(n) >= n - torch.arange(8)[:, None] % 3, -100) if padded else tokens
        return tokens, labels

    model = nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 20)).double()
    # the second bucket of the later length alone is padded
    data = [bucket(10, padded=False), bucket(12, padded=False), bucket(11, padded=False), bucket(12, padded=True)]
    f = ModelObjective(model, loss, data)
    with pytest.raises(ValueError, match="count="):
        f.value(f.theta)


def test_later_evaluations_of_a_batch_cost_nothing_more_and_siblings_no_check_of_the_mean() -> None:
    calls: list[int] = []

    def counted(z: Tensor) -> Tensor:
        calls.append(len(z))
        return z

    f = _sequences(_Sequence(counted), (10, 60))
    calls.clear()
    f.value(f.theta)
    assert sum(calls) <= 3 * 24
    calls.clear()
    f.value(f.theta)
    assert calls == [24]
    calls.clear()
    f.at(Checkpoint.of(f._evaluation.network.model)).value(f.theta)
    assert calls == [24]


# --- 3: statistics are gathered by evaluations like others ------------------------------------------------------------


class _Normed(nn.Module):
    def __init__(self, way: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.bn, self.h = nn.Linear(6, 8).double(), nn.BatchNorm1d(8).double(), nn.Linear(8, 3).double()
        self.register_buffer("scale", torch.ones((), dtype=DOUBLE))
        self.way = [way]

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.tanh(self.bn(self.way[0](self, x))))


def _recalibrated(model: nn.Module, data: Any = (X, Y), **options: Any) -> ModelObjective:
    return ModelObjective(model, LOSS, data, batch_norm="recalibrated", **options)


def test_statistics_are_gathered_with_frozen_noise() -> None:
    model = _Normed(lambda m, x: m.l(x + torch.randn_like(x)))
    f = _recalibrated(model, noise="frozen")
    theta = f.theta
    first = f.value(theta)
    f.value(theta + 0.1)
    assert f.value(theta) == first
    torch.manual_seed(5)
    f.value(theta + 0.1)
    assert f.value(theta) == first
    assert torch.equal(torch.get_rng_state(), torch.manual_seed(5).get_state())
    g = _recalibrated(model, noise="frozen")
    assert torch.equal(torch.get_rng_state(), torch.manual_seed(5).get_state())
    assert g.value(theta) == first


def _moves(model: Any, x: Tensor) -> Tensor:
    if len(x) == 20:
        model.scale.add_(1)
    return model.l(x) * model.scale


def _statistics(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> nn.Module:
    """A copy whose BatchNorm has the statistics of the batches, each forward at buffers as they were."""
    whole: Any = copy.deepcopy(model).eval()
    inner = [whole.way[0](copy.deepcopy(whole), x) for x, _ in batches]
    weights = [len(x) / sum(len(x) for x, _ in batches) for x, _ in batches]
    whole.bn.running_mean.copy_(sum(w * z.mean(0) for w, z in zip(weights, inner, strict=True)).detach())
    whole.bn.running_var.copy_(sum(w * z.var(0) for w, z in zip(weights, inner, strict=True)).detach())
    return whole


@pytest.mark.parametrize("separate", [True, False])
def test_a_buffer_that_moves_only_where_statistics_are_gathered(*, separate: bool) -> None:
    model = _Normed(_moves)
    batches = [(X[:28], Y[:28]), (X[28:], Y[28:])]
    data = batches[:1] if separate else batches
    f = _recalibrated(model, data, calibration=batches if separate else None)
    whole = _statistics(model, batches)
    expected = sum(len(x) * number(LOSS(copy.deepcopy(whole)(x), y)) for x, y in data) / sum(len(x) for x, _ in data)
    for _ in range(2):
        f.value(f.theta + 0.3)
        assert f.value(f.theta) == pytest.approx(expected, rel=1e-10)
    assert float(model.scale) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("separate", [True, False])
def test_a_parameter_held_by_a_closure_read_only_where_statistics_are_gathered(*, separate: bool) -> None:
    def build() -> _Normed:
        model = _Normed(lambda m, x: m.l(x))
        weight = model.l.weight
        model.way = [lambda m, x: functional.linear(x, weight, m.l.bias) if len(x) == 20 else m.l(x)]
        return model

    batches = [(X[:28], Y[:28]), (X[28:], Y[28:])]
    options: dict[str, Any] = {"calibration": batches} if separate else {}
    data = batches[:1] if separate else batches
    f, g = _recalibrated(build(), data, **options), _recalibrated(_Normed(lambda m, x: m.l(x)), data, **options)
    theta = f.theta + 0.3
    assert f.value(theta) == pytest.approx(g.value(theta), rel=1e-12)


def test_noise_in_calibration_alone_is_refused() -> None:
    model = _Normed(lambda m, x: m.l(x + torch.randn_like(x) if len(x) == 20 else x))
    with pytest.raises(ValueError, match="noise='frozen'"):
        _recalibrated(model, (X[:28], Y[:28]), calibration=[(X[28:], Y[28:])])


# --- 4: folded BatchNorm ----------------------------------------------------------------------------------------------


def _also(model: Any, x: Tensor) -> Tensor:
    a = model.l(x)
    return model.h(torch.tanh(model.bn(a) + a))


def _before(model: Any, x: Tensor) -> Tensor:
    a = model.l(x)
    b = a.view(-1).relu().view_as(a)
    return model.h(torch.tanh(model.bn(a) + b))


@pytest.mark.parametrize("way", [_also, _before])
@pytest.mark.parametrize("ask", ["value", "gradient", "hvp"])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_layer_whose_outputs_a_later_batch_uses_besides_batch_norm(way: Any, ask: str, *, fresh: bool) -> None:
    model = _ByKind(way)
    if fresh:  # which all but is the identity
        model.bn.reset_running_stats()
    f = ModelObjective(model, _of, _two())
    assert f._evaluation.folds
    named = dict(model.eval().named_parameters())

    def loss(theta: Tensor) -> Tensor:
        weights = f.space.views(theta)
        return sum(_of(torch.func.functional_call(model, weights, (), b), b) for b in _two()) / 2  # type: ignore[return-value]

    assert list(named) == list(f.space.names)
    v = torch.randn(f.size, generator=seeded(3), dtype=DOUBLE)
    got: Any = {"value": f.value, "gradient": f.gradient, "hvp": lambda t: f.hvp(t, v)}[ask](f.theta)
    theta = f.theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value := loss(theta), theta, create_graph=True)
    expected = {"value": value, "gradient": gradient, "hvp": torch.autograd.grad(gradient @ v, theta)[0]}[ask]
    torch.testing.assert_close(torch.as_tensor(got, dtype=DOUBLE), expected.detach(), rtol=1e-10, atol=1e-13)


def test_an_ordinary_network_stays_folded_in_all_batches() -> None:
    f = ModelObjective(_ByKind(lambda m, x: m.h(functional.relu(m.bn(m.l(x)), inplace=True))), _of, _two())
    f.value(f.theta)
    f.gradient(f.theta)
    assert f._evaluation.folds
