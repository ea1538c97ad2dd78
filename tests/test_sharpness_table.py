import ast
import dataclasses
import inspect
import re
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landscape import Checkpoint, ModelObjective, flatness_table, plots, sharpness
from landscape.results import from_dataset, standard_error, to_dataset
from tests.problems import DOUBLE, Quadratic, seeded, tiny_mlp, tiny_objective

IN_PROPORTION = partial(sharpness.pac_bayes_sigma, magnitude=True, epsilon=0.0)
EVERY = [
    *(m for m in sharpness.MEASURES if m is not sharpness.low_pass and "magnitude" not in getattr(m, "keywords", {})),
    IN_PROPORTION,
    # these two with more noise than by default, so that the rescaling shows
    partial(sharpness.pac_bayes_sigma, magnitude=True, epsilon=0.03),
    partial(sharpness.low_pass, sigma=0.1),
    partial(sharpness.average_case, adaptive=False),
    partial(sharpness.relative_flatness, layer="0.weight"),
    partial(sharpness.worst_case, norm=float("inf"), rho=0.1),
]


def _relu_objective(**options: float) -> ModelObjective:
    return ModelObjective(*_relu_parts(), **options)


def _relu_parts() -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    """4-6-3 with ReLU and biases, which answers right throughout."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    inputs = torch.randn(40, 4, generator=seeded(0), dtype=DOUBLE)
    return model, nn.CrossEntropyLoss(), (inputs, model(inputs).argmax(1))


def _rescaled(f: ModelObjective, theta: Tensor, factor: float) -> Tensor:
    """The first layer and its bias times the factor, the next layer divided by it: the same function (Dinh 2017)."""
    theta = theta.clone()
    views = f.space.views(theta)
    for name, scale in (("0.weight", factor), ("0.bias", factor), ("2.weight", 1 / factor)):
        views[name].mul_(scale)
    return theta


def _named(measure: sharpness.Measure) -> str:
    name = getattr(measure, "func", measure).__name__
    return name + "".join(f"-{k}={v}" for k, v in getattr(measure, "keywords", {}).items())


def _at(measure: sharpness.Measure, f: ModelObjective, theta: Tensor) -> sharpness.Sharpness:
    deterministic = "sam" in _named(measure) or _named(measure) in ("gradient_norm", "fisher_rao")
    return measure(f, theta) if deterministic else measure(f, theta, generator=seeded(0))


@pytest.mark.parametrize("measure", EVERY, ids=_named)
def test_rescaling_relu_layers_changes_what_does_not_claim_to_be_invariant_and_nothing_else(measure):
    f = _relu_objective()
    rescaled = _rescaled(f, f.theta, 4.0)  # a power of two, so that nothing is rounded
    assert f.value(rescaled) == pytest.approx(f.value(f.theta), rel=1e-14)
    before, after = _at(measure, f, f.theta), _at(measure, f, rescaled)
    if before.reparametrisation_invariant:
        # rounding, multiplied through some tens of ascent steps at most
        assert after.value == pytest.approx(before.value, rel=1e-9)
        np.testing.assert_allclose(after.contributions, before.contributions, rtol=1e-9, atol=1e-12)
    else:
        assert abs(after.value - before.value) > 0.01 * abs(before.value)


@pytest.mark.parametrize("measure", EVERY, ids=_named)
def test_theta_may_come_in_another_dtype_and_from_another_device(measure):
    """As a checkpoint's on the CPU does for a network on a GPU."""
    f = _AtHome(*_relu_parts())
    theta = (f.theta + 0.01).float()
    assert _at(measure, f, theta).value == _at(measure, f, theta.double()).value


class _AtHome(ModelObjective):
    """Takes what is on its own device and of its own dtype alone."""

    def _move(self, theta: Tensor) -> None:
        assert (theta.dtype, theta.device) == (self.dtype, self.device)
        super()._move(theta)


def test_adaptive_measures_and_those_of_petzka_and_liang_claim_to_be_invariant():
    f = _relu_objective()
    claims = {r.name for r in (_at(m, f, f.theta) for m in EVERY) if r.reparametrisation_invariant}
    assert claims == {
        "Fisher-Rao norm squared",
        "relative flatness of 2.weight",
        "relative flatness of 0.weight",
        "adaptive SAM sharpness, rho 0.5",
        "adaptive worst-case sharpness, rho 0.5, over 8 parts",
        "adaptive worst-case sharpness, rho 0.1 (largest entry)",
        "adaptive average-case sharpness, rho 0.1",
        "local energy, sigma 0.5",
        "PAC-Bayes sigma by magnitude, target 0.1, epsilon 0",
    }


