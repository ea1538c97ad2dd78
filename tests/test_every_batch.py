"""What forward reads and changes is observed for each batch, and that f follows its gradient when it is made."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from landscape import Checkpoint, ModelObjective
from landscape.objective.contract import number
from tests.problems import DOUBLE, seeded, tiny_mlp

LOSS = nn.CrossEntropyLoss()


def _kinds() -> list[dict[str, Any]]:
    """The examples of the tiny problem in two batches, of kind 0 and 1."""
    _, (x, y) = tiny_mlp()
    return [{"x": x[:24], "y": y[:24], "kind": 0}, {"x": x[24:], "y": y[24:], "kind": 1}]


def _loss(outputs: Tensor, batch: Any) -> Tensor:
    return functional.cross_entropy(outputs, batch["y"])


class _ByKind(nn.Module):
    """The tiny network, whose batches of kind 1 take another way to the same outputs."""

    def __init__(self, other: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, _ = tiny_mlp()
        self.other = [other]

    def forward(self, x: Tensor, y: Tensor, kind: int) -> Tensor:
        return self.other[0](self.inner, x) if kind else self.inner(x)


def _plain() -> ModelObjective:
    return ModelObjective(*_problem(lambda inner, x: inner(x)))


def _problem(other: Callable[[nn.Module, Tensor], Tensor]) -> tuple[nn.Module, Any, Any]:
    return _ByKind(other), _loss, _kinds()


def _agree(f: ModelObjective, g: ModelObjective, order: str) -> None:
    """f and g have one value, gradient and product at another theta, whichever is asked for first."""
    theta = g.theta + 0.1 * torch.randn(g.size, generator=seeded(1), dtype=DOUBLE)
    v = torch.randn(g.size, generator=seeded(2), dtype=DOUBLE)
    checks: dict[str, Callable[[], None]] = {
        "value": lambda: torch.testing.assert_close(f.value(theta), g.value(theta), rtol=1e-12, atol=0),
        "gradient": lambda: torch.testing.assert_close(f.gradient(theta), g.gradient(theta), rtol=1e-10, atol=1e-14),
        "product": lambda: torch.testing.assert_close(f.hvp(theta, v), g.hvp(theta, v), rtol=1e-9, atol=1e-13),
    }
    for name in (order, *checks):
        checks[name]()


ORDERS = pytest.mark.parametrize("order", ["value", "gradient", "product"])


@ORDERS
def test_a_parameter_held_by_a_closure_that_the_first_batch_does_not_reach(order: str) -> None:
    held: list[nn.Parameter] = []

    def other(inner: Any, x: Tensor) -> Tensor:
        return inner[2](torch.tanh(functional.linear(x, held[0], inner[0].bias)))

    model, loss, batches = _problem(other)
    held.append(model.inner[0].weight)
    _agree(ModelObjective(model, loss, batches), _plain(), order)


class _Holder:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


_TEACHERS: list[nn.Module] = []
_KEEPER: Any = _Holder(torch.zeros(()))


def _holders(weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    holder, data = _Holder(weight.data), weight.data
    return {
        "closure": lambda: data,
        "object": lambda: holder.tensor,
        "cache": functools.lru_cache(lambda: weight.detach()),
        "view": lambda: data.T.T,
    }


@pytest.mark.filterwarnings("ignore:no gradient reaches")
@pytest.mark.parametrize("kind", ["closure", "object", "cache", "view"])
@pytest.mark.parametrize("first", [True, False])
def test_memory_of_a_parameter_held_elsewhere_is_refused(kind: str, first: bool) -> None:
    held: list[Callable[[], Tensor]] = []

    def other(inner: Any, x: Tensor) -> Tensor:
        return inner[2](torch.tanh(functional.linear(x, held[0](), inner[0].bias)))

    model, loss, batches = _problem(other)
    held.append(_holders(model.inner[0].weight)[kind])
    refused = pytest.raises(ValueError, match=r"do not follow theta in inner\.0\.weight")
    if first:
        with refused:
            ModelObjective(model, loss, batches[::-1])
        return
    f = ModelObjective(model, loss, batches)
    for evaluate in (f.value, f.gradient, lambda theta: f.hvp(theta, theta)):
        with refused:
            evaluate(f.theta)


def test_fixed_weights_held_by_a_closure_are_the_checkpoint_s() -> None:
    """Whose values are the same now, and may be others later."""
    held: list[nn.Parameter] = []

    def other(inner: Any, x: Tensor) -> Tensor:
        return inner[2](torch.tanh(functional.linear(x, held[0], inner[0].bias)))

    model, loss, batches = _problem(other)
    held.append(model.inner[0].weight.requires_grad_(False))
    f = ModelObjective(model, loss, batches)
    f.value(f.theta)
    assert f._evaluation.kernels.has_substitutes
    state = {name: t + 0.3 for name, t in model.state_dict().items()}
    at = f.at(Checkpoint("moved", state))
    reference, _, _ = _problem(lambda inner, x: inner(x))
    reference.load_state_dict(state)
    expected = sum(len(b["y"]) * number(loss(reference(**b), b)) for b in batches) / 50
    assert at.value(at.theta) == pytest.approx(expected, rel=1e-12)


@ORDERS
def test_a_buffer_that_moves_in_a_later_batch_alone(order: str) -> None:
    class Moves(_ByKind):
        def __init__(self) -> None:
            super().__init__(self._moved)
            self.register_buffer("scale", torch.ones((), dtype=DOUBLE))

        def _moved(self, inner: nn.Module, x: Tensor) -> Tensor:
            self.scale.add_(1)
            return self.scale / 2 * inner(x)

    model = Moves()
    for batches in (_kinds(), _kinds()[::-1]):
        f = ModelObjective(model, _loss, batches)
        _agree(f, _plain(), order)
        assert f.preflight().passed
    assert float(model.scale) == 1


@ORDERS
def test_a_later_batch_alone_is_written_into(order: str) -> None:
    def other(inner: nn.Module, x: Tensor) -> Tensor:
        outputs = inner(x.clone())
        x.zero_()
        return outputs

    batches = _kinds()
    before = batches[1]["x"].clone()
    f = ModelObjective(_ByKind(other), _loss, batches)
    _agree(f, _plain(), order)
    torch.testing.assert_close(batches[1]["x"], before, rtol=0, atol=0)


@ORDERS
def test_a_later_batch_alone_needs_a_derivative_by_its_inputs(order: str) -> None:
    """(d/dx_j of the sum of x_k^2 / 2) = x_j, so that the network gets its own inputs."""

    def other(inner: nn.Module, x: Tensor) -> Tensor:
        z = x.detach().requires_grad_()
        (same,) = torch.autograd.grad((z**2).sum() / 2, z, create_graph=True)
        return inner(same)

    _agree(ModelObjective(*_problem(other)), _plain(), order)


def _reading(how: Callable[[nn.Module, Tensor], Tensor]) -> ModelObjective:
    model, data = _ByKind(how), _kinds()[1:]
    return ModelObjective(model, _loss, data, whole_batches=True)


def test_a_result_that_forward_keeps_from_an_earlier_call_is_told() -> None:
    kept: dict[int, Tensor] = {}

    def other(inner: Any, x: Tensor) -> Tensor:
        first = torch.tanh(inner[0](x))
        kept.setdefault(len(x), first.detach())
        return inner[2](kept[len(x)])

    with pytest.warns(UserWarning, match=r"no gradient reaches inner\.0\.weight, inner\.0\.bias"):
        _reading(other)
    whole: dict[int, Tensor] = {}
    with pytest.warns(UserWarning, match=r"along its gradient f moves by 0 times"):
        _reading(lambda inner, x: _straight(whole.setdefault(len(x), inner(x).detach()), inner(x)))


def test_a_cache_that_goes_on_in_an_earlier_graph_is_refused() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, _ = tiny_mlp()

        @functools.lru_cache  # noqa: B019
        def weight(self) -> Tensor:
            return torch.softmax(self.inner[0].weight, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner[2](torch.tanh(functional.linear(x, self.weight(), self.inner[0].bias)))

    with pytest.raises(ValueError, match="goes on from what it calculated in an earlier call"):
        ModelObjective(Cached(), LOSS, tiny_mlp()[1])


@pytest.mark.parametrize("where", ["list", "object", "inner"])
def test_a_teacher_that_a_loss_reaches_by_a_global_is_owned(where: str) -> None:
    teacher = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    _TEACHERS[:] = [teacher]
    _KEEPER.tensor = teacher

    def by_list(outputs: Tensor, batch: Any) -> Tensor:
        return functional.mse_loss(outputs, _TEACHERS[0](batch[0]))

    def by_object(outputs: Tensor, batch: Any) -> Tensor:
        return functional.mse_loss(outputs, _KEEPER.tensor(batch[0]))

    def by_inner(outputs: Tensor, batch: Any) -> Tensor:
        return (lambda x: functional.mse_loss(outputs, _KEEPER.tensor(x)))(batch[0])

    model, (x, y) = tiny_mlp()
    f = ModelObjective(model, {"list": by_list, "object": by_object, "inner": by_inner}[where], (x, y))
    assert teacher.training
    assert int(teacher[1].num_batches_tracked) == 0
    expected = functional.mse_loss(model(x), teacher.eval()(x))
    assert f.value(f.theta) == pytest.approx(number(expected), rel=1e-12)


def _straight(value: Tensor, slope: Tensor) -> Tensor:
    return value + slope - slope.detach()


def test_gradients_passed_straight_through_a_rounding_are_told_and_right_ones_are_not() -> None:
    def rounded(inner: Any, x: Tensor) -> Tensor:
        h = torch.tanh(inner[0](x))
        return inner[2](_straight(h.sign(), h))

    with pytest.warns(UserWarning, match="along its gradient f moves by"):
        _reading(lambda inner, x: _straight(inner(x).round(), inner(x)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _reading(lambda inner, x: inner(x))
        _reading(lambda inner, x: inner(x).relu())
        # trained until its gradient is all but zero
        model, loss, batches = _problem(lambda inner, x: inner(x))
        model.float()
        for batch in batches:
            batch["x"], batch["y"] = batch["x"].float(), batch["x"].argmax(1) % 3
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300)

        def closure() -> Tensor:
            optimizer.zero_grad()
            total = loss(model(**batches[0]), batches[0])
            total.backward()
            return total

        optimizer.step(closure)
        ModelObjective(model, loss, batches)


@ORDERS
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_of_either_kind(reentrant: bool, order: str) -> None:
    def other(inner: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(inner, x, use_reentrant=reentrant)

    model, loss, batches = _problem(other)
    _agree(ModelObjective(model, loss, batches[::-1]), _plain(), order)


def test_forward_that_draws_without_effect_leaves_the_generator_alone() -> None:
    f = _reading(lambda inner, x: inner(x) + 0 * torch.randn(1))
    before = torch.get_rng_state()
    f.hvp(f.theta, f.theta)
    f.value(f.theta)
    assert torch.equal(torch.get_rng_state(), before)


def test_parameters_of_a_type_of_their_own_keep_it() -> None:
    class Scaled(nn.Parameter):
        """Whose products are twice what they are."""

        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            with torch._C.DisableTorchFunctionSubclass():
                out = function(*args, **(kwargs or {}))
                return 2 * out if function is functional.linear else out

    model, data = tiny_mlp()
    model[0].weight = Scaled(model[0].weight.data)
    expected = number(LOSS(model(data[0]), data[1]))
    assert expected != pytest.approx(number(LOSS(tiny_mlp()[0](data[0]), data[1])))
    f = ModelObjective(model, LOSS, data)
    assert f.value(f.theta) == pytest.approx(expected, rel=1e-12)
    assert f.at(Checkpoint.of(model)).value(f.theta) == pytest.approx(expected, rel=1e-12)


def test_spectral_normalisation_by_a_hook_that_never_ran_yet_is_taken() -> None:
    """Until then the layer has a view of the weight's memory in its place."""
    model, data = tiny_mlp()
    torch.nn.utils.spectral_norm(model[0])
    f = ModelObjective(model.eval(), LOSS, data)
    assert f.value(f.theta) == pytest.approx(number(LOSS(model(data[0]), data[1])), rel=1e-12)


def test_attributes_of_parameters_stay_wherever_weights_are_put_in() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, _ = tiny_mlp()
            self.inner[0].weight.scale = 0.1

        def forward(self, x: Tensor) -> Tensor:
            weight: Any = self.inner[0].weight
            return self.inner[2](torch.tanh(functional.linear(x, weight * weight.scale, self.inner[0].bias)))

    assert ModelObjective(Scaled(), LOSS, tiny_mlp()[1]).preflight().passed


def test_a_network_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match=r"meta device, which has no values, weight, bias: build it on a real one"):
        ModelObjective(nn.Linear(2, 2, device="meta"), LOSS, (torch.ones(1, 2), torch.zeros(1).long()))
