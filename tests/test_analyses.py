"""The table of analyses: choosing, adding, failing, resuming one apart from the others."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
import xarray
from torch import nn

from landscape import Checkpoint, compare
from landscape.compare import ANALYSES, Analysis, Row
from landscape.compare.analysis import with_needs
from landscape.objective.mean_loss import MeanLoss
from landscape.report import write_report
from landscape.results import Failed
from landscape.results.store import Store
from tests.test_compare import QUICK, _checkpoint, _other, _problem

A, B = _checkpoint("A"), _checkpoint("B", 2.0)


@pytest.fixture
def computed(monkeypatch):
    """The groups that are computed, one after the other."""
    groups = []
    run = sys.modules["landscape.compare.run"]
    compute = run._record

    def counted(analysis, task, kept, group, key):
        inner = dataclasses.replace(analysis, compute=lambda task: (groups.append(group), analysis.compute(task))[1])
        return compute(inner, task, kept, group, key)

    monkeypatch.setattr(run, "_record", counted)
    return groups


def test_the_table_stands_in_an_order_in_which_needs_come_first_and_names_fields_that_there_are():
    seen = set()
    for analysis in ANALYSES:
        assert set(analysis.needs) <= seen, analysis.name
        seen.add(analysis.name)
        assert all(hasattr(QUICK, name) for name in analysis.settings), analysis.name
    assert len(seen) == len(ANALYSES)


def test_what_is_chosen_brings_what_it_needs():
    def names(*chosen):
        return [analysis.name for analysis in with_needs(chosen, ANALYSES)]

    assert names("plane_random") == ["plane_random"]
    assert names("laplace") == ["eigenpairs", "spectral_density", "laplace"]
    assert names("plane", "line_eigenvector") == ["eigenpairs", "reach", "line_eigenvector", "frame", "plane"]
    found = compare([A, B], _problem(), analyses=["plane_random"], settings=QUICK)
    assert set(found.results) == {"A/plane_random", "B/plane_random"}
    with pytest.raises(ValueError, match=r"'hessian', which is unknown: give some of eigenpairs, "):
        compare([A], _problem(), analyses=["hessian"])
    one, two = (Analysis(a, lambda task: None, needs=(b,)) for a, b in (("one", "two"), ("two", "one")))
    with pytest.raises(ValueError, match="need each other"):
        with_needs([one, two], ANALYSES)
    with pytest.raises(ValueError, match="two of the name 'smc'"):
        with_needs([Analysis("smc", lambda task: None)], ANALYSES)
    with pytest.raises(ValueError, match="scope='each'"):
        Analysis("own", lambda task: None, scope="each")


def test_records_do_not_depend_on_what_else_is_chosen():
    comparison = compare([A, B], _problem(), settings=QUICK)
    assert comparison.failures == {}
    whole = comparison.results
    for name in ("smc", "line_eigenvector", "plane", "barrier_from_first"):
        alone = compare([A, B], _problem(), analyses=[name], settings=QUICK).results
        assert any(group.endswith(f"/{name}") for group in alone)
        for group, record in alone.items():
            _assert_same(record, whole[group])


def _assert_same(a, b):
    if isinstance(a, xarray.Dataset):
        xarray.testing.assert_equal(a, b)
        return
    for field in dataclasses.fields(a):
        if field.name != "cost":  # seconds differ
            np.testing.assert_array_equal(
                np.asarray(getattr(a, field.name)), np.asarray(getattr(b, field.name)), err_msg=field.name
            )


def test_adding_to_a_run_reuses_what_is_there(tmp_path, computed):
    store = tmp_path / "run.zarr"
    compare([A], _problem(), analyses=["eigenpairs"], settings=QUICK, store=store)
    assert computed == ["A/eigenpairs"]
    computed.clear()
    compare([A], _problem(), analyses=["spectral_density", "plane_random"], settings=QUICK, store=store)
    assert computed == ["A/spectral_density", "A/plane_random"]
    computed.clear()
    chosen = ["spectral_density", "plane_random", "line_from_first_train"]
    compare([A, B], _problem(), analyses=chosen, settings=QUICK, store=store)
    assert computed == [f"B/{n}" for n in ("eigenpairs", "spectral_density", "plane_random", "line_from_first_train")]
    computed.clear()
    found = compare([A, B], _problem(), analyses=chosen, settings=QUICK, store=store)
    assert computed == []
    for group, record in compare([A, B], _problem(), analyses=chosen, settings=QUICK).results.items():
        _assert_same(found.results[group], record)


def test_an_analysis_of_all_is_made_anew_for_other_checkpoints_and_what_needs_it_where_it_differs(tmp_path, computed):
    """The line's reach is that of the sharpest: a flatter checkpoint leaves it, and the line through the other."""
    store, chosen = tmp_path / "run.zarr", ["line_eigenvector"]
    values = compare([A, B], _problem(), analyses=["eigenpairs"], settings=QUICK).of("eigenpairs")
    flat, sharp = sorted((A, B), key=lambda checkpoint: values[checkpoint.name].values.max())
    compare([sharp], _problem(), analyses=chosen, settings=QUICK, store=store)
    computed.clear()
    compare([sharp, flat], _problem(), analyses=chosen, settings=QUICK, store=store)
    assert computed == [f"{flat.name}/eigenpairs", "minima/reach", f"{flat.name}/line_eigenvector"]

    def names(task):
        return xarray.Dataset({"names": ("checkpoint", [c.name for c in task.checkpoints])})

    one = Analysis("one", lambda task: xarray.Dataset({"n": len(task.checkpoints)}), scope="all")
    table = [one, Analysis("names", names, scope="all", needs=("one",))]
    for checkpoints in ([A, B], [A, _other("C", 1)]):  # the record of "one" is the same
        found = compare(checkpoints, _problem(), analyses=table, settings=QUICK, store=store)
        assert found.results["minima/names"].names.values.tolist() == [c.name for c in checkpoints]


