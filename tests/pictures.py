"""Small slices to draw, and what can be read off a drawing."""

import dataclasses

import numpy as np
import torch

from landscape import (
    line,
    plane,
)
from tests.problems import DOUBLE, LogisticRegression, Quadratic

E = torch.eye(8, dtype=DOUBLE)
A = np.linspace(-1, 1, 5)


def points():
    return {"A": torch.zeros(8, dtype=DOUBLE), "B": torch.ones(8, dtype=DOUBLE)}


def lines_of(**options):
    return {k: line(LogisticRegression(), x, E[0], A, **options) for k, x in points().items()}


def planes_of(**options):
    return {k: plane(LogisticRegression(), x, E[0], E[1], A, A, **options) for k, x in points().items()}


def paraboloid(constant=1.0, minimum=0.0):
    """f(x) = constant + x'x/2, with its minimum at minimum * (1, 1, ...)."""
    return Quadratic(E, torch.full((8,), minimum, dtype=DOUBLE), constant)


def with_holes(drawn):
    loss = drawn.loss.copy()
    loss[0, 0], loss[1, 1], loss[1, 2] = np.nan, np.inf, -np.inf
    return dataclasses.replace(drawn, loss=loss, not_finite=3)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def words(text):
    """Without the breaks of its lines."""
    return " ".join(text.split())


def band(collection):
    """The lower and upper edge of a shaded band, at each of its coordinates."""
    x, y = collection.get_paths()[0].vertices.T
    at = np.unique(x)
    return at, np.array([y[x == a].min() for a in at]), np.array([y[x == a].max() for a in at])


def texts(ax):
    return {text.get_text(): text.xy for text in ax.texts}
