"""Networks that share what they keep, hold what cannot be copied, or lead to modules that nobody named."""

import copy
import gc
import sys
import types
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from landscape import Checkpoint, ModelObjective
from landscape.objective.lending import containers
from tests.problems import DOUBLE, seeded

# float64 against float64: rounding only
EXACT = {"rtol": 1e-9, "atol": 1e-11}
LOSS = nn.CrossEntropyLoss()
X, Y = torch.randn(48, 6, generator=seeded(0), dtype=DOUBLE), torch.arange(48) % 3


def _with_penalty(outputs: Any, batch: Any) -> torch.Tensor:
    return functional.cross_entropy(outputs[0], batch[1]) + 0.1 * outputs[1].mean()


def _is_that_of_a_copy(model: nn.Module, loss: Callable[..., torch.Tensor], batches: Any = (X, Y)) -> ModelObjective:
    """f has value and gradient of a deep copy at other weights, and the user's containers are as they were."""
    pristine = copy.deepcopy(model)
    f = ModelObjective(model, loss, batches)
    theta = f.theta + 0.3 * torch.randn(f.size, generator=seeded(5), dtype=DOUBLE)
    twin = copy.deepcopy(pristine)
    weights = {k: w.clone().requires_grad_() for k, w in f.space.views(theta).items()}
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            weight.copy_(weights[name])
    expected = loss(twin(X), (X, Y))
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(expected, list(twin.parameters()))])
    for g in (f, f.at(Checkpoint.of(model))):
        assert g.value(theta) == pytest.approx(expected.item(), rel=1e-12)
        torch.testing.assert_close(g.gradient(theta), gradient, **EXACT)
        assert g.value(theta) == pytest.approx(expected.item(), rel=1e-12)
    _is_as_before(model, pristine)
    return f


def _is_as_before(model: nn.Module, before: nn.Module) -> None:
    for now, then in zip(model.modules(), before.modules(), strict=True):
        for key, value in vars(then).items():
            if isinstance(value, list | dict | set | deque | int | np.ndarray) and not key.startswith("_"):
                assert type(vars(now)[key]) is type(value), key
                assert repr(vars(now)[key]) == repr(value), key
        for name, tensor in then._buffers.items():
            assert torch.equal(now._buffers[name], tensor), name


# --- containers that several hold --------------------------------------------------------------------


class _Expert(nn.Module):
    def __init__(self, bag: Any) -> None:
        super().__init__()
        self.linear, self.bag = nn.Linear(6, 6, dtype=DOUBLE), bag

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.linear(x))
        self.keep(h.square().mean(1))
        return h

    def keep(self, h: torch.Tensor) -> None:
        self.bag.append(h)


class _IntoDict(_Expert):
    def keep(self, h: torch.Tensor) -> None:
        self.bag["aux"]["last"] = [h]


class _IntoTuple(_Expert):
    def keep(self, h: torch.Tensor) -> None:
        self.bag[1][0].append(h)


class _Mixture(nn.Module):
    """An auxiliary loss, collected in one container that two modules hold."""

    kind: type = _Expert

    def __init__(self) -> None:
        super().__init__()
        self.aux = self.new()
        self.expert, self.head = self.kind(self.aux), nn.Linear(6, 3, dtype=DOUBLE)

    def new(self) -> Any:
        return []

    def collected(self) -> list[torch.Tensor]:
        return list(self.aux)

    def clear(self) -> None:
        self.aux.clear()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.clear()
        z = self.head(self.expert(x))
        return z, sum(self.collected(), torch.zeros(len(x), dtype=DOUBLE))


class _MixtureWithDict(_Mixture):
    kind = _IntoDict

    def new(self) -> Any:
        return OrderedDict(aux={}, other=[1])

    def clear(self) -> None:
        self.aux["aux"].clear()

    def collected(self) -> list[torch.Tensor]:
        return list(self.aux["aux"].get("last", []))


class _MixtureWithTuple(_MixtureWithDict):
    kind = _IntoTuple

    def new(self) -> Any:
        return ("fixed", [deque(maxlen=3)])

    def clear(self) -> None:
        self.aux[1][0].clear()

    def collected(self) -> list[torch.Tensor]:
        return list(self.aux[1][0])


@pytest.mark.parametrize("kind", [_Mixture, _MixtureWithDict, _MixtureWithTuple], ids=lambda k: k.__name__)
def test_a_container_that_two_modules_hold_is_one(kind: type[_Mixture]) -> None:
    torch.manual_seed(0)
    _is_that_of_a_copy(kind(), _with_penalty)