def test_weight_decay_in_the_loss_takes_the_invariance_from_all_but_errors():
    f = _relu_objective(weight_decay=0.1)
    rescaled = _rescaled(f, f.theta, 4.0)
    for measure in EVERY:
        record = _at(measure, f, f.theta)
        assert record.reparametrisation_invariant == (
            record.unit == "share of the examples" or measure is IN_PROPORTION
        )
        if not record.reparametrisation_invariant:
            assert _at(measure, f, rescaled).value != record.value


def _checkpoints() -> list[Checkpoint]:
    """Three of the tiny network: a, the same again, and one with twice the weights."""
    model, _ = tiny_mlp()
    a = Checkpoint.of(model, "a")
    doubled = {name: 2 * tensor for name, tensor in a.tensors.items()}
    return [a, Checkpoint("again", a.tensors), Checkpoint("doubled", doubled)]


def test_the_table_holds_every_measure_at_every_checkpoint_with_one_seed():
    f, checkpoints = tiny_objective(), _checkpoints()
    table = flatness_table(f, checkpoints, generator=seeded(0))
    assert len(table.results) == len(sharpness.MEASURES) == 17
    assert table.measures.names == list(table.results)
    assert table.measures.checkpoints == ["a", "again", "doubled"]
    for i, (name, row) in enumerate(table.results.items()):
        assert [r.name for r in row] == [name] * 3
        assert table.measures.values[i].tolist() == [r.value for r in row]
        assert table.measures.stderr[i].tolist() == pytest.approx([r.stderr for r in row], nan_ok=True)
        # the same weights and the same draws give the same number, so there is no difference and no error in it
        assert row[0].value == row[1].value
        if len(row[0].contributions) > 1:
            assert table.measures.differences[i, :2].tolist() == [0, 0]
            assert table.measures.differences_stderr[i, :2].tolist() == [0, 0]
            paired = standard_error(row[2].contributions - row[0].contributions)
            assert table.measures.differences_stderr[i, 2] == paired
    exact = table.measures.names.index("Fisher-Rao norm squared")
    assert table.measures.differences_stderr[exact].tolist() == [0, 0, 0]
    eigenvalue = table.measures.names.index("largest eigenvalue")
    first, last = table.measures.stderr[eigenvalue, [0, 2]]
    assert table.measures.differences_stderr[eigenvalue, 2] == pytest.approx(np.hypot(first, last))


def test_the_number_of_a_measure_does_not_depend_on_the_others():
    f, checkpoints = tiny_objective(), _checkpoints()
    few = flatness_table(f, checkpoints, measures=[sharpness.low_pass], generator=seeded(3))
    more = flatness_table(f, checkpoints, measures=[sharpness.hessian_trace, sharpness.low_pass], generator=seeded(3))
    assert few.seed == more.seed
    assert few.measures.values[0].tolist() == more.measures.values[1].tolist()
    direct = sharpness.low_pass(f, f.theta, generator=torch.Generator().manual_seed(few.seed))
    assert few.results[direct.name][0].value == direct.value


def test_trace_and_trace_per_weight_share_their_probes(monkeypatch):
    f, checkpoints = tiny_objective(), _checkpoints()
    hvp, products = ModelObjective.hvp, []

    def counted(self, theta, v):
        products.append(1)
        return hvp(self, theta, v)

    trace, mean = (partial(sharpness.hessian_trace, probes=7, per_weight=each) for each in (False, True))
    alone = flatness_table(f, checkpoints, measures=[mean], generator=seeded(0))
    monkeypatch.setattr(ModelObjective, "hvp", counted)
    table = flatness_table(f, checkpoints, measures=[trace, mean], generator=seeded(0))
    of_trace, of_mean = table.results.values()
    assert len(products) == 3 * 7
    assert [r.cost.products for r in of_trace] == [7] * 3
    assert [r.cost.products for r in of_mean] == [0] * 3
    for whole, each, by_itself in zip(of_trace, of_mean, alone.results["Hessian trace per weight"], strict=True):
        assert f.size * each.value == pytest.approx(whole.value, rel=1e-14)
        assert (each.value, each.stderr) == (by_itself.value, by_itself.stderr)
        assert (each.settings, each.formula) == (by_itself.settings, by_itself.formula)
    # from another number of probes it is another estimate
    fewer = partial(sharpness.hessian_trace, probes=3, per_weight=True)
    table = flatness_table(f, checkpoints[:1], measures=[trace, fewer], generator=seeded(0))
    assert [r.cost.products for (r,) in table.results.values()] == [7, 3]
    assert len(table.results["Hessian trace per weight"][0].contributions) == 3


