"""Whatever a network holds its weights by, f is that of the network at theta, and the user's is as before."""

import copy
import sys
import tempfile
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.distributed
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from landscape import Checkpoint, ModelObjective
from landscape.objective.lending import network
from tests.problems import DOUBLE, seeded, tiny_mlp, tiny_objective

# float64 against float64: rounding only
EXACT = {"rtol": 1e-9, "atol": 1e-11}
LOSS = nn.CrossEntropyLoss()


def _is_the_tiny_mlp(f: ModelObjective) -> None:
    """f has the value and derivatives of ``tiny_mlp`` away from its own weights."""
    g = tiny_objective()
    assert f.size == g.size
    theta = g.theta + 0.3 * torch.randn(g.size, generator=seeded(5), dtype=DOUBLE)
    v = torch.randn(g.size, generator=seeded(6), dtype=DOUBLE)
    assert f.value(theta) == pytest.approx(g.value(theta), rel=1e-12)
    for ours, expected in (
        (f.gradient(theta), g.gradient(theta)),
        (f.hvp(theta, v), g.hvp(theta, v)),
        (f.gnvp(theta, v), g.gnvp(theta, v)),
    ):
        torch.testing.assert_close(ours, expected, **EXACT)


class _Own(nn.Module):
    """The tiny network, with its layers as attributes."""

    def __init__(self) -> None:
        super().__init__()
        model, _ = tiny_mlp()
        self.first, self.last = model[0], model[2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x)))


