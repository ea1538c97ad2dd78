import dataclasses
from importlib.metadata import version

import numpy as np
import pytest
import torch
from torch import nn

from landscape import Checkpoint, CompareSettings, ModelObjective, Problem, compare, local_entropy
from landscape.compare.provenance import _version
from tests.problems import seeded, tiny_mlp

QUICK = CompareSettings(
    eigenvalues=3,
    steps=20,
    probes=40,
    radii=(0.005, 0.01, 0.05),
    samples=20,
    budget=800,
    line_points=5,
    plane_points=3,
)


def _problem() -> Problem:
    _, data = tiny_mlp()
    return Problem("tiny", lambda: tiny_mlp()[0], nn.CrossEntropyLoss(), data, tiny_mlp(seed=5)[1])


def _checkpoint(name: str, scale: float = 1.0) -> Checkpoint:
    model, _ = tiny_mlp()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return Checkpoint.of(model, name)


def _other(name: str, seed: int) -> Checkpoint:
    model, _ = tiny_mlp(seed=seed)
    return Checkpoint.of(model, name)


def _half_frozen() -> nn.Module:
    model, _ = tiny_mlp()
    model[0].weight.requires_grad_(False)
    return model


@pytest.fixture(scope="module")
def comparison():
    torch.manual_seed(0)
    return compare([_checkpoint("A"), _checkpoint("B", 2.0)], _problem(), settings=QUICK)


def _row(comparison, name):
    return comparison.measures.names.index(name)


def test_every_checkpoint_has_every_analysis(comparison):
    assert comparison.failures == {}
    for name in ("A", "B"):
        for analysis in (
            "eigenpairs",
            "spectral_density",
            "laplace",
            "monte_carlo",
            "smc",
            "line_eigenvector",
            "band_random",
            "plane_random",
        ):
            assert f"{name}/{analysis}" in comparison.results
    for analysis in ("line_from_first_train", "line_from_first_test", "barrier_from_first"):
        assert set(comparison.of(analysis)) == {"B"}


def test_the_plane_of_the_minima_goes_through_them(comparison):
    frame, plane = comparison.results["minima/frame"], comparison.results["minima/plane"]
    assert frame.names == ["A", "B"]
    np.testing.assert_allclose(frame.out_of_plane, 0, atol=1e-12)  # rounding
    for coordinates, axis in zip(frame.coordinates.T, (plane.a, plane.b), strict=True):
        assert axis[0] < coordinates.min()
        assert coordinates.max() < axis[-1]
    assert np.ptp(plane.a) == pytest.approx(np.ptp(plane.b))


def test_a_third_checkpoint_spans_it_and_a_fourth_lies_off_it():
    checkpoints = [_checkpoint("A"), _checkpoint("B", 2.0), _other("C", 1), _other("D", 2)]
    frame = compare(checkpoints, _problem(), settings=QUICK).results["minima/frame"]
    np.testing.assert_allclose(frame.out_of_plane[:3], 0, atol=1e-12)  # rounding
    assert frame.out_of_plane[3] > 0.1


def test_checkpoints_on_one_line_have_a_plane_too():
    checkpoints = [_checkpoint("A"), _checkpoint("B", 2.0), _checkpoint("C", 3.0)]
    results = compare(checkpoints, _problem(), settings=QUICK).results
    np.testing.assert_allclose(results["minima/frame"].out_of_plane, 0, atol=1e-12)  # rounding
    assert np.isfinite(results["minima/plane"].loss).all()


def test_monte_carlo_runs_as_the_settings_say():
    assert (QUICK.smc_chains, QUICK.smc_moves, QUICK.smc_tol) == (2, 8, 0.2)
    settings = dataclasses.replace(QUICK, smc_chains=3, smc_moves=4, smc_tol=0.3)
    a = _checkpoint("A")
    results = compare([a], _problem(), analyses=["smc"], settings=settings).results
    f = _problem().objective("train").at(a)
    direct = local_entropy(
        f,
        f.theta,
        radius=list(settings.radii_of_smc),
        method="smc",
        pairs=results["A/eigenpairs"],
        chains=3,
        moves=4,
        tol=0.3,
        budget=settings.budget,
        generator=seeded(settings.seed),
    )
    np.testing.assert_array_equal(results["A/smc"].contributions, direct.contributions)