class _Hooked(nn.Module):
    """Features by way of a hook that has the dictionary in its closure; a second closure reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6, dtype=DOUBLE), nn.Linear(6, 3, dtype=DOUBLE)
        self.features: dict[str, torch.Tensor] = {}
        features = self.features

        def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            features["a"] = output

        self.body.register_forward_hook(keep)
        self.penalty = lambda: features["a"].square().mean(1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.head(torch.tanh(self.body(x)))
        return z, self.features["a"].abs().mean(1) + self.penalty()


def test_a_container_that_a_closure_captured_is_the_modules() -> None:
    torch.manual_seed(0)
    model = _Hooked()
    before = model.features
    f = ModelObjective(model, _with_penalty, (X, Y))
    assert model.features is before
    assert before == {}
    theta = f.theta + 0.1
    value = f.value(theta)
    assert before == {}
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1)
        expected = float(_with_penalty(model(X), (X, Y)))
    assert value == pytest.approx(expected, rel=1e-12)


class _Pair(NamedTuple):
    weight: torch.Tensor
    kept: list


class _Shared(nn.Module):
    """Registries of a shallow copy are those of the module; tensors in tuples, sets and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 6, dtype=DOUBLE), nn.Linear(6, 3, dtype=DOUBLE)
        self.first.register_buffer("level", torch.zeros(6, dtype=DOUBLE))
        self.again = copy.copy(self.first)
        self.pair = _Pair(self.first.weight, [])
        self.named = (self.first.bias, "bias")
        self.rates = {self.head.weight: 0.5}
        self.unordered = {self.head.bias}

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.first.level = self.first(x).mean(0)
        self.pair.kept.append(1)
        h = functional.linear(x, self.pair.weight, self.named[0]) + 0 * self.again.level
        bias = next(iter(self.unordered))
        z = functional.linear(torch.tanh(h), self.rates[self.head.weight] * self.head.weight, bias)
        return z, (h * len(self.pair.kept)).square().mean(1)


def test_registries_of_shallow_copies_and_tensors_in_tuples_sets_and_keys() -> None:
    torch.manual_seed(0)
    model = _Shared()
    f = ModelObjective(model, _with_penalty, (X, Y))
    assert model.pair.kept == []
    assert torch.equal(model.first.level, torch.zeros(6, dtype=DOUBLE))
    v = torch.randn(f.size, generator=seeded(1), dtype=DOUBLE)
    theta, step = f.theta + 0.1, 1e-5
    slope = (f.value(theta + step * v) - f.value(theta - step * v)) / (2 * step)
    assert slope == pytest.approx(float(f.gradient(theta) @ v), rel=1e-7)  # differences: step^2, and eps / step
    curved = (f.gradient(theta + step * v) - f.gradient(theta - step * v)) / (2 * step)
    torch.testing.assert_close(f.hvp(theta, v), curved, rtol=1e-6, atol=1e-8)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1)
        assert f.value(theta) == pytest.approx(float(_with_penalty(model(X), (X, Y))), rel=1e-12)


class _Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3, dtype=DOUBLE)
        self.counter, self.array = Counter(calls=3), np.array([4.0, np.nan])
        self.nested = {"arrays": [np.zeros(2, dtype=int)], "self": None}
        self.nested["self"] = self.nested  # which contains itself
        self.seen: set[int] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.counter["calls"] += 1
        self.counter.update(["new"])
        self.array[0] += 1
        self.nested["self"]["arrays"][0][1] += 1
        self.seen.add(len(self.seen))
        scale = self.counter["calls"] + self.array[0] + self.nested["arrays"][0][1] + len(self.seen)
        return self.linear(x) * scale / 11  # 4 + 5 + 1 + 1 in every evaluation that begins as the network is


@pytest.mark.parametrize("broken", [False, True])
def test_counters_and_arrays_are_put_back_also_after_errors(broken: bool) -> None:
    torch.manual_seed(0)
    model = _Counts()
    f = ModelObjective(model, LOSS, (X, Y))
    expected = float(LOSS(model.linear(X), Y).detach())
    assert f.value(f.theta) == pytest.approx(expected, rel=1e-12)
    if broken:

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ModelObjective(model, interrupted, (X, Y))
    g = f.at(Checkpoint.of(model))
    assert g.value(g.theta) == g.value(g.theta) == pytest.approx(expected, rel=1e-12)
    assert model.counter == {"calls": 3}
    assert type(model.counter) is Counter
    assert repr(model.array) == "array([ 4., nan])"
    assert model.nested["self"] is model.nested
    assert model.nested["arrays"][0].tolist() == [0, 0]
    assert model.seen == set()