def test_a_changed_setting_leaves_what_does_not_depend_on_it(tmp_path, computed):
    store, chosen = tmp_path / "run.zarr", ["laplace", "monte_carlo", "band_random"]
    compare([A], _problem(), analyses=chosen, settings=QUICK, store=store)
    for changes, again in (
        ({"samples": 21}, ["A/monte_carlo"]),
        ({"line_points": 7}, ["A/band_random"]),
        ({"steps": 21}, ["A/spectral_density", "A/laplace"]),
        ({"plane_points": 5}, []),
    ):
        computed.clear()
        settings = dataclasses.replace(QUICK, **changes)
        compare([A], _problem(), analyses=chosen, settings=settings, store=store)
        assert computed == again, changes
        compare([A], _problem(), analyses=chosen, settings=QUICK, store=store)


def test_other_weights_data_or_losses_are_computed_anew(tmp_path, computed):
    store, chosen = tmp_path / "run.zarr", ["plane_random"]
    compare([A], _problem(), analyses=chosen, settings=QUICK, store=store)
    _, (x, y) = _problem().model(), _problem().train
    for checkpoint, problem in (
        (_checkpoint("A", 3.0), _problem()),
        (A, dataclasses.replace(_problem(), loss=nn.CrossEntropyLoss(label_smoothing=0.1))),
        (A, dataclasses.replace(_problem(), train=(x[:40], y[:40]))),
    ):
        computed.clear()
        found = compare([checkpoint], problem, analyses=chosen, settings=QUICK, store=store).results
        assert computed == ["A/plane_random"]
        _assert_same(found["A/plane_random"], compare([checkpoint], problem, analyses=chosen, settings=QUICK).results[
            "A/plane_random"
        ])  # fmt: skip