def test_problems_with_functions_as_losses_and_with_loaders_and_dictionaries():
    _, (x, y) = tiny_mlp()
    whole = compare([_checkpoint("A")], _problem(), settings=QUICK)
    row = _row(whole, "train loss")

    def named(model, batch):
        return model(batch["x"])

    def on_dictionary(outputs, batch):
        return nn.functional.cross_entropy(outputs, batch["y"])

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7, shuffle=True)
    once = ({"x": a, "y": b} for a, b in zip(x.split(9), y.split(9), strict=True))
    plain = lambda outputs, targets: nn.functional.cross_entropy(outputs, targets)  # noqa: E731
    state = torch.get_rng_state()
    for problem in (
        Problem("function", lambda: tiny_mlp()[0], plain, (x, y), (x, y)),
        Problem("loader", lambda: tiny_mlp()[0], nn.CrossEntropyLoss(), loader, loader),
        Problem("generator", lambda: tiny_mlp()[0], on_dictionary, once, [{"x": x, "y": y}], forward=named),
    ):
        # small batches take long: few probes, and a budget that does not last for SMC
        settings = dataclasses.replace(QUICK, probes=2, budget=1)
        found = compare([_checkpoint("A"), _checkpoint("B", 2.0)], problem, settings=settings)
        assert found.measures.values[row, 0] == pytest.approx(whole.measures.values[row, 0], rel=1e-9), problem.name
        assert found.provenance["examples"]["train"] == 50
    assert torch.equal(state, torch.get_rng_state())


def test_the_digest_of_data_does_not_depend_on_order_or_batches():
    model, (x, y) = tiny_mlp()
    order = torch.randperm(50, generator=seeded(1))
    whole = ModelObjective(model, nn.CrossEntropyLoss(), (x, y))
    parts = ModelObjective(model, nn.CrossEntropyLoss(), [(x[i], y[i]) for i in order.split(7)])
    other = ModelObjective(model, nn.CrossEntropyLoss(), (x + 1e-9, y))
    assert whole.data_digest() == parts.data_digest() != other.data_digest()


def test_the_line_between_ends_at_the_checkpoints(comparison):
    line = comparison.results["B/line_from_first_train"]
    assert line.coordinates[[1, 3]].tolist() == [0, 1]
    row = comparison.measures.values[_row(comparison, "train loss")]
    np.testing.assert_allclose(line.loss[[1, 3]], row, rtol=1e-12)  # x + (y - x) is y to rounding
    test_line = comparison.results["B/line_from_first_test"]
    row = comparison.measures.values[_row(comparison, "test loss")]
    np.testing.assert_allclose(test_line.loss[[1, 3]], row, rtol=1e-12)


def test_checkpoints_share_their_axes(comparison):
    for analysis in ("line_eigenvector", "band_random"):
        a, b = comparison.of(analysis).values()
        np.testing.assert_array_equal(a.coordinates, b.coordinates)


def test_batch_norm_is_recalibrated_between_the_minima():
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    data = (torch.randn(30, 4, generator=seeded(0)), torch.arange(30) % 3)
    problem = Problem("normed", network, nn.CrossEntropyLoss(), data, data)
    checkpoints = [Checkpoint.of(problem.build(seed), f"seed {seed}") for seed in (0, 1)]
    found = compare(checkpoints, problem, settings=QUICK).results["seed 1/line_from_first_test"]
    model = problem.build(0)
    middle = [(a + b) / 2 for a, b in zip(model.parameters(), problem.build(1).parameters(), strict=True)]
    with torch.no_grad():
        for p, m in zip(model.parameters(), middle, strict=True):
            p.copy_(m)
    f = ModelObjective(model, problem.loss, data, batch_norm="recalibrated")
    assert found.loss[2] == pytest.approx(f.value(f.theta), rel=1e-6)  # float32


def test_progress_names_checkpoint_and_analysis():
    shown = []

    def progress(iterable, description):
        shown.append(description)
        return iterable

    compare([_checkpoint("A")], _problem(), settings=QUICK, progress=progress)
    assert "A/spectral_density" in shown
    assert "A/plane_random" in shown