def test_ctrl_c_while_containers_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = _Counts()
    f = ModelObjective(model, LOSS, (X, Y))
    write, clear = containers.Container.write, [True]

    def interrupted(self: containers.Container, content: Any) -> None:
        if clear and self.container is model.counter and model.counter["calls"] == 4:
            clear.pop()
            model.counter.clear()
            raise KeyboardInterrupt
        write(self, content)

    f.value(f.theta)
    monkeypatch.setattr(containers.Container, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        f.value(f.theta)
    assert clear == []
    assert model.counter == {"calls": 3}
    assert repr(model.array) == "array([ 4., nan])"


# --- modules that nobody named -----------------------------------------------------------------------


def _teacher() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)).to(DOUBLE)


class _InClass:
    teacher = _teacher()


class _InSlots:
    __slots__ = ("teacher",)

    def __init__(self) -> None:
        self.teacher = _teacher()


class _Trainer:
    """What leads to more objects than are looked at."""

    def __init__(self) -> None:
        self.teacher = _teacher()
        self.samples = [[i] for i in range(12_000)]


_SLOTS, _TRAINER = _InSlots(), _Trainer()
_FILE = types.ModuleType("teachers")
_FILE.net = _teacher()
_WEAK = weakref.proxy(_FILE.net)

_TEACHERS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], nn.Module]] = {
    "class": (lambda x: _InClass.teacher(x), _InClass.teacher),
    "slots": (lambda x: _SLOTS.teacher(x), _SLOTS.teacher),
    "trainer": (lambda x: _TRAINER.teacher(x), _TRAINER.teacher),
    "file": (lambda x: _FILE.net(x), _FILE.net),
    "proxy": (lambda x: _WEAK(x), _FILE.net),
    "in parts": (lambda x: functional.relu(sys.modules[__name__]._InClass.teacher[:2](x))[:, :3], _InClass.teacher),
}


@pytest.mark.parametrize("where", _TEACHERS)
def test_a_teacher_wherever_it_is_kept_is_owned(where: str) -> None:
    teacher_of, teacher = _TEACHERS[where]
    # a freshly made module, too, at each call: nobody's state
    loss = lambda o, b: functional.mse_loss(nn.LayerNorm(3, dtype=DOUBLE)(o), teacher_of(b[0])) + nn.MSELoss()(o, 0 * o)  # noqa: E731
    before, rng = copy.deepcopy(teacher), torch.get_rng_state()
    torch.manual_seed(0)
    model = nn.Linear(6, 3, dtype=DOUBLE)
    start = torch.get_rng_state()
    f = ModelObjective(model, loss, [(X[:24], Y[:24]), (X[24:], Y[24:])])
    value, other = f.value(f.theta), f.at(Checkpoint.of(model))
    assert other.value(other.theta) == value
    assert torch.equal(torch.get_rng_state(), start)
    torch.set_rng_state(rng)
    assert teacher.training
    assert all(torch.equal(t, before.state_dict()[k]) for k, t in teacher.state_dict().items())
    teacher.eval()
    try:
        with torch.no_grad():
            expected = float(loss(model(X), (X, Y)))
    finally:
        teacher.train()
    assert value == pytest.approx(expected, rel=1e-12)
    with torch.no_grad():  # what it is made of is as it was
        teacher[0].weight.add_(1.0)
    assert f.value(f.theta) == value
    with torch.no_grad():
        teacher[0].weight.copy_(before[0].weight)


class _Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3, dtype=DOUBLE)

    def forward(self, batch: Any) -> torch.Tensor:
        z = self.linear(batch["x"])
        return z + _InClass.teacher(batch["x"]) if batch["late"] else z


def test_a_teacher_that_only_a_later_batch_meets_and_one_of_our_own_layers() -> None:
    torch.manual_seed(0)
    model, before = _Branch(), copy.deepcopy(_InClass.teacher)
    batches = [{"x": X[:24], "y": Y[:24], "late": False}, {"x": X[24:], "y": Y[24:], "late": True}]

    class Wrapper:
        whole = nn.Sequential(model.linear)  # whose weight is one of theta

    loss = lambda o, b: functional.cross_entropy(o, b["y"]) + Wrapper.whole(b["x"]).square().mean()  # noqa: E731
    calls: list[int] = []
    f = ModelObjective(model, loss, batches, forward=lambda m, b: (calls.append(1), m(b))[1])
    assert len(calls) <= 10 + 1  # one begins anew
    theta = f.theta + 0.1
    value = f.value(theta)
    assert _InClass.teacher.training
    assert all(torch.equal(t, before.state_dict()[k]) for k, t in _InClass.teacher.state_dict().items())
    assert not any(p.requires_grad is False for p in _InClass.teacher.parameters())
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1)
        _InClass.teacher.eval()
        expected = sum(float(loss(model(b), b)) for b in batches) / 2
        _InClass.teacher.train()
    assert value == pytest.approx(expected, rel=1e-12)