@pytest.mark.parametrize(("analysis", "calls"), [("plane_random", "per_example"), ("spectral_density", "hvp")])
def test_a_killed_analysis_goes_on_inside_itself(tmp_path, monkeypatch, analysis, calls):
    """After a kill at three quarters of its calls the rest is all that is left, and the record is the same."""
    settings, store = dataclasses.replace(QUICK, probes=4, plane_points=7), tmp_path / "run.zarr"
    compare([A], _problem(), analyses=["eigenpairs"], settings=settings, store=store)
    counts = []
    plain = getattr(MeanLoss, calls)

    def counted(self, *arguments):
        counts.append(1)
        if limit and len(counts) > limit:
            raise KeyboardInterrupt
        return plain(self, *arguments)

    monkeypatch.setattr(MeanLoss, calls, counted)
    limit = 0
    whole = compare([A], _problem(), analyses=[analysis], settings=settings)
    alone = len(counts)
    counts.clear()
    limit = alone * 3 // 4
    with pytest.raises(KeyboardInterrupt):
        compare([A], _problem(), analyses=[analysis], settings=settings, store=store)
    assert (tmp_path / "run.partial").is_dir()
    counts.clear()
    limit = 0
    resumed = compare([A], _problem(), analyses=[analysis], settings=settings, store=store)
    assert len(counts) < 0.75 * alone
    _assert_same(resumed.results[f"A/{analysis}"], whole.results[f"A/{analysis}"])
    assert not (tmp_path / "run.partial").exists()


def test_an_analysis_that_fails_is_kept_with_its_reason_and_the_others_go_on(tmp_path):
    """Filter normalisation knows no scale of weights that are all zero."""
    model = _problem().model()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    zero = Checkpoint.of(model, "zero")
    store = tmp_path / "run.zarr"
    chosen = ["eigenpairs", "band_random", "plane_random"]
    for first, second in ((A, zero), (zero, A)):
        found = compare([first, second], _problem(), analyses=chosen, settings=QUICK, store=store)
        assert set(found.failures) == {"zero/band_random", "zero/plane_random"}
        assert set(found.of("eigenpairs")) == {"A", "zero"}
        assert set(found.of("band_random")) == {"A"}
        assert "zero" in found.failures["zero/band_random"]
    assert isinstance(Store(store).read("zero/plane_random"), Failed)
    page = write_report(found, tmp_path / "report").read_text()
    assert "What failed" in page
    assert "zero/plane_random: ValueError" in page


def test_what_needs_a_failed_analysis_fails_with_it():
    def broken(task):
        raise FloatingPointError("overflow")

    table = [Analysis("first", broken), Analysis("second", lambda task: task.needed["first"], needs=("first",))]
    found = compare([A], _problem(), analyses=table, settings=QUICK)
    assert found.failures["A/first"] == "FloatingPointError: overflow"
    assert found.failures["A/second"] == "ValueError: needs first, which failed (FloatingPointError: overflow)"
    assert found.results == {}


def test_an_analysis_of_all_gets_the_records_of_those_that_have_one():
    def size(task):
        if task.checkpoints[-1].name == "B":
            raise ValueError("no")
        return xarray.Dataset({"size": task.f.size})

    def count(task):
        return xarray.Dataset({"of": ("name", sorted(task.needed["size"]))})

    table = [Analysis("size", size), Analysis("count", count, scope="all", needs=("size",))]
    found = compare([A, B, _other("C", 1)], _problem(), analyses=table, settings=QUICK)
    assert found.results["minima/count"]["of"].values.tolist() == ["A", "C"]


def test_rows_of_checkpoints_without_a_record_are_not_known():
    def norm(task):
        if task.checkpoints[-1].name == "A":
            raise ValueError("no")
        return xarray.Dataset({"norm": float(task.f.theta.norm())})

    def rows(records, settings):
        values = np.array([float(r["norm"]) for r in records.values()])
        yield Row("own", "lower", values, np.zeros(len(values)), values[:, None] + np.array([-1.0, 1.0]))

    measures = compare([A, B], _problem(), analyses=[Analysis("own", norm, measure=rows)], settings=QUICK).measures
    row = measures.names.index("own")
    assert np.isnan(measures.values[row, 0])
    assert measures.values[row, 1] > 0
    assert np.isnan(measures.differences[row]).all()