def test_provenance_says_what_was_compared(comparison):
    p = comparison.provenance
    assert p["weights"] == 43
    assert p["examples"] == {"train": 50, "test": 50}
    assert p["sha256"]["checkpoints"]["A"] == _checkpoint("x").digest()
    assert p["versions"]["torch"] == torch.__version__
    assert comparison.settings["probes"] == 40


def test_bad_input_is_named():
    a = _checkpoint("A")
    with pytest.raises(ValueError, match="checkpoints is empty"):
        compare([], _problem())
    with pytest.raises(ValueError, match=r"\['A', 'A'\]"):
        compare([a, a], _problem())
    with pytest.raises(ValueError, match="'A' and 'twin' hold the same weights"):
        compare([a, _checkpoint("twin")], _problem())
    for name in ("measures", "minima"):
        with pytest.raises(ValueError, match="not 'measures' or 'minima'"):
            compare([_checkpoint(name)], _problem())
    with pytest.raises(ValueError, match="plane_points=1"):
        CompareSettings(plane_points=1)
    frozen = Problem("frozen", _half_frozen, nn.CrossEntropyLoss(), *[tiny_mlp()[1]] * 2)
    with pytest.raises(ValueError, match=r"'A' and 'B' differ in '0\.weight', which is not trainable"):
        compare([_checkpoint("A"), _checkpoint("B", 2.0)], frozen)
    with pytest.raises(ValueError, match="no '/'"):
        compare([_checkpoint("a/b")], _problem())
    with pytest.raises(ValueError, match=r"1 of 1 checkpoints .* 'nan' \(nan\)"):
        compare([_checkpoint("nan", float("nan"))], _problem())
    with pytest.raises(ValueError, match="does not fit"):
        compare([Checkpoint.of(nn.Linear(2, 2), "other")], _problem())
    with pytest.raises(ValueError, match=r"radii=\(0\.1, 0\.0\)"):
        CompareSettings(radii=(0.1, 0.0))
    with pytest.raises(ValueError, match="probes=0"):
        CompareSettings(probes=0)
    with pytest.raises(ValueError, match=r"smc_radii=\(0\.02, -0\.1\): give .* positive"):
        CompareSettings(smc_radii=(0.02, -0.1))
    with pytest.raises(ValueError, match="smc_chains=1: give at least 2"):
        CompareSettings(smc_chains=1)
    with pytest.raises(ValueError, match="smc_moves=0: give at least 1"):
        CompareSettings(smc_moves=0)
    with pytest.raises(ValueError, match=r"smc_tol=0\.0: give a positive"):
        CompareSettings(smc_tol=0.0)


def test_a_source_tree_that_was_never_installed_can_be_compared_from():
    assert _version("no-distribution-of-this-name") == "not installed"
    assert _version("torch") == version("torch")


def test_what_was_done_to_networks_files_and_data_is_kept_and_options_of_a_problem_reach_f():
    """A wrapped network in half precision, files that name it otherwise, targets that are ignored."""
    model, (x, y) = tiny_mlp()
    ignored = y.clone()
    ignored[:5] = -100
    problem = Problem(
        "tiny",
        lambda: nn.DataParallel(tiny_mlp()[0].half()),
        nn.CrossEntropyLoss(),
        (x.half(), ignored),
        (x.half(), y),
        options={"count": lambda batch: int((batch[1] != -100).sum())},
    )
    checkpoints = [
        Checkpoint(name, {f"net.{k}": scale * t.half() for k, t in model.state_dict().items()})
        for name, scale in (("a", 1.0), ("b", 1.5))
    ]
    found = compare(checkpoints, problem, settings=QUICK)
    half = tiny_mlp()[0].half().float()
    expected = nn.functional.cross_entropy(half(x.half().float()), ignored)
    index = next(i for i, name in enumerate(found.measures.names) if "loss" in name and "train" in name)
    # float32, and the sum over examples in another order
    assert found.measures.values[index][0] == pytest.approx(float(expected.detach()), rel=1e-6)
    notes = " ".join(found.provenance["notes"])
    for told in ("inside DataParallel", "evaluated in torch.float32", "a: ", "'net.'"):
        assert told in notes
