"""What is made of populations, on populations made up by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

from landscape.local_entropy.smc.diagnostics import diagnose
from landscape.local_entropy.smc.result import SMCResult


def _population(psi, variance, final_psi):
    return SimpleNamespace(
        psi=psi,
        psi_variance=variance,
        finite_fraction=1.0,
        log_evidence=-1.0,
        virial=1.0,
        final_psi=final_psi,
        acceptance=np.full(3, 0.6),
        relative_ess=np.full(3, 0.8),
    )


def _result(s, populations):
    fields = dict.fromkeys(SMCResult.__dataclass_fields__, 0)
    return SMCResult(**{**fields, "s": s, "log_normalizer": 2.0, "populations": populations})


def test_thermodynamic_integration_is_exact_for_cubics():
    """The trapezoidal rule with derivatives at the ends, on a grid that is not even."""
    s = np.array([0.0, 0.1, 0.4, 1.0])
    cubics = [np.poly1d([-1.0, 2.0, -3.0, 5.0]), np.poly1d([0.5, 0.0, -1.0, 2.0])]
    result = _result(s, [_population(p(s), -p.deriv()(s), np.zeros((2, 8))) for p in cubics])
    exact = [2 - (p.integ()(1) - p.integ()(0)) for p in cubics]
    np.testing.assert_allclose(result.thermodynamic(), exact, rtol=1e-13)  # rounding


@pytest.mark.parametrize("excess", [0.99, 1.01])
def test_chains_are_burning_in_if_psi_falls_beyond_chance(excess):
    """From the first quarter to the last, at the 1 % quantile of Student's t for three populations."""
    drifts = np.array([-1.0, 0.0, 1.0])  # of standard error 1 / sqrt 3
    mean = excess * scipy.stats.t.ppf(0.01, 2) / 3**0.5
    chains = []
    for drift in drifts + mean:
        psi = np.full((2, 8), 100.0)
        psi[:, :2], psi[:, -2:] = 1.0, 1.0 + drift
        chains.append(psi)
    s = np.array([0.0, 0.5, 1.0])
    result = _result(s, [_population(np.ones(3), np.ones(3), psi) for psi in chains])
    fields, notes = diagnose([result], np.array([0.1]))
    assert fields["drift"] == pytest.approx([mean])
    assert fields["drift_stderr"] == pytest.approx([1 / 3**0.5])
    assert fields["reliable"].tolist() == [excess < 1]
    assert any("still decreases" in note for note in notes) == (excess > 1)
