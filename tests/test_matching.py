"""A network with its hidden units shuffled is the same function, and matching puts them back."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from landscape import Checkpoint, ModelObjective, match_weights
from landscape.problems import digits_mlp
from tests.problems import DOUBLE, seeded, tiny_mlp


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))


class _CNN(nn.Module):
    """Conv, BatchNorm, functions and methods; 3 x 3 positions of each channel are flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 16, 3, padding=1)
        self.plain = nn.BatchNorm2d(16, affine=False)
        self.third = nn.Linear(16 * 9, 20)
        self.last_norm = nn.BatchNorm1d(20)
        self.out = nn.Linear(20, 4)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.norm(self.first(x))), 2)
        x = nn.functional.adaptive_avg_pool2d(self.plain(self.second(x)).tanh(), 3)
        x = nn.functional.dropout(x.view(x.size(0), -1), 0.5, self.training)
        return nn.functional.log_softmax(self.out(nn.functional.gelu(self.last_norm(self.third(x)))), dim=1)


class _Pooled(nn.Module):
    """All-convolutional in one dimension: no linear layer, the last convolution is averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(2, 16, 3), nn.BatchNorm1d(16), nn.ReLU(), nn.AvgPool1d(2))
        self.head = nn.Conv1d(16, 3, 1)

    def forward(self, x):
        return self.head(self.body(x)).mean(-1)


class _Averaged(nn.Module):
    """Channels averaged over their positions before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(2, 16, 3), nn.Linear(16, 3)

    def forward(self, x):
        return self.out(self.conv(x).relu().mean(dim=(-2, -1)))


