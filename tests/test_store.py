import dataclasses
import json

import numpy as np
import pytest
import xarray
import zarr

from landscape import line
from landscape.results import Cost, Failed, digest_of
from landscape.results.store import Store, output_folder
from tests.problems import DOUBLE, LogisticRegression


def _line(scale: float = 1.0):
    import torch

    e = torch.eye(8, dtype=DOUBLE)
    return line(LogisticRegression(), scale * torch.ones(8, dtype=DOUBLE), e[0], [0.0, 1.0])


def test_a_finished_run_opens_with_xarray_alone(tmp_path):
    store = Store(tmp_path / "run.zarr")
    store.write("A/line", _line())
    store.write("measures_like", _line())
    store.finish({"seed": 0}, {"versions": {"torch": "x"}})
    with xarray.open_datatree(tmp_path / "run.zarr") as tree:
        np.testing.assert_array_equal(tree["A/line"].loss.values, _line().loss)
        assert json.loads(tree.attrs["settings"]) == {"seed": 0}
        assert json.loads(tree.attrs["provenance"])["versions"] == {"torch": "x"}


def test_reading_gives_what_was_written_and_writing_replaces(tmp_path):
    store = Store(tmp_path / "run.zarr")
    store.write("A/line", _line())
    store.write("A/line", _line(scale=2))
    np.testing.assert_array_equal(store.read("A/line").loss, _line(scale=2).loss)
    with pytest.raises(KeyError, match="A/plane"):
        store.read("A/plane")


def test_only_what_is_missing_or_made_of_something_else_is_computed(tmp_path):
    made = []

    def compute():
        made.append(len(made))
        return _line(scale=len(made))

    for key, count in (("a", 1), ("a", 1), ("b", 2), ("b", 2), ("a", 3)):
        found = Store(tmp_path / "run.zarr").read_or_compute("A/line", key, compute)
        assert len(made) == count
        np.testing.assert_array_equal(found.loss, _line(scale=count).loss)


def test_what_is_under_way_has_a_folder_until_it_is_done(tmp_path):
    store = Store(tmp_path / "run.zarr")

    def killed():
        with store.partial("A/line", "k") as folder:
            folder.mkdir(parents=True)
            (folder / "half").write_text("done")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    with store.partial("A/line", "other") as folder:
        assert not folder.exists()
    with store.partial("A/line", "k") as folder:
        assert (folder / "half").read_text() == "done"
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


def test_a_dataset_is_a_record_and_digests_tell_records_apart(tmp_path):
    store = Store(tmp_path / "run.zarr")
    dataset = xarray.Dataset({"ratio": ("pair", [1.0, 2.0])}, attrs={"of": "x"})
    store.write("A/own", dataset, "key")
    xarray.testing.assert_identical(store.read("A/own", "key"), dataset)
    for record in (_line(), dataset, Failed("ValueError: no")):
        store.write("A/record", record, "key")
        assert digest_of(store.read("A/record")) == digest_of(record)
    assert len({digest_of(r) for r in (_line(), _line(scale=2), dataset, Failed("a"), Failed("b"))}) == 5
    later = dataclasses.replace(_line(), cost=Cost(seconds=99.0))
    assert digest_of(later) == digest_of(_line())


def test_a_write_that_dies_leaves_no_half_record(tmp_path, monkeypatch):
    store = Store(tmp_path / "run.zarr")
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
    store.finish({}, {})
    with xarray.open_datatree(tmp_path / "run.zarr") as tree:
        assert list(tree.children) == ["A"]


def test_a_run_of_an_older_format_is_refused_in_one_sentence(tmp_path):
    zarr.open_group(tmp_path / "run.zarr", mode="a", zarr_format=2).attrs["settings"] = "{}"
    with pytest.raises(ValueError, match="holds a run of format 1, and this version writes format 3"):
        Store(tmp_path / "run.zarr")


def test_the_store_is_zarr(tmp_path):
    store = Store(tmp_path / "run.zarr")
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
