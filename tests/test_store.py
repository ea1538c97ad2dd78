import json

import numpy as np
import pytest
import xarray
import zarr

from landscape import line
from landscape.results.store import Store, output_folder
from tests.problems import DOUBLE, LogisticRegression


def _line(scale: float = 1.0):
    import torch

    e = torch.eye(8, dtype=DOUBLE)
    return line(LogisticRegression(), scale * torch.ones(8, dtype=DOUBLE), e[0], [0.0, 1.0])


def test_a_finished_run_opens_with_xarray_alone(tmp_path):
    store = Store(tmp_path / "run.zarr", {"seed": 0})
    store.write("A/line", _line())
    store.write("measures_like", _line())
    store.finish({"versions": {"torch": "x"}})
    with xarray.open_datatree(tmp_path / "run.zarr") as tree:
        np.testing.assert_array_equal(tree["A/line"].loss.values, _line().loss)
        assert json.loads(tree.attrs["settings"]) == {"seed": 0}
        assert json.loads(tree.attrs["provenance"])["versions"] == {"torch": "x"}


def test_reading_gives_what_was_written_and_writing_replaces(tmp_path):
    store = Store(tmp_path / "run.zarr", {})
    store.write("A/line", _line())
    store.write("A/line", _line(scale=2))
    np.testing.assert_array_equal(store.read("A/line").loss, _line(scale=2).loss)
    with pytest.raises(KeyError, match="A/plane"):
        store.read("A/plane")


def test_only_what_is_missing_is_computed(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return _line()

    for _ in range(2):
        Store(tmp_path / "run.zarr", {"seed": 0}).read_or_compute("A/line", compute)
    assert len(calls) == 1


def test_a_write_that_dies_leaves_no_half_record(tmp_path, monkeypatch):
    store = Store(tmp_path / "run.zarr", {})
    write = xarray.Dataset.to_zarr

    def killed(self, path, **options):
        write(self, path, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(xarray.Dataset, "to_zarr", killed)
    with pytest.raises(KeyboardInterrupt):
        store.write("A/line", _line())
    monkeypatch.undo()
    with pytest.raises(KeyError):
        store.read("A/line")
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]
    store.write("A/line", _line())
    store.finish({})
    with xarray.open_datatree(tmp_path / "run.zarr") as tree:
        assert list(tree.children) == ["A"]


def test_a_store_of_other_settings_is_not_resumed(tmp_path):
    Store(tmp_path / "run.zarr", {"seed": 0, "probes": 4})
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        Store(tmp_path / "run.zarr", {"seed": 1, "probes": 4})


def test_the_store_is_zarr(tmp_path):
    store = Store(tmp_path / "run.zarr", {})
    store.write("A/line", _line())
    assert "loss" in zarr.open_group(tmp_path / "run.zarr/A/line", mode="r")


# --- output folders ----------------------------------------------------------------------------------


def test_an_existing_folder_needs_a_word(tmp_path):
    with output_folder(tmp_path / "out") as out:
        (out / "result").write_text("kept")
    with pytest.raises(FileExistsError, match=r"--resume.*--overwrite"), output_folder(out):
        pass
    with output_folder(out, resume=True):
        assert (out / "result").read_text() == "kept"
    with output_folder(out, overwrite=True):
        assert not (out / "result").exists()
    with pytest.raises(ValueError, match="one of them"), output_folder(out, resume=True, overwrite=True):
        pass


@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": True}])
def test_a_folder_that_is_not_ours_is_never_touched(tmp_path, how):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match="no run of ours"), output_folder(tmp_path, **how):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_a_failure_leaves_what_was_done_and_no_empty_folder(tmp_path):
    def fail_after(name, writes):
        with output_folder(tmp_path / name) as out:
            (out / "sub").mkdir()
            if writes:
                (out / "sub" / "record").write_text("done")
            raise MemoryError

    for name, writes in (("nothing", False), ("something", True)):
        with pytest.raises(MemoryError):
            fail_after(name, writes)
        assert (tmp_path / name).exists() == writes


@pytest.mark.parametrize(("how", "left"), [({}, False), ({"overwrite": True}, False), ({"resume": True}, True)])
def test_a_failure_takes_away_what_it_made_and_what_it_emptied(tmp_path, how, left):
    if how:
        with output_folder(tmp_path / "new" / "out"):
            pass
    with pytest.raises(MemoryError), output_folder(tmp_path / "new" / "out", **how):
        raise MemoryError
    assert (tmp_path / "new" / "out").exists() == left
    assert (tmp_path / "new").exists() == bool(how)  # so are the folders above that it made