class _Sequence(nn.Module):
    """One spatial dimension, averaged, and flattened by torch.reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.second, self.out = (
            nn.Conv1d(2, 16, 3),
            nn.BatchNorm1d(16),
            nn.Conv1d(16, 8, 3),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        x = self.second(torch.tanh(self.norm(self.conv(x)))).mean(-1)
        return self.out(torch.reshape(x, shape=(x.shape[0], -1)))


NETWORKS = {
    "mlp": (_mlp, (6,)),
    "cnn": (_CNN, (2, 8, 8)),
    "pooled": (_Pooled, (2, 9)),
    "averaged": (_Averaged, (2, 8, 8)),
    "sequence": (_Sequence, (2, 9)),
    "flattened": (
        lambda: nn.Sequential(nn.Conv2d(2, 10, 3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(40), nn.Linear(40, 3)),
        (2, 4, 4),
    ),
}


def _random(build, seed: int) -> nn.Module:
    """Every weight and statistic random, so that each of them would tell if it were left behind."""
    g = seeded(seed)
    network = build().double().eval()
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=g, dtype=DOUBLE) - 0.3 * (tensor.dim() > 1)
    return network


def _inputs(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(8, *shape, generator=seeded(9), dtype=DOUBLE)


def _outputs(network: nn.Module, checkpoint: Checkpoint, inputs: torch.Tensor) -> torch.Tensor:
    network = copy.deepcopy(network)
    checkpoint.load_into(network)
    with torch.no_grad():
        return network(inputs)


def _shuffled(seed: int) -> tuple[nn.Module, Checkpoint, dict[str, torch.Tensor]]:
    """A random _CNN and the same with its units in another order, written out tensor by tensor."""
    network = _random(_CNN, seed)
    t = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    p, q, r = (torch.randperm(units, generator=seeded(seed + 1)) for units in (12, 16, 20))
    for name, order in (("norm", p), ("plain", q), ("last_norm", r)):
        for part in ("weight", "bias", "running_mean", "running_var"):
            if f"{name}.{part}" in t:
                t[f"{name}.{part}"] = t[f"{name}.{part}"][order]
    t["first.weight"] = t["first.weight"][p]
    t["second.weight"], t["second.bias"] = t["second.weight"][q][:, p], t["second.bias"][q]
    third = t["third.weight"].view(20, 16, 9)[r][:, q]
    t["third.weight"], t["third.bias"] = third.reshape(20, 16 * 9), t["third.bias"][r]
    t["out.weight"] = t["out.weight"][:, r]
    return network, Checkpoint("b", t), {"first": p, "second": q, "third": r}


@pytest.mark.parametrize("seed", [0, 10, 20])
def test_a_shuffle_of_a_random_cnn_with_batchnorm_is_undone_exactly(seed):
    network, b, orders = _shuffled(seed)
    a = Checkpoint.of(network, "a")
    found = match_weights(network, a, b, inputs=_inputs((2, 8, 8)), generator=seeded(0))
    assert found.squared_distance_before > 1
    assert found.squared_distance == 0
    for layer, order in orders.items():  # b has unit order[i] of a at place i
        np.testing.assert_array_equal(order[found.permutations[layer]], np.arange(len(order)), err_msg=layer)
    assert found.permutations.keys() == orders.keys()
    for name, tensor in a.tensors.items():
        assert torch.equal(found.checkpoint.tensors[name], tensor), name
    assert found.checkpoint.name == "b-matched"


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_matching_keeps_the_function_and_never_adds_distance(kind, seed):
    build, shape = NETWORKS[kind]
    network, other = _random(build, seed), _random(build, seed + 100)
    a, b = Checkpoint.of(network, "a"), Checkpoint.of(other, "b")
    found = match_weights(network, a, b, generator=seeded(seed))
    assert any((order != np.arange(len(order))).any() for order in found.permutations.values())
    assert found.squared_distance < found.squared_distance_before
    before, after = (_outputs(network, checkpoint, _inputs(shape)) for checkpoint in (b, found.checkpoint))
    # the sums of at most 144 terms in another order, through four layers; entries are of order 1 to 100
    torch.testing.assert_close(after, before, rtol=1e-11, atol=1e-11)
    # the distance that is told is that of the parameters, whatever their order
    names = [name for name, _ in network.named_parameters()]
    apart = sum(float((a.tensors[n] - found.checkpoint.tensors[n]).square().sum()) for n in names)
    assert found.squared_distance == pytest.approx(apart, rel=1e-12)


def test_one_hidden_layer_is_matched_as_well_as_any_of_all_orders():
    model, _ = tiny_mlp()
    other, _ = tiny_mlp(seed=1)
    a, b = Checkpoint.of(model), Checkpoint.of(other)
    found = match_weights(model, a, b)

    def distance(order: torch.Tensor) -> float:
        t = b.tensors
        moved = {"0.weight": t["0.weight"][order], "0.bias": t["0.bias"][order], "2.weight": t["2.weight"][:, order]}
        return sum(float((a.tensors[name] - {**t, **moved}[name]).square().sum()) for name in t)

    every = torch.cartesian_prod(*[torch.arange(5)] * 5)
    orders = [order for order in every if len(order.unique()) == 5]
    assert len(orders) == 120
    assert found.squared_distance == pytest.approx(min(map(distance, orders)), rel=1e-12)
    assert found.sweeps == 2  # a single assignment is exact, and the second sweep sees that nothing changes


def test_matching_the_nearest_copy_again_changes_nothing():
    network, other = _random(_mlp, 0), _random(_mlp, 1)
    a = Checkpoint.of(network, "a")
    once = match_weights(network, a, Checkpoint.of(other, "b"), generator=seeded(0))
    again = match_weights(network, a, once.checkpoint, generator=seeded(1))
    assert again.sweeps == 1
    assert again.squared_distance == again.squared_distance_before == once.squared_distance


def test_an_objective_brings_its_network_and_sees_on_its_data_that_the_outputs_stay():
    problem = digits_mlp()
    f = problem.objective("test")
    a, b = (Checkpoint.of(problem.build(seed), str(seed)) for seed in (0, 1))
    found = match_weights(f, a, b, generator=seeded(0))
    assert 0 <= found.output_change < 1e-6  # float32, sums of 64 terms
    assert np.isnan(match_weights(problem.build(0), a, b).output_change)
    assert f.at(found.checkpoint).value(f.at(found.checkpoint).theta) == pytest.approx(
        f.at(b).value(f.at(b).theta), rel=1e-6
    )
    bare = match_weights(problem.build(0), a, b, inputs=problem.test[0], generator=seeded(0))
    np.testing.assert_array_equal(bare.permutations["1"], found.permutations["1"])


def test_the_same_seed_gives_the_same_matching():
    network, other = _random(_CNN, 0), _random(_CNN, 1)
    a, b = Checkpoint.of(network), Checkpoint.of(other)
    first, second = (match_weights(network, a, b, generator=seeded(3)) for _ in range(2))
    assert first.checkpoint.digest() == second.checkpoint.digest()


def test_the_users_network_and_checkpoints_stay_as_they_are():
    network, b, _ = _shuffled(0)
    network.train()
    network.first.weight.requires_grad_(False)
    before, digest = Checkpoint.of(network).digest(), b.digest()
    match_weights(ModelObjective(network, nn.NLLLoss(), (_inputs((2, 8, 8)), torch.arange(8) % 4)), b, b)
    match_weights(network, b, b, inputs=_inputs((2, 8, 8)))
    assert (Checkpoint.of(network).digest(), b.digest()) == (before, digest)
    assert all(module.training for module in network.modules())
    assert [p.requires_grad for p in network.parameters()].count(False) == 1


class _Forward(nn.Module):
    """Layers by name, and a forward of them."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._run = forward

    def forward(self, x):
        return self._run(self, x)