def test_modules_that_refer_to_themselves_and_are_made_anew_and_those_that_are_kept_for_ever() -> None:
    class Cyclic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, dtype=DOUBLE))
            self.me = [self]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    model = nn.Linear(6, 3, dtype=DOUBLE)
    f = ModelObjective(model, lambda o, b: functional.cross_entropy(Cyclic()(o), b[1]), (X, Y))
    assert f.value(f.theta) == pytest.approx(float(LOSS(model(X), Y).detach()), rel=1e-12)
    assert len(f._evaluation.network.modules) == 1
    for_ever: list[tuple[nn.Module]] = []

    class Log:
        @staticmethod
        def kept(module: nn.Module) -> nn.Module:
            for_ever.append((module,))
            return module

    with pytest.raises(ValueError, match="more than 20, the last a Cyclic"):
        ModelObjective(model, lambda o, b: functional.cross_entropy(Log.kept(Cyclic())(o), b[1]), (X, Y))
    assert not gc.garbage


# --- objects that cannot be looked at ----------------------------------------------------------------


class _Quantised(nn.Module):
    def __init__(self, *, registered: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3, dtype=DOUBLE)
        q = torch.quantize_per_tensor(torch.arange(3.0), 0.1, 0, torch.quint8)
        if registered:
            self.register_buffer("q", q)
        else:
            self.held = [q]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + (self.q if "q" in self._buffers else self.held[0]).dequantize()


class _Raises:
    @property
    def __class__(self) -> type:  # as proxies whose target cannot be imported
        raise RuntimeError("asked")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantised_tensors_are_refused_by_name_wherever_they_are_called() -> None:
    with pytest.raises(ValueError, match=r"^model has tensors that are made of others, q \(torch\.quint8\)"):
        ModelObjective(_Quantised(), LOSS, (X, Y))
    teacher = _Quantised()
    with pytest.raises(ValueError, match=r"a _Quantised that forward or the loss calls has .* q \(torch\.quint8\)"):
        ModelObjective(nn.Linear(6, 3, dtype=DOUBLE), lambda o, b: LOSS(o + teacher(b[0]), b[1]), (X, Y))
    model = _Quantised(registered=False)  # which is nobody's state, and copied
    f = ModelObjective(model, LOSS, (X, Y))
    assert f.value(f.theta) == pytest.approx(float(LOSS(model(X), Y).detach()), rel=1e-12)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_what_a_loss_names_and_does_not_call_is_let_be() -> None:
    target = _Raises()
    dead = weakref.proxy(nn.Linear(1, 1))
    cyclic: dict[str, Any] = {"lazy": nn.LazyLinear(3), "proxy": target, "dead": dead, "quantised": _Quantised()}
    cyclic["self"] = cyclic
    named = {"all": cyclic, "list": [dead, target], "off": nn.Linear(2, 2, device="meta")}
    model = nn.Linear(6, 3, dtype=DOUBLE)
    model.kept = {"dead": dead, "raises": target, "more": [cyclic]}
    f = ModelObjective(model, lambda o, b: (named, LOSS(o, b[1]))[1], (X, Y))
    assert f.value(f.theta) == pytest.approx(float(LOSS(model(X), Y).detach()), rel=1e-12)
    assert model.kept["more"][0] is cyclic
    assert cyclic["self"] is cyclic
    with pytest.raises(ValueError, match="a LazyLinear that forward or the loss calls has parameters without a shape"):
        ModelObjective(model, lambda o, b: LOSS(o + cyclic["lazy"](b[0]), b[1]), (X, Y))
    assert cyclic["lazy"].has_uninitialized_params()


def test_empty_parameters_and_buffers_are_taken() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.empty = nn.Linear(6, 3, dtype=DOUBLE), nn.Parameter(torch.empty(0, 6, dtype=DOUBLE))
            self.register_buffer("none", torch.empty(0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.linear(x), functional.linear(x, self.empty)], 1) + torch.empty(0).sum()

    model = Empty()
    f = ModelObjective(model, LOSS, (X, Y))
    assert f.value(f.theta + 0.1) == pytest.approx(
        float(LOSS(functional_call(model, f.space.views(f.theta + 0.1), (X,)), Y)), rel=1e-12
    )