def test_settings_that_make_another_measure_make_another_row():
    f, checkpoints = tiny_objective(), _checkpoints()
    measures = [
        *(partial(sharpness.pac_bayes_sigma, target=target, samples=2) for target in (0.1, 0.2)),
        *(partial(sharpness.pac_bayes_sigma, magnitude=True, epsilon=e, samples=2) for e in (0.0, 1e-3)),
        *(partial(sharpness.worst_case, parts=parts, steps=2, restarts=1) for parts in (1, 2)),
        *(
            partial(sharpness.local_learning_coefficient, examples=n, chains=2, burn_in=1, draws=2)
            for n in (None, 1000)
        ),
    ]
    assert len(flatness_table(f, checkpoints[:1], measures=measures).results) == len(measures)


def test_each_checkpoint_is_measured_with_its_own_buffers():
    torch_model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    _, data = tiny_mlp()
    f = ModelObjective(torch_model, nn.CrossEntropyLoss(), data)
    a = Checkpoint.of(torch_model, "a")
    b = Checkpoint("b", {**a.tensors, "1.running_mean": a.tensors["1.running_mean"] + 1})
    row = next(iter(flatness_table(f, [a, b], measures=[sharpness.gradient_norm]).results.values()))
    assert row[0].value != row[1].value
    assert row[1].value == float(f.at(b).gradient(f.theta).norm())


def test_an_objective_without_an_accuracy_has_the_other_measures():
    inputs = torch.randn(20, 4, generator=seeded(0), dtype=DOUBLE)
    model, _ = tiny_mlp()
    f = ModelObjective(model, nn.MSELoss(), (inputs, inputs[:, :3]))
    checkpoints = [Checkpoint.of(model, "a")]
    table = flatness_table(f, checkpoints, generator=seeded(0))
    assert not [name for name in table.results if "energy" in name or "PAC-Bayes" in name]
    assert len(table.results) == 14
    with pytest.raises(ValueError, match="knows no accuracy"):
        flatness_table(f, checkpoints, measures=[sharpness.local_energy])


def test_progress_is_asked_to_show_every_measure():
    seen = []

    def progress(iterable, description):
        seen.append((description, len(list(iterable))))
        return iterable

    f, checkpoints = tiny_objective(), _checkpoints()
    flatness_table(f, checkpoints[1:], measures=[sharpness.sam, sharpness.fisher_rao], progress=progress)
    assert seen == [("flatness of again", 2), ("flatness of doubled", 2)]


def test_infinite_values_differ_by_no_number():
    f, checkpoints = tiny_objective(), _checkpoints()
    never = partial(sharpness.pac_bayes_sigma, target=2.0, samples=2)  # more than all answers wrong
    table = flatness_table(f, checkpoints, measures=[never], generator=seeded(0))
    assert np.isinf(table.measures.values).all()
    assert np.isnan(table.measures.differences).all()


