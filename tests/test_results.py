import dataclasses

import numpy as np
import pytest
import torch

from landscape import (
    Dense,
    bezier_path,
    eigenpairs,
    line,
    line_band,
    local_entropy,
    plane,
    project_onto_plane,
    spectral_density,
)
from landscape.results import Measures, from_dataset, standard_error, to_dataset
from tests.problems import DOUBLE, LogisticRegression, seeded, symmetric, tiny_objective


def _records():
    f, w = LogisticRegression(), torch.ones(8, dtype=DOUBLE)
    operator = Dense(symmetric(np.arange(8)))
    pairs = eigenpairs(operator, 2, generator=seeded(0))
    e = torch.eye(8, dtype=DOUBLE)
    yield pairs
    yield spectral_density(operator, steps=3, probes=2, generator=seeded(0))
    yield spectral_density(operator, steps=3, probes=2, deflate=pairs, generator=seeded(0))
    yield local_entropy(f, w, radius=[0.1, 0.2], generator=seeded(0))
    yield local_entropy(f, w, radius=0.1, method="monte_carlo", samples=5, generator=seeded(0))
    yield local_entropy(f, w, radius=[0.1, 0.3], method="smc", tol=0.5, generator=seeded(0))
    yield line(f, w, e[0], [0.0, 1.0])
    yield plane(f, w, e[0], e[1], [0.0, 1.0], [0.0])
    yield line_band(f, w, [0.0, 1.0], directions=2, normalization="none", generator=seeded(0))
    network = tiny_objective()
    yield line(network, network.theta, network.theta, [0.0, 1.0], derivatives=True)
    yield line_band(tiny_objective(batch_norm="batch", weight_decay=0.1), network.theta, [0.0, 1.0], directions=2)
    yield project_onto_plane([w, 2 * w], w, e[0], e[1])
    yield bezier_path(network, network.theta, -network.theta, steps=2, points=3, generator=seeded(0))
    yield Measures(
        names=["a"],
        flatter=["lower"],
        checkpoints=["x", "y"],
        values=np.ones((1, 2)),
        stderr=np.full((1, 2), np.nan),
        differences=np.zeros((1, 2)),
        differences_stderr=np.zeros((1, 2)),
        covariance=np.arange(4.0).reshape(1, 2, 2),
        invariant=[True],
    )


RECORDS = list(_records())


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_a_record_survives_its_dataset(record):
    again = from_dataset(to_dataset(record))
    assert type(again) is type(record)
    for field in dataclasses.fields(record):
        before, after = getattr(record, field.name), getattr(again, field.name)
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after), err_msg=field.name)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_records_are_frozen(record):
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.cost = None


def test_dimensions_are_named_and_coordinates_are_coordinates():
    dataset = to_dataset(
        plane(
            LogisticRegression(),
            torch.zeros(8, dtype=DOUBLE),
            *torch.eye(8, dtype=DOUBLE)[:2],
            [0.0, 1.0],
            [0.0],
        )
    )
    assert dataset.loss.dims == ("a", "b")
    assert dataset.loss.sel(a=1.0, b=0.0).shape == ()


def test_the_standard_error_of_the_mean():
    draws = np.array([[1.0, 3.0], [2.0, 2.0]])
    np.testing.assert_allclose(standard_error(draws), [1.0, 0.0])
    assert np.isnan(standard_error(draws[:, :1])).all()
