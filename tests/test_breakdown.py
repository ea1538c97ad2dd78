"""Blocks of the Hessian by layer, and the spectrum's spread over parts of the data."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import ModelObjective
from landscape.objective.data.batches import tensors_in
from landscape.spectrum import spectrum_by_layer, spectrum_over_data
from tests.problems import DOUBLE, dense_hessian, seeded, tiny_mlp, tiny_objective


def test_layers_are_the_diagonal_blocks_of_the_hessian():
    model, data = tiny_mlp()
    hessian = dense_hessian(model, data)
    table = spectrum_by_layer(tiny_objective(), steps=1, probes=300, generator=seeded(0))
    assert table.layer.values.tolist() == ["0", "2"]
    for layer, block in (("0", slice(0, 25)), ("2", slice(25, 43))):
        row = table.sel(layer=layer)
        exact = torch.linalg.eigvalsh(hessian[block, block]).numpy()
        assert int(row["size"]) == len(exact)
        # eigenvalues are off by the square of a residual of 1e-3 lambda_max over the gap
        np.testing.assert_allclose([row.lambda_min, row.lambda_max], exact[[0, -1]], atol=1e-3 * exact[-1])
        assert abs(float(row.trace) - exact.sum()) < 4 * float(row.trace_stderr)


@pytest.mark.filterwarnings("ignore:no gradient reaches")
def test_a_layer_that_is_not_used_is_flat():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.used(x)

    _, data = tiny_mlp()
    table = spectrum_by_layer(ModelObjective(Idle().double(), nn.CrossEntropyLoss(), data), generator=seeded(0))
    assert table.sel(layer="used").lambda_max > 0
    flat = table.sel(layer="idle").drop_vars(["layer", "size"])
    assert all(float(value) == 0 for value in flat.values())


def test_layers_may_be_named_by_patterns():
    table = spectrum_by_layer(tiny_objective(), {"weights": ["*.weight"], "all": ["*"]}, probes=2, generator=seeded(0))
    assert table["size"].values.tolist() == [35, 43]
    assert table.lambda_max[0] <= table.lambda_max[1]


def test_parts_are_disjoint_and_make_up_the_whole():
    model, (x, y) = tiny_mlp()
    f = ModelObjective(model, nn.CrossEntropyLoss(), (x, y), batch_size=20)
    parts = f.parts(3)
    assert sum(part.examples for part in parts) == 50
    v = torch.ones(f.size, dtype=DOUBLE)
    mean = sum(part.examples * part.hvp(f.theta, v) for part in parts) / 50
    torch.testing.assert_close(mean, f.hvp(f.theta, v), rtol=1e-10, atol=1e-12)  # rounding
    assert {part.examples for part in parts} == {16, 17}
    assert [part.examples for part in f.parts(50)] == [1] * 50
    for count in (0, 51):
        with pytest.raises(ValueError, match=f"parts={count}: give 1 to 50, as many as there are examples"):
            f.parts(count)


def test_a_part_is_evaluated_in_as_few_batches_as_hold_its_examples():
    """Of 100 examples in batches of 10, a third has 33 or 34: four batches of 8 or 9, not ten of three."""
    x = torch.randn(100, 4, generator=seeded(0), dtype=DOUBLE)
    y = torch.arange(100) % 3
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    for forward, data in (
        (None, list(zip(x.split(10), y.split(10), strict=True))),
        (
            lambda model, batch: model(batch["nested"]["x"]),
            [{"nested": {"x": a}, "y": (b,)} for a, b in zip(x.split(10), y.split(10), strict=True)],
        ),
    ):

        def loss(outputs: torch.Tensor, batch: object) -> torch.Tensor:
            return nn.functional.cross_entropy(outputs, batch[1] if isinstance(batch, tuple) else batch["y"][0])

        parts = ModelObjective(model, loss, data, forward=forward).parts(3)
        counts = [[count for _, count in part._batches] for part in parts]
        assert [sorted(each) for each in counts] == [[8, 8, 9, 9], [8, 8, 8, 9], [8, 8, 8, 9]]
        rows = torch.cat([t for part in parts for batch, _ in part._batches for t in tensors_in(batch) if t.dim() > 1])
        # each example once
        assert torch.equal(rows[rows[:, 0].argsort()], x[x[:, 0].argsort()])
    # one example has no variance: BatchNorm would refuse it
    singles = ModelObjective(model, nn.CrossEntropyLoss(), list(zip(x.split(4), y.split(4), strict=True))).parts(20)
    assert {count for part in singles for _, count in part._batches} == {2, 3}


def test_what_differs_between_batches_keeps_them_apart():
    """As the length to which sequences were padded does, and what is no tensor."""
    one = nn.Linear(1, 1, bias=False).double()
    kinds = {(2, "a"), (3, "b"), (3, "c")}
    data = [(torch.ones(4, length, dtype=DOUBLE), tag) for length, tag in sorted(kinds)]
    for batches in (data, [batch[:1] for batch in data]):
        f = ModelObjective(
            one, lambda y, batch: y.mean(), batches, forward=lambda m, batch: m(batch[0].sum(1, keepdim=True))
        )
        parts = f.parts(2)
        mean = sum(part.examples * part.value(f.theta) for part in parts) / 12
        assert mean == pytest.approx(f.value(f.theta), rel=1e-12)  # rounding
        found = {(batch[0].shape[1], *batch[1:]) for part in parts for batch, _ in part._batches}
        assert found == {kind[: 1 + len(batches[0][1:])] for kind in kinds}


def test_parts_are_at_the_networks_own_weights_wherever_the_whole_was_last():
    f = tiny_objective()
    before = f.parts(2)
    f.value(f.theta + 1)
    for part, same in zip(f.parts(2), before, strict=True):
        assert torch.equal(part.theta, f.theta)
        assert part.value(f.theta) == same.value(f.theta)


@pytest.mark.parametrize("order", ["sorted", "periodic"])
def test_parts_are_samples_in_whatever_order_the_data_come(order):
    """f(w) = mean (x w)^2 has H = 2 mean x^2: over parts of m examples, it is spread by s / sqrt(m)."""
    x = torch.arange(1600, dtype=DOUBLE) % 16
    x = (x.sort().values if order == "sorted" else x)[:, None]
    f = ModelObjective(nn.Linear(1, 1, bias=False).double(), nn.MSELoss(), (x, torch.zeros_like(x)), batch_size=400)
    one = torch.ones(1, dtype=DOUBLE)
    curvatures = [float(part.hvp(part.theta, one)) for part in f.parts(16)]
    s = float((2 * x**2).std())
    # known to 1/sqrt(30) = 18 % from 16 parts, here thrice
    assert 0.45 < np.std(curvatures, ddof=1) / (s / 10) < 1.55


def test_the_error_over_parts_is_the_spread_over_samples():
    """The trace at fixed theta is a mean over examples, so its error is known from fresh samples of the data."""
    model, _ = tiny_mlp()

    def trace(f: ModelObjective) -> float:
        identity = torch.eye(f.size, dtype=DOUBLE)
        return float(sum(e @ f.hvp(f.theta, e) for e in identity))

    def sample(seed: int) -> ModelObjective:
        g = seeded(seed)
        x = torch.randn(160, 4, generator=g, dtype=DOUBLE)
        return ModelObjective(model, nn.CrossEntropyLoss(), (x, torch.randint(0, 3, (160,), generator=g)))

    spread = np.std([trace(sample(seed)) for seed in range(40)], ddof=1)
    told = np.mean(
        [spectrum_over_data(sample(s), 8, steps=1, probes=200, generator=seeded(s)).trace_stderr for s in range(5)]
    )
    # one step gives a probe's v' H v exactly, and 200 of them leave little of the probes' own error; spread is known to
    # 1/sqrt(78) = 11 %, five errors from 8 parts to 12 %: together 16 %, here thrice
    assert 0.5 < told / spread < 1.5


def test_the_density_over_parts_has_an_error_too():
    result = spectrum_over_data(tiny_objective(), 4, generator=seeded(0))
    grid = result.densities[0].grid(0.05, points=50)
    assert result.density_stderr(grid, 0.05).shape == (50,)
    assert result.lambda_max.shape == result.trace.shape == (4,)
    assert result.lambda_max_stderr > 0
    for parts, advice in ((1, "give at least 2"), (51, "give 1 to 50")):
        with pytest.raises(ValueError, match=f"parts={parts}: {advice}"):
            spectrum_over_data(tiny_objective(), parts)