def _linear(i: int = 4, o: int = 4) -> nn.Linear:
    return nn.Linear(i, o)


def _tied() -> nn.Module:
    network = nn.Sequential(_linear(), nn.ReLU(), _linear(), nn.ReLU(), _linear())
    network[4].weight = network[2].weight
    return network


REFUSED = {
    "residual": (
        _Forward(lambda m, x: m.c(m.b(h := m.a(x)) + h), a=_linear(), b=_linear(), c=_linear()),
        r"joins .*'b' and 'a'",
    ),
    "skip": (_Forward(lambda m, x: m.b(m.a(x) + x), a=_linear(), b=_linear()), r"add' .* hidden units of layer 'a'"),
    "concatenation": (
        _Forward(lambda m, x: m.b(torch.cat([m.a(x), x], 1)), a=_linear(), b=_linear(8)),
        r"cat' .* layer 'a'",
    ),
    "layer norm": (nn.Sequential(_linear(), nn.LayerNorm(4), _linear()), r"layer '1' \(LayerNorm\)"),
    "grouped": (
        nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)),
        r"layer '1' .* groups=2",
    ),
    "recurrent": (_Forward(lambda m, x: m.out(m.rnn(x)[0]), rnn=nn.LSTM(4, 4), out=_linear()), r"layer 'rnn' \(LSTM\)"),
    "attention": (
        _Forward(lambda m, x: m.out(m.a(x, x, x)[0]), a=nn.MultiheadAttention(4, 1), out=_linear()),
        r"layer 'a' \(MultiheadAttention\)",
    ),
    "embedding": (nn.Sequential(nn.Embedding(5, 4), _linear(), nn.ReLU(), _linear()), r"layer '0' \(Embedding\)"),
    "softmax": (nn.Sequential(_linear(), nn.Softmax(1), _linear()), r"layer '1' \(Softmax\)"),
    "pool of features": (nn.Sequential(_linear(), nn.MaxPool1d(2), _linear(2)), r"layer '1' \(MaxPool1d\)"),
    "linear over positions": (nn.Sequential(nn.Conv2d(2, 4, 1), _linear()), r"layer '1' \(Linear\).* 2 spatial dim"),
    "flatten all": (nn.Sequential(nn.Conv2d(2, 4, 1), nn.Flatten(0), _linear()), r"layer '1' \(Flatten\)"),
    "sequence": (
        nn.Sequential(_linear(), nn.Flatten(), _linear(8)),
        r"layer '2' .* 8 features are not the 4 units of '0'",
    ),
    "transpose": (_Forward(lambda m, x: m.b(m.a(x).transpose(0, 1)), a=_linear(), b=_linear()), r"'transpose'"),
    "slice": (_Forward(lambda m, x: m.b(m.a(x)[:, :2]), a=_linear(), b=_linear(2)), "getitem"),
    "merged rows": (
        _Forward(lambda m, x: m.b((h := m.a(x)).view(h.size(0) * 2, -1)), a=_linear(4, 8), b=_linear()),
        r"'view'",
    ),
    "rows of positions": (  # of 16 channels x 3 x 3: nine rows of one example, in each of which channels are mixed
        _Forward(lambda m, x: m.b(m.a(x).view(-1, 16)), a=nn.Conv2d(2, 16, 3), b=_linear(16)),
        r"operation 'view' .* hidden units of layer 'a'.* whether its rows are examples",
    ),
    "rows of several channels": (
        _Forward(lambda m, x: m.b(m.a(x).reshape(-1, 144)), a=nn.Conv2d(2, 16, 3), b=_linear(144)),
        r"operation 'reshape' .* whether its rows are examples",
    ),
    "rows of features": (
        _Forward(lambda m, x: m.b(m.a(x).view(-1, 2)), a=_linear(), b=_linear(2)),
        r"operation 'view' .* whether its rows are examples",
    ),
    "mean of channels": (_Forward(lambda m, x: m.b(m.a(x).mean((1, 2))), a=nn.Conv2d(2, 4, 1), b=_linear()), r"'mean'"),
    "mean of everything": (_Forward(lambda m, x: m.b(m.a(x).mean() + x), a=_linear(), b=_linear()), r"'mean'"),
    "statistics twice": (
        _Forward(
            lambda m, x: m.c(m.n(m.b(m.n(m.a(x))))),
            a=_linear(),
            b=_linear(),
            c=_linear(),
            n=nn.BatchNorm1d(4, affine=False),
        ),
        r"layer 'n' .* called twice",
    ),
    "twice": (_Forward(lambda m, x: m.b(m.a(m.a(x))), a=_linear(), b=_linear()), r"layer 'a' .* called twice"),
    "also an output": (
        _Forward(lambda m, x: (m.b(h := m.a(x)), h), a=_linear(), b=_linear()),
        r"layer 'a' .* also an output",
    ),
    "loose parameter": (
        _Forward(lambda m, x: m.b(m.a(x) @ m.a.weight), a=_linear(), b=_linear()),
        r"parameter 'a.weight'",
    ),
    "tied": (_tied(), r"\['2.weight', '4.weight'\] are one tensor"),
    "branch": (_Forward(lambda m, x: m.a(x) if x.sum() > 0 else x, a=_linear()), "cannot be traced by torch.fx"),
    "no hidden layer": (nn.Sequential(nn.Flatten(), _linear()), "has no hidden layer"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_covered_is_named(kind):
    network, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        match_weights(network, Checkpoint.of(network), Checkpoint.of(network))


def test_rows_of_a_known_length_are_examples_where_outputs_say_so():
    def positions(side: int) -> nn.Module:  # 16 channels x side x side, in rows of 144 = 16 x 3 x 3
        return _Forward(lambda m, x: m.b(m.a(x).relu().view(-1, 144)), a=nn.Conv2d(2, 16, side), b=_linear(144, 3))

    inputs = _inputs((2, 8, 8))
    for side, mixes in ((6, False), (3, True)):
        network, other = (_random(lambda side=side: positions(side), seed) for seed in (0, 1))
        a, b = Checkpoint.of(network, "a"), Checkpoint.of(other, "b")
        if mixes:
            with pytest.raises(ValueError, match="outputs differ by"):
                match_weights(network, a, b, inputs=inputs)
        else:
            found = match_weights(network, a, b, inputs=inputs)
            assert found.squared_distance < found.squared_distance_before
    features = _random(lambda: _Forward(lambda m, x: m.b(m.a(x).view(-1, 4)), a=_linear(), b=_linear()), 0)
    match_weights(features, Checkpoint.of(features), Checkpoint.of(features))  # a row for each example as before


def test_a_forward_that_does_more_than_its_graph_is_caught_by_the_outputs():
    network, other = (nn.Sequential(_linear(3, 6), nn.Tanh(), _linear(6, 2)) for _ in range(2))
    for each in (network, other):  # a hook on the whole network is no part of its traced forward
        each.register_forward_hook(lambda module, args, outputs: outputs + module[0](args[0])[:, :2])
    with pytest.raises(ValueError, match="outputs differ by"):
        match_weights(network, Checkpoint.of(network), Checkpoint.of(other), inputs=torch.randn(5, 3))


def test_checkpoints_that_do_not_fit_or_have_diverged_are_named():
    network = _mlp()
    a = Checkpoint.of(network, "a")
    with pytest.raises(ValueError, match=r"checkpoint 'wide' does not fit .* 0.weight is \(8, 4\)"):
        match_weights(network, a, Checkpoint("wide", {**a.tensors, "0.weight": torch.zeros(8, 4)}))
    with pytest.raises(ValueError, match=r"checkpoint 'lost' is not finite in '3.bias'"):
        match_weights(network, a, Checkpoint("lost", {**a.tensors, "3.bias": torch.full((12,), float("nan"))}))
