"""Slices on disk: what was measured is kept whoever dies, and several processes fill one store."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
import zarr
from torch import nn

from landscape import Checkpoint, ModelObjective, line, line_band, path, plane
from tests.problems import DOUBLE, LogisticRegression, Quadratic, seeded, tiny_mlp

ROOT = Path(__file__).parent.parent
T = np.linspace(-1, 1, 9)  # 81 points, one of which is theta itself


def _objective(examples: int = 50, loss: nn.Module | None = None, **options: object) -> ModelObjective:
    model, data = tiny_mlp(examples=examples)
    return ModelObjective(model, loss or nn.CrossEntropyLoss(), data, **options)


def _plane(f: ModelObjective, **options: object):
    d1, d2 = torch.randn(2, f.size, generator=seeded(0), dtype=f.dtype)
    return plane(f, f.theta, d1, d2, T, T, generator=seeded(0), **options)


def _assert_same(one, other) -> None:
    for name in ("loss", "loss_stderr", "rise_stderr", "accuracy", "class_accuracy"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def _points_in(store: Path) -> int:
    return sum(not file.name.startswith(".") for file in (store / "measured").glob("*"))


# --- several processes, and processes that die -------------------------------------------------------

_WORKER = """
import sys
from pathlib import Path
from tests.test_slice_store import _objective, _plane
store, ready, go = map(Path, sys.argv[1:])
f = _objective(examples=10_000)  # some 15 ms for each evaluation
ready.touch()
while not go.exists():
    pass