def test_bad_input_is_named():
    f, checkpoints = tiny_objective(), _checkpoints()
    quadratic = Quadratic(torch.eye(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    for arguments, measures, message in (
        ((f, []), None, "checkpoints are called \\[\\]"),
        ((f, [checkpoints[0]] * 2), None, r"called \['a', 'a'\]"),
        ((quadratic, checkpoints), None, "objective is a Quadratic"),
        (
            (f, checkpoints),
            [sharpness.hessian_trace, partial(sharpness.hessian_trace, probes=2)],
            "'Hessian trace' twice, with settings .*'probes': 50.* and .*'probes': 2.*: give one of them",
        ),
        ((f, checkpoints), [sharpness.sam, sharpness.sam], "'SAM sharpness, rho 0.05' twice"),
    ):
        with pytest.raises(ValueError, match=message):
            flatness_table(*arguments, measures=measures)


def test_a_record_is_frozen_and_survives_its_dataset():
    f = tiny_objective()
    for record in (sharpness.sam(f, f.theta), sharpness.low_pass(f, f.theta, generator=seeded(0))):
        again = from_dataset(to_dataset(record))
        for field in dataclasses.fields(record):
            np.testing.assert_array_equal(getattr(again, field.name), getattr(record, field.name))
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.value = 0.0
    assert to_dataset(record).contributions.dims == ("draw",)


def _rows(ax: plt.Axes) -> list[str]:
    return [text.get_text() for text in ax.get_yticklabels()]


def test_the_picture_has_a_row_per_measure_and_a_dot_per_checkpoint():
    f, checkpoints = tiny_objective(), _checkpoints()
    measures = [
        sharpness.low_pass,
        sharpness.fisher_rao,
        sharpness.epsilon_sharpness,
        partial(sharpness.pac_bayes_sigma, metric="loss"),
    ]
    table = flatness_table(f, checkpoints, measures=measures, generator=seeded(0))
    ax = plots.flatness_dots(table)
    assert _rows(ax) == [
        "low-pass loss, sigma 0.01",
        "Fisher-Rao norm squared \N{DAGGER}",
        "epsilon-sharpness, epsilon 0.001",
        "PAC-Bayes sigma of the loss, target 0.1 \N{UPWARDS ARROW}",
    ]
    legend = [t.get_text() for t in ax.get_legend().get_texts()]
    assert legend[:3] == ["a", "again", "doubled"]
    assert legend[-1] == "\N{UPWARDS ARROW} higher is flatter"
    assert "relative to a" in ax.get_xlabel()
    assert ax.get_ylabel() == "flatness measure"
    dots = [line for line in ax.lines if len(line.get_xdata()) > 0 and line.get_marker() == "o"]
    placed = {round(float(y)): [] for y in range(4)}
    for line in dots:
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
            placed[round(float(y))].append(float(x))
    for i, values in enumerate(table.measures.values):
        assert sorted(placed[i]) == pytest.approx(sorted(values / values[0]))
    hollow = [line for line in dots if line.get_markerfacecolor() == "white"]
    assert {round(float(y)) for line in hollow for y in line.get_ydata()} == {2}  # Keskar's, whose error is not known
    plt.close("all")


def test_a_row_that_nothing_can_be_relative_to_says_so():
    f, checkpoints = tiny_objective(), _checkpoints()
    never = partial(sharpness.pac_bayes_sigma, target=2.0, samples=2)
    table = flatness_table(f, checkpoints, measures=[sharpness.sam, never], generator=seeded(0))
    ax = plots.flatness_dots(table)
    assert [text.get_text() for text in ax.texts] == ["a: inf"]
    _, given = plt.subplots()
    assert plots.flatness_dots(flatness_table(f, checkpoints[:1], measures=[never]), ax=given) is given
    plt.close("all")


@pytest.mark.parametrize("others", [(0.7, 1.7), (0.9, 2.0), (0.2, 3.0), (0.05, 9.0), (1e-3, 1e3)])
def test_the_axis_has_ticks_to_read_shares_by(others):
    table = flatness_table(tiny_objective(), _checkpoints(), measures=[sharpness.gradient_norm])
    values = np.array([[1.0, *others]])
    measures = dataclasses.replace(table.measures, values=values, differences=values - 1)
    ax = plots.flatness_dots(dataclasses.replace(table, measures=measures))
    low, high = ax.get_xlim()
    assert ax.get_xscale() == "log"
    assert 2 <= sum(low <= tick <= high for tick in ax.get_xticks()) <= 8
    plt.close("all")


def test_the_guide_runs_as_printed():
    guide = (Path(__file__).parent.parent / "docs" / "sharpness.md").read_text()
    space: dict[str, object] = {"__name__": "sharpness_guide"}
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", guide, re.S)), "sharpness.md", "exec"), space)
    plt.close("all")
    # its table holds every function, with its defaults, and the source and the invariance of its records
    f = _relu_objective()
    for name in set(sharpness.__all__) - {"MEASURES", "Measure", "Sharpness", "flatness_table"}:
        (row,) = [line for line in guide.splitlines() if line.startswith(f"| `{name}`")]
        _, _, _, source, invariant, defaults, _ = (cell.strip() for cell in row.split("|"))
        told = {k: ast.literal_eval(v) for k, v in re.findall(r"`(\w+)=([^`]+)`", defaults)}
        own = {k: p.default for k, p in inspect.signature(getattr(sharpness, name)).parameters.items()}
        given = {k: v for k, v in own.items() if isinstance(v, bool | int | float | str)}
        assert {k: v for k, v in told.items() if own[k] is not None} == given
        record = _at(getattr(sharpness, name), f, f.theta)
        assert record.source in source
        if invariant in ("yes", "no"):
            assert record.reparametrisation_invariant == (invariant == "yes")