class _BoundMethod(_Own):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = self._hidden

    def _hidden(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(functional.linear(x, self.first.weight, self.first.bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.hidden(x))


class _ClosureOverParameter(_Own):
    """What no exchange of attributes reaches."""

    def __init__(self) -> None:
        super().__init__()
        weight, bias = self.first.weight, self.first.bias
        self.hidden = lambda x: torch.tanh(x @ weight.T + bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.hidden(x))


class _Partial(_Own):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = partial(functional.linear, weight=self.first.weight, bias=self.first.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.hidden(x)))


class _List(_Own):
    def __init__(self) -> None:
        super().__init__()
        self.tensors = {"first": [self.first.weight, self.first.bias]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(functional.linear(x, *self.tensors["first"])))


class _Checkpointed(_Own):
    """Runs again in the backward pass, when it has to be lent as well."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(checkpoint(lambda h: torch.tanh(self.first(h)), x, use_reentrant=False))


@pytest.mark.parametrize(
    "model", [_Own, _BoundMethod, _ClosureOverParameter, _Partial, _List, _Checkpointed], ids=lambda m: m.__name__
)
def test_weights_held_in_any_way_are_those_at_theta(model: type[_Own]) -> None:
    _, data = tiny_mlp()
    network = model().double()
    f = ModelObjective(network, LOSS, data, batch_size=20)
    _is_the_tiny_mlp(f)
    _is_the_tiny_mlp(f.at(Checkpoint.of(network)))
    report = f.preflight()
    assert report.passed, report


def test_what_was_calculated_from_weights_at_construction_is_refused_by_name() -> None:
    _, data = tiny_mlp()
    network = _Own()
    transposed = network.first.weight.T
    network.forward = lambda x: network.last(torch.tanh(x @ transposed + network.first.bias))
    with pytest.raises(ValueError, match=r"do not follow theta in first\.weight: "):
        ModelObjective(network, LOSS, data)
    network = _Own()
    network.view = network.first.weight.data
    with pytest.raises(ValueError, match=r"^view of the model is a view of one of its trainable parameters"):
        ModelObjective(network, LOSS, data)


# --- wrapped networks --------------------------------------------------------------------------------


def _compiled_in_place() -> nn.Module:
    model, _ = tiny_mlp()
    model.compile(backend="eager")
    return model


def _compiled_part() -> nn.Module:
    model, _ = tiny_mlp()
    return nn.Sequential(torch.compile(model[0], backend="eager"), *model[1:])


def _compiled_forward() -> nn.Module:
    model, _ = tiny_mlp()
    model.forward = torch.compile(model.forward, backend="aot_eager")
    return model


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (lambda: torch.compile(tiny_mlp()[0], backend="aot_eager"), "runs eagerly"),
        (_compiled_in_place, "runs eagerly"),
        (_compiled_part, "runs eagerly"),
        (_compiled_forward, "runs eagerly"),
        (lambda: torch.jit.script(tiny_mlp()[0]), "TorchScript"),
        (lambda: torch.jit.trace(*_and_inputs()), "TorchScript"),
        (lambda: torch.fx.symbolic_trace(tiny_mlp()[0]), ""),
        (lambda: nn.DataParallel(tiny_mlp()[0]), "inside DataParallel"),
    ],
    ids=["compiled", "in place", "part", "forward", "script", "trace", "fx", "data parallel"],
)
def test_wrapped_networks_are_the_networks_inside(wrap: Callable[[], nn.Module], told: str) -> None:
    _, data = tiny_mlp()
    network = wrap()
    network(data[0]).sum().backward()  # compiled code is there
    before = [p.detach().clone() for p in network.parameters()]
    f = ModelObjective(network, LOSS, data)
    _is_the_tiny_mlp(f)
    _is_the_tiny_mlp(f.at(Checkpoint.of(network)))
    report = f.preflight()
    assert report.passed, report
    assert told in str(report)
    assert all(torch.equal(p, then) for p, then in zip(network.parameters(), before, strict=True))
    assert network.training


def _and_inputs() -> tuple[nn.Module, torch.Tensor]:
    model, (x, _) = tiny_mlp()
    return model, x


def test_distributed_data_parallel_goes_on_as_before() -> None:
    _, data = tiny_mlp()
    store = f"file://{tempfile.mktemp()}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        network = nn.parallel.DistributedDataParallel(tiny_mlp()[0])
        for _ in range(2):  # its reducer would miss a gradient, or have one too many
            network(data[0]).sum().backward()
            _is_the_tiny_mlp(ModelObjective(network, LOSS, data))
    finally:
        torch.distributed.destroy_process_group()


def test_a_function_of_a_dictionary_of_tensors() -> None:
    model, data = tiny_mlp()
    params = {f"layer{i}.{k}": t.detach() for i in (0, 2) for k, t in model[i].named_parameters()}

    def network(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(x @ p["layer0.weight"].T + p["layer0.bias"])
        return hidden @ p["layer2.weight"].T + p["layer2.bias"]

    f = ModelObjective(network, LOSS, data, params=params)
    assert f.space.names == tuple(params)
    _is_the_tiny_mlp(f)
    doubled = f.at(Checkpoint("doubled", {name: 2 * t for name, t in params.items()}))
    torch.testing.assert_close(doubled.theta, 2 * f.theta)
    some = ModelObjective(network, LOSS, data, params={**params, "layer2.bias": params["layer2.bias"].requires_grad_()})
    assert some.space.names == ("layer2.bias",)
    with pytest.raises(TypeError, match="params="):
        ModelObjective(network, LOSS, data)
    with pytest.raises(TypeError, match="nested dictionaries flattened"):
        ModelObjective(network, LOSS, data, params={"layer0": {"weight": params["layer0.weight"]}})


def test_a_lightning_module_with_its_training_step() -> None:
    from lightning import LightningModule

    class Lit(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, _ = tiny_mlp()
            self.seen = torch.zeros(())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: tuple, _: int) -> torch.Tensor:
            self.seen += len(batch[0])
            return functional.cross_entropy(self(batch[0]), batch[1])

    _, data = tiny_mlp()
    network = Lit()
    _is_the_tiny_mlp(ModelObjective(network, LOSS, data))
    f = ModelObjective(network, None, data, forward=lambda lit, batch: lit.training_step(batch, 0))
    assert f.value(f.theta) == pytest.approx(tiny_objective().value(f.theta), rel=1e-12)
    assert network.seen == 0


# --- the user's network is as before -------------------------------------------------------------------


class _Remembers(_Own):
    """Leaves something behind in every way it can."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs, self.last_seen, self.calls = [], {}, 0
        self.total, self.generator = torch.zeros(2), torch.Generator().manual_seed(1)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = super().forward(x)
        self.outputs.append(z)
        self.last_seen["z"] = z
        self.calls += 1
        self.total.add_(1)
        self.count += 1
        self.register_buffer("latest", z.detach())
        # of the number of calls, of a buffer and of its own random numbers, so that f tells whether they begin anew
        extra = self.calls + self.count + self.total[0] + torch.randn((), generator=self.generator, dtype=x.dtype)
        return z + 0.1 * extra * torch.tensor([1.0, 0.0, 0.0], dtype=x.dtype)


def test_what_forward_leaves_behind_is_forgotten() -> None:
    _, data = tiny_mlp()
    network = _Remembers()
    before = copy.deepcopy(vars(network))
    f = ModelObjective(network, LOSS, data)
    values = {f.value(f.theta), f.value_and_gradient(f.theta)[0], f.at(Checkpoint.of(network)).value(f.theta)}
    assert max(values) - min(values) < 1e-14
    f.hvp(f.theta, f.theta)
    assert (network.outputs, network.last_seen, network.calls) == ([], {}, 0)
    assert network.total.tolist() == [0, 0]
    assert int(network.count) == 0
    assert torch.equal(network.generator.get_state(), before["generator"].get_state())
    assert not hasattr(network, "latest")
    assert "buffers are updated in forward" in str(f.preflight())


def test_the_network_may_change_meanwhile() -> None:
    model, data = tiny_mlp()
    f = ModelObjective(model, LOSS, data)
    model.half().train()
    model[0].requires_grad_(False)
    model[2] = nn.Linear(5, 9)
    _is_the_tiny_mlp(f)
    assert model[0].weight.dtype is torch.float16
    assert len(model[2].weight) == 9
    nn.utils.parametrizations.weight_norm(model[0].float())
    with pytest.raises(ValueError, match="has a Linear that has become a ParametrizedLinear"):
        f.value(f.theta - 1)


def test_two_objectives_over_one_network_take_turns_also_within_each_other() -> None:
    model, data = tiny_mlp()
    f = ModelObjective(model, LOSS, data)
    g = ModelObjective(
        model, lambda outputs, batch: functional.cross_entropy(outputs, batch[1]) + f.value(f.theta + 1), data
    )
    _is_the_tiny_mlp(f)
    assert g.value(g.theta) == pytest.approx(f.value(f.theta) + f.value(f.theta + 1), rel=1e-12)
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_hooks_of_the_users_run_in_forward_and_none_on_their_gradients() -> None:
    model, data = tiny_mlp()
    model[0].weight.register_hook(lambda gradient: 0 * gradient)
    model[1].register_forward_hook(lambda module, inputs, output: None)
    _is_the_tiny_mlp(ModelObjective(model, LOSS, data))
    assert len(model[1]._forward_hooks) == 1


def test_ctrl_c_at_any_line_leaves_the_network_as_it_was() -> None:
    _, (x, y) = tiny_mlp()
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    modules = list(model.modules())
    theirs, before = [vars(m) for m in modules], copy.deepcopy(model.state_dict())
    f = ModelObjective(model, LOSS, (x, y))
    expected = f.value(f.theta + 1)
    line, reached = 0, True
    while reached:
        line += 1
        reached = _interrupted_at(line, partial(f.value, f.theta + 1))
        assert all(vars(m) is own for m, own in zip(modules, theirs, strict=True)), line
    assert line > 50
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert f.value(f.theta + 1) == expected


def _interrupted_at(line: int, call: Callable[[], object]) -> bool:
    """Raise KeyboardInterrupt at that line of the lending; False where there are fewer."""
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        if frame.f_code.co_filename != network.__file__:
            return None
        if event == "line":
            seen += 1
            if seen == line:
                raise KeyboardInterrupt
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(previous)
    return False


# --- refused -------------------------------------------------------------------------------------------


def test_networks_that_are_not_taken_are_named() -> None:
    model, (x, y) = tiny_mlp()
    with pytest.raises(ValueError, match=r"without a shape yet, 0\.weight, 0\.bias"):
        ModelObjective(nn.Sequential(nn.LazyLinear(3)), LOSS, (x, y))
    with pytest.raises(ValueError, match="complex parameters"):
        ModelObjective(nn.Linear(4, 3, dtype=torch.complex128), LOSS, (x, y))
    with pytest.raises(TypeError, match="model is a int"):
        ModelObjective(3, LOSS, (x, y))
    with pytest.raises(
        ValueError, match=r"cannot be evaluated \(RuntimeError.*in torch.float64 and data holds torch.float32"
    ):
        ModelObjective(model, LOSS, (x.float(), y))
    bounded = nn.Sequential(nn.Embedding(9, 3, max_norm=0.5), nn.Flatten(), nn.Linear(6, 3)).double()
    with pytest.raises(ValueError, match=r"has an embedding '0' with max_norm=0\.5"):
        ModelObjective(bounded, LOSS, (torch.arange(18).view(9, 2) % 9, y[:9]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_evaluated_in_single_precision(dtype: torch.dtype) -> None:
    model, (x, y) = tiny_mlp()
    f = ModelObjective(model.to(dtype), LOSS, (x.to(dtype), y))
    same = ModelObjective(copy.deepcopy(model).float(), LOSS, (x.to(dtype).float(), y))
    assert f.dtype is torch.float32
    assert f.value(f.theta) == same.value(f.theta)
    assert "evaluated in torch.float32" in str(f.preflight())
    mixed = nn.Sequential(model[0].float(), nn.Tanh(), model[2])
    with pytest.raises(ValueError, match=r"dtype=torch\.float32 to have it evaluated so"):
        ModelObjective(mixed, LOSS, (x.float(), y))
    wide = ModelObjective(mixed, LOSS, (x.float(), y), dtype=DOUBLE)
    assert wide.dtype is DOUBLE
    assert mixed[2].weight.dtype is dtype


def test_autocast_around_an_analysis_changes_nothing() -> None:
    model, data = tiny_mlp()
    with torch.autocast("cpu", torch.bfloat16):
        _is_the_tiny_mlp(ModelObjective(model, LOSS, data))