print(_plane(f, store=store).cost.values)
"""


@pytest.fixture
def workers(tmp_path):
    """Two processes that begin to fill ``tmp_path / "plane.zarr"`` at the same time."""
    readies = [tmp_path / "ready-1", tmp_path / "ready-2"]
    arguments = [[str(tmp_path / "plane.zarr"), str(ready), str(tmp_path / "go")] for ready in readies]
    started = [
        subprocess.Popen([sys.executable, "-c", _WORKER, *a], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for a in arguments
    ]
    try:
        _wait_for(lambda: all(ready.exists() for ready in readies))
        (tmp_path / "go").touch()
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
            process.stdout.close()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(scope="module")
def uninterrupted():
    return _plane(_objective(examples=10_000))


def test_killed_at_random_and_gone_on_with_a_plane_is_the_same_bit_for_bit(workers, tmp_path, uninterrupted):
    store = tmp_path / "plane.zarr"
    first, second = np.random.default_rng().integers([1, 12], [12, 30])
    for worker, points in zip(workers, (first, second), strict=True):
        _wait_for(lambda points=points: _points_in(store) >= points)
        worker.kill()
    assert [worker.wait() for worker in workers] == [-signal.SIGKILL] * 2
    done = _points_in(store)
    with xarray.open_zarr(store) as left:
        assert int(left.measured.sel(objective="objective", quantity="loss").notnull().sum()) == done
    resumed = _plane(_objective(examples=10_000), store=store)
    _assert_same(resumed, uninterrupted)
    # besides theta and a point to see that it is the same function; theta's own point may be among those done
    assert 81 - done <= resumed.cost.values - 1 <= 82 - done


def test_two_processes_fill_one_store_and_both_have_all_of_it(workers, tmp_path, uninterrupted):
    evaluations = [int(worker.communicate()[0]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    # each evaluates theta once, and one that comes later a point again; else twice evaluated is only where both were at
    # the same point at once
    assert 80 <= sum(evaluations) - 2 <= 100
    resumed = _plane(_objective(examples=10_000), store=tmp_path / "plane.zarr")
    assert resumed.cost.values == 2
    _assert_same(resumed, uninterrupted)


# --- one process -------------------------------------------------------------------------------------


def test_an_interrupt_keeps_what_is_done(tmp_path):
    def interrupted(points, description):
        for i, point in enumerate(points):
            if i == 30:
                raise KeyboardInterrupt
            yield point

    f = _objective()
    with pytest.raises(KeyboardInterrupt):
        _plane(f, store=tmp_path / "s", progress=interrupted)
    assert _points_in(tmp_path / "s") == 30
    resumed = _plane(f, store=tmp_path / "s")
    assert 81 - 30 <= resumed.cost.values - 1 <= 82 - 30
    _assert_same(resumed, _plane(f))


def test_every_kind_of_slice_is_kept(tmp_path):
    f, g = _objective(), _objective(weight_decay=0.1)
    d = torch.randn(f.size, generator=seeded(0), dtype=DOUBLE)
    ends = Checkpoint.of(tiny_mlp()[0], "a"), Checkpoint.of(tiny_mlp(seed=1)[0], "b")
    slices = {
        "line": lambda store: line({"f": f, "g": g}, f.theta, d, [0.0, 1.0], derivatives=True, store=store)["g"],
        "path": lambda store: path({"f": f, "g": g}, *ends, [0.5, 1.0], store=store)["g"],
        "band": lambda store: line_band(f, f.theta, [0.5, 1.0], directions=3, generator=seeded(0), store=store),
        "adaptive": lambda store: _plane(f, tol=0.05, held_out=3, store=store),
    }
    for name, compute in slices.items():
        kept, again, in_memory = compute(tmp_path / name), compute(tmp_path / name), compute(None)
        assert kept.cost.values == in_memory.cost.values
        assert again.cost.values == 2  # theta, and a point to see that it is the same function
        for result in (kept, again):
            np.testing.assert_array_equal(result.loss, in_memory.loss)
            np.testing.assert_array_equal(result.accuracy, in_memory.accuracy)


def test_a_function_that_is_no_network_is_kept_too(tmp_path):
    f = LogisticRegression()
    x, e = torch.zeros(8, dtype=DOUBLE), torch.eye(8, dtype=DOUBLE)
    kept = line(f, x, e[0], [1.0, 2.0], store=tmp_path / "s")
    np.testing.assert_array_equal(line(f, x, e[0], [1.0, 2.0], store=tmp_path / "s").loss, kept.loss)


def test_a_loss_that_is_not_finite_is_done(tmp_path):
    f = _objective()
    d = torch.randn(f.size, generator=seeded(0), dtype=DOUBLE)
    for _ in range(2):  # at theta and at the point
        found = line(f, f.theta, d, [1e308], store=tmp_path / "s")
        assert (found.not_finite, found.cost.values) == (1, 2)


def test_a_store_opens_with_xarray_alone(tmp_path):
    both = {"train": _objective(), "decayed": _objective(weight_decay=0.1)}
    f = both["train"]
    d1, d2 = torch.randn(2, f.size, generator=seeded(0), dtype=DOUBLE)
    found = plane(both, f.theta, d1, d2, [0.0, 1.0], [0.0, 0.5, 1.0], store=tmp_path / "s")
    with xarray.open_datatree(tmp_path / "s", engine="zarr") as tree:
        assert tree.measured.dims == ("objective", "a", "b", "quantity")
        for name in both:
            kept = tree.measured.sel(objective=name)
            np.testing.assert_array_equal(kept.sel(quantity="loss"), found[name].loss)
            np.testing.assert_array_equal(kept.sel(quantity="class 2"), found[name].class_accuracy[..., 2])
            assert kept.sel(a=1.0, b=0.5, quantity="accuracy").item() == found[name].accuracy[1, 1]
    array = zarr.open_group(tmp_path / "s", mode="r")["measured"]
    assert (array.metadata.zarr_format, array.chunks[1:3]) == (2, (1, 1))


def test_what_a_killed_write_leaves_is_no_point(tmp_path):
    f = _objective()
    d = torch.randn(f.size, generator=seeded(0), dtype=DOUBLE)
    line(f, f.theta, d, [0.0, 1.0], store=tmp_path / "s")
    chunk = tmp_path / "s/measured/0.1.0"
    whole = chunk.read_bytes()
    chunk.rename(chunk.with_name(".0.1.0-123")).write_bytes(whole[:10])
    with xarray.open_zarr(tmp_path / "s") as left:
        assert left.measured.sel(quantity="loss").isnull().values.tolist() == [[False, True]]
    line(f, f.theta, d, [0.0, 1.0], store=tmp_path / "s")
    assert chunk.read_bytes() == whole


# --- the wrong store ---------------------------------------------------------------------------------


def test_another_slice_is_not_gone_on_with(tmp_path):
    f = _objective()
    d = torch.randn(f.size, generator=seeded(0), dtype=DOUBLE)
    store = tmp_path / "s"
    line(f, f.theta, d, [0.0, 1.0], store=store)
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.1)

    def doubled(model, batch):
        return 2 * model(batch[0])

    for name, other in (
        ("theta", lambda: line(f, f.theta + 1e-9, d, [0.0, 1.0], store=store)),
        ("direction", lambda: line(f, f.theta, -d, [0.0, 1.0], store=store)),
        ("coordinates", lambda: line(f, f.theta, d, [0.0, 2.0], store=store)),
        ("unit", lambda: line(f, f.theta, d, [0.0, 1.0], unit="norm", store=store)),
        ("objective", lambda: line(_objective(examples=51), f.theta, d, [0.0, 1.0], store=store)),
        ("objective", lambda: line(_objective(loss=smoothed), f.theta, d, [0.0, 1.0], store=store)),
        (r"f\(theta\)", lambda: line(_objective(forward=doubled), f.theta, d, [0.0, 1.0], store=store)),
        ("objectives", lambda: line({"f": f}, f.theta, d, [0.0, 1.0], store=store)),
        ("slice", lambda: path(f, f.theta, f.theta + d, [0.0, 1.0], store=store)),
    ):
        with pytest.raises(ValueError, match=rf"of another slice \(other [^)]*{name}"):
            other()
    assert line(f, f.theta, d, [0.0, 1.0], store=store).cost.values == 2  # nothing was lost by it


def test_another_function_that_is_the_same_at_theta_is_not_gone_on_with(tmp_path):
    minimum, e = torch.zeros(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE)
    coordinates = [-1.0, 0.0, 1.0]
    kept = line(Quadratic(e, minimum), minimum, e[0], coordinates, store=tmp_path / "s")
    steeper = Quadratic(1.001 * e, minimum)
    with pytest.raises(ValueError, match=r"holds a loss of 0\.5 at point \(\d,\), where it is 0\.5005 now.*go on with"):
        line(steeper, minimum, e[0], coordinates, store=tmp_path / "s")
    np.testing.assert_array_equal(
        line(Quadratic(e, minimum), minimum, e[0], coordinates, store=tmp_path / "s").loss, kept.loss
    )


@pytest.mark.parametrize(
    ("dtype", "loss", "found", "same"),
    [
        (torch.float32, 2.4e-7, 3.6e-7, True),  # an eps apart, as the losses of well fitted examples are
        (torch.bfloat16, 2.0, 2.03, True),  # two steps of an eps
        (torch.float32, 1.0, 1.001, False),
        (torch.bfloat16, 2.0, 2.5, False),
        (DOUBLE, 2.4e-7, 3.6e-7, False),
    ],
)
def test_a_store_is_gone_on_with_where_losses_differ_by_the_rounding_of_their_dtype(tmp_path, dtype, loss, found, same):
    theta, d = torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)

    def constant(loss: float) -> Quadratic:
        f = Quadratic(torch.zeros(2, 2, dtype=dtype), theta, constant=loss)
        f.dtype = dtype
        return f

    line(constant(loss), theta, d, [1.0, 2.0], store=tmp_path / "s")
    if same:
        assert line(constant(found), theta, d, [1.0, 2.0], store=tmp_path / "s").loss.tolist() == [loss, loss]
    else:
        with pytest.raises(ValueError, match=r"other f\(theta\)"):
            line(constant(found), theta, d, [1.0, 2.0], store=tmp_path / "s")


def test_what_theta_does_not_hold_is_part_of_the_function(tmp_path):
    """Buffers, fixed tensors and calibration data, each changed where it makes no difference at the points measured."""

    def objective(change: str = "", **options: object) -> ModelObjective:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
        model[3].weight.data.zero_()  # nothing before it matters
        model[3].requires_grad_(False)
        x, y = tiny_mlp()[1]
        if change == "buffer":
            model[1].running_mean.add_(1)
        if change == "fixed":
            model[3].weight.data[:, 0] = 1e-12
        calibration = (x + (change == "calibration"), y)
        return ModelObjective(model, nn.CrossEntropyLoss(), (x, y), calibration=calibration, **options)

    for change, policy in (("buffer", "frozen"), ("fixed", "frozen"), ("calibration", "recalibrated")):
        f, store = objective(batch_norm=policy), tmp_path / change
        d = torch.ones_like(f.theta)
        line(f, f.theta, d, [0.0, 1.0], store=store)
        assert line(objective(batch_norm=policy), f.theta, d, [0.0, 1.0], store=store).cost.values == 2
        with pytest.raises(ValueError, match=r"of another slice \(other objective\)"):
            line(objective(change, batch_norm=policy), f.theta, d, [0.0, 1.0], store=store)
    # statistics that are gathered at every point, and calibration data that nothing is gathered on, do not matter
    for change, policy in (("buffer", "recalibrated"), ("buffer", "batch"), ("calibration", "frozen")):
        f, store = objective(batch_norm=policy), tmp_path / f"{change} {policy}"
        d = torch.ones_like(f.theta)
        line(f, f.theta, d, [0.0, 1.0], store=store)
        line(objective(change, batch_norm=policy), f.theta, d, [0.0, 1.0], store=store)


def test_a_band_needs_its_seed_to_be_gone_on_with(tmp_path):
    f = _objective()
    line_band(f, f.theta, [1.0], directions=2, generator=seeded(0), store=tmp_path / "s")
    with pytest.raises(ValueError, match="other seeds"):
        line_band(f, f.theta, [1.0], directions=2, store=tmp_path / "s")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    f = _objective()
    (tmp_path / "thesis.tex").write_text("years")
    zarr.open_group(tmp_path / "other.zarr", mode="w", zarr_format=2).attrs["mine"] = 1
    for store in (tmp_path, tmp_path / "thesis.tex", tmp_path / "other.zarr"):
        with pytest.raises(ValueError, match="holds something else"):
            line(f, f.theta, f.theta, [0.0], store=store)
    assert (tmp_path / "thesis.tex").read_text() == "years"
