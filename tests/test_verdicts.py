"""Verdicts are statistics of a table: known answers on made-up ones, without any network."""

import numpy as np
import pytest

from landscape.compare import verdicts
from landscape.report import text
from landscape.results import Measures

NAN = float("nan")


def _measures(names, flatter, values, error):
    values = np.array(values, float)
    return Measures(
        names=names,
        flatter=flatter,
        checkpoints=["A", "B", "C"][: values.shape[1]],
        values=values,
        stderr=np.full(values.shape, error),
        differences=values - values[:, :1],
        differences_stderr=np.full(values.shape, error),
        covariance=np.stack([np.eye(values.shape[1]) * error**2] * len(values)),
        invariant=[False] * len(values),
    )


@pytest.mark.parametrize(
    ("flatter", "values", "error", "says", "flattest"),
    [
        ("lower", [1, 2], 0.1, "flatter", "A"),
        ("lower", [2, 1], 0.1, "flatter", "B"),
        ("higher", [2, 1], 0.1, "flatter", "A"),
        ("higher", [1, 2], 0.1, "flatter", "B"),
        ("lower", [1, 1.1], 0.1, "no difference", ""),  # one standard error
        ("lower", [1, 1.1], 0.0, "flatter", "A"),  # exact
        ("lower", [1, 1], 0.0, "no difference", ""),
        ("lower", [1, 9], NAN, "error not known", ""),
        ("lower", [1, NAN], 0.1, "not reliable", ""),
        ("lower", [NAN, 1], 0.1, "not reliable", ""),
        ("lower", [1, np.inf], 0.1, "not reliable", ""),
    ],
)
def test_a_verdict_needs_two_standard_errors(flatter, values, error, says, flattest):
    (verdict,) = verdicts(_measures(["m"], [flatter], [values], error))
    assert (verdict.says, verdict.flattest) == (says, flattest)
    np.testing.assert_array_equal(verdict.values, values)
    assert verdict.difference == pytest.approx(values[1] - values[0], nan_ok=True)
    assert flattest in text.verdict(verdict)
    assert f"A {text.number(float(values[0]))}, B {text.number(float(values[1]))}" in text.reason(verdict)


def test_two_standard_errors_themselves_are_too_few():
    (verdict,) = verdicts(_measures(["m"], ["lower"], [[1.0, 1.25]], 0.125))
    assert verdict.says == "no difference"
    (verdict,) = verdicts(_measures(["m"], ["lower"], [[1.0, 1.25 + 1e-9]], 0.125))
    assert verdict.says == "flatter"


def test_each_later_checkpoint_is_held_against_the_first():
    found = verdicts(_measures(["m", "k"], ["lower", "higher"], [[1, 2, 0], [1, 2, 0]], 0.1))
    told = [(v.measure, v.first, v.other, v.flattest) for v in found]
    assert told == [("m", "A", "B", "A"), ("m", "A", "C", "C"), ("k", "A", "B", "B"), ("k", "A", "C", "A")]


def test_measures_that_are_not_of_flatness_and_one_checkpoint_give_no_verdict():
    assert verdicts(_measures(["m"], [""], [[1, 2]], 0.1)) == []
    assert verdicts(_measures(["m"], ["lower"], [[1]], 0.1)) == []


@pytest.mark.parametrize(
    ("smc", "contradicted"),
    [([5.0, 1.5], ("A", "B")), ([5.0, NAN], ("A",)), ([NAN, 1.5], ("B",)), ([NAN, NAN], ())],
)
def test_a_reliable_bracket_contradicts_what_lies_outside_it(smc, contradicted):
    """Laplace tells 2 and 1, and the brackets of SMC are [4, 6] and [1.2, 2]."""
    name = "excess free energy at radius 0.01"
    suffixes = ["(Laplace)", "(annealed SMC)", "(annealed SMC), at least", "(annealed SMC), at most"]
    measures = _measures(
        [f"{name} {suffix}" for suffix in suffixes],
        ["lower", "lower", "", ""],
        [[2, 1], smc, [4, 1.2], [6, 2]],
        0.1,
    )
    laplace, of_smc = verdicts(measures)
    assert laplace.flattest == "B"
    assert laplace.contradicted == contradicted
    assert of_smc.contradicted == ()
    told = f"outside the bracket of annealed SMC of {' and '.join(contradicted)}"
    assert (told in text.reason(laplace)) == bool(contradicted)


def test_the_ends_of_a_bracket_are_inside():
    name = "excess free energy at radius 0.01"
    suffixes = ["(Laplace)", "(annealed SMC)", "(annealed SMC), at least", "(annealed SMC), at most"]
    rows = [[4, 2], [5, 1.5], [4, 1.2], [6, 2]]
    laplace, _ = verdicts(_measures([f"{name} {suffix}" for suffix in suffixes], ["lower", "lower", "", ""], rows, 0.1))
    assert laplace.contradicted == ()
