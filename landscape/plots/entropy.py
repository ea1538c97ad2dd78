"""Plots of local entropy: against the radius, along training, and the diagnostics of sequential Monte Carlo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from landscape.plots.style import new_axes, palette, set_legend, set_loss_axis
from landscape.results import LocalEntropy

__all__ = ["entropy_along_training", "local_entropy_curve", "smc_diagnostics"]

_EXCESS = r"excess free energy $-\tilde F/\beta - f$"
_STYLES = {"laplace": ("--", "s"), "monte_carlo": (":", "o"), "smc": ("-", "D"), "sgld": ("-.", "v")}


def local_entropy_curve(entropies: Mapping[str, Sequence[LocalEntropy]], *, ax: Axes | None = None) -> Axes:
    """The excess free energy -F~/beta - f(x) against the radius of the ball, by every method.

    Error bars are one standard error. Points that are not reliable are hollow and have no error bars, since the error
    is not known. The bracket of annealed SMC is shaded. A broad bar extends from an SGLD point to the value
    extrapolated to a step size of zero.

    Args:
        entropies: by label, which gives the colour, one sweep for each method, which gives line and marker.
        ax: default: a new one.
    """
    ax = ax or new_axes()
    colors = dict(zip(entropies, palette(entropies), strict=True))
    sweeps = [(color, sweep) for label, color in colors.items() for sweep in entropies[label]]
    for color, sweep in sweeps:
        radius = np.atleast_1d(sweep.radius)
        _draw(ax, radius, sweep.method, color, *_at_all_radii(sweep))
        if sweep.method == "sgld":
            extrapolated = sweep.excess - sweep.step_size_bias / sweep.beta
            ax.vlines(radius, sweep.excess, extrapolated, color=color, lw=5, alpha=0.3)
    methods = {sweep.method: sweep.method_name for _, sweep in sweeps}
    for label, color in colors.items():
        ax.plot([], [], "-", color=color, lw=3, label=label)
    for method, name in methods.items():
        line, marker = _STYLES[method]
        ax.plot([], [], line, marker=marker, color="0.4", lw=1, ms=4, label=name)
    if "smc" in methods:
        ax.fill_between([], [], color="0.4", alpha=0.2, lw=0, label="its bracket")
    ax.plot([], [], "o", mfc="white", color="0.4", ms=4, label="not reliable")
    _set_radius_axis(ax, np.concatenate([np.atleast_1d(sweep.radius) for _, sweep in sweeps]))
    beta = sweeps[0][1].beta
    _set_excess_axis(ax, [np.atleast_1d(sweep.excess) for _, sweep in sweeps], rf"{_EXCESS}, $\beta$ = {beta:g}")
    set_legend(ax)
    return ax


def entropy_along_training(
    entropies: Mapping[str, Sequence[LocalEntropy]],
    when: Mapping[str, Sequence[float] | np.ndarray],
    *,
    xlabel: str = "gradients spent",
    figure: Figure | None = None,
) -> Figure:
    """The loss at the points of several trajectories, and beside it the excess free energy in a panel for each radius.

    Error bars, hollow points and shading are those of ``local_entropy_curve``.

    Args:
        entropies: by label, those at the points of a trajectory, from ``local_entropy_trajectory``.
        when: by label, the gradients or the epochs at which the points were recorded.
        xlabel: the name of these.
        figure: default: a new one.

    Raises:
        ValueError: other labels or numbers of points in ``when``, or several sets of radii.
    """
    every = [entropy for trajectory in entropies.values() for entropy in trajectory]
    radii = np.atleast_1d(every[0].radius)
    if any(not np.array_equal(np.atleast_1d(entropy.radius), radii) for entropy in every):
        raise ValueError("the entropies are of different radii: give those of one call's settings")
    for label, trajectory in entropies.items():
        given = len(when.get(label, ()))
        if given != len(trajectory):
            raise ValueError(f"when[{label!r}] has {given} numbers for {len(trajectory)} points: give one for each")
    panels = 1 + len(radii)
    figure = figure or plt.figure(figsize=(3.6 * panels, 3.4), layout="constrained")
    first, *others = figure.subplots(1, panels, sharex=True)
    for (label, trajectory), color in zip(entropies.items(), palette(entropies), strict=True):
        first.plot(when[label], [entropy.loss for entropy in trajectory], "-", color=color, lw=1, label=label)
        columns = [np.stack(column) for column in zip(*map(_at_all_radii, trajectory), strict=True)]
        for i, ax in enumerate(others):
            _draw(ax, np.asarray(when[label]), trajectory[0].method, color, *(column[:, i] for column in columns))
    set_loss_axis(first, "loss $f$", [np.array([entropy.loss for entropy in every])])
    if not all(np.all(entropy.reliable) for entropy in every):
        first.plot([], [], "o", mfc="white", color="0.4", ms=4, label="not reliable")
    first.legend(frameon=False)
    for ax, radius, excess in zip(others, radii, np.stack([np.atleast_1d(e.excess) for e in every], 1), strict=True):
        _set_excess_axis(ax, [excess], _EXCESS)
        ax.set_title(rf"radius {radius:.3g}, $\beta$ = {every[0].beta:g}", fontsize="medium")
    for ax in (first, *others):
        ax.set_xlabel(xlabel)
    return figure


def smc_diagnostics(entropy: LocalEntropy, *, radius: float | None = None, figure: Figure | None = None) -> Figure:
    """The diagnostics of annealed sequential Monte Carlo at one radius, against the inverse temperature s.

    The first panel shows <f>_s. The second shows <psi>_s with its left and right Riemann sums, whose difference, the
    shaded area, is the bracket of F~ without its standard errors; psi is beta f if the particles start from q
    (``pairs=0``), and its remainder if they start from a Gaussian closer to the target. The other panels show the
    acceptance rate of the moves, and the effective sample size of the weights over the number of particles. Above are
    the diagnostics of the chains at s = 1.

    The axis of s is scaled by the power of s that puts the middle temperature in the middle, since the schedule is
    dense near 0: areas are true to its ticks, not to the eye.

    Args:
        entropy: by ``method="smc"`` or ``"sgld"``; the latter has no acceptance rate and no weights.
        radius: one of a sweep's. Default: the largest that has a schedule.
        figure: default: a new one.

    Raises:
        ValueError: no schedule, or none at this radius.
    """
    at = _index_with_schedule(entropy, radius)
    rows = {
        name: np.atleast_2d(getattr(entropy, name))[at]
        for name in ("schedule", "step_loss", "step_potential", "step_acceptance", "step_relative_ess")
    }
    known = np.isfinite(rows["schedule"])
    s, loss, psi = (rows[name][known] for name in ("schedule", "step_loss", "step_potential"))
    rates = {
        label: rows[name][known]
        for label, name in (("acceptance\nrate", "step_acceptance"), ("relative\nESS", "step_relative_ess"))
        if len(rows[name])
    }
    figure = figure or plt.figure(figsize=(6, 4.4 + 1.1 * len(rates)), layout="constrained")
    axes = figure.subplots(2 + len(rates), 1, sharex=True, squeeze=False, height_ratios=[2, 2, *[1] * len(rates)])
    first, second, *others = axes[:, 0]
    first.plot(s, loss, "o-", color="C0", ms=3, lw=1, label=r"$\langle f\rangle_s$")
    first.axhline(entropy.loss, color="0.5", ls="--", lw=1, label="$f(x)$")
    first.set_ylabel("loss $f$")
    second.plot(s, psi, "o-", color="C1", ms=3, lw=1, label=r"$\langle\psi\rangle_s$")
    second.stairs(psi[:-1], s, baseline=psi[1:], fill=True, color="C1", alpha=0.25, label="between the sums")
    second.set_ylabel(r"$\psi$")
    for ax in (first, second):
        ax.legend(frameon=False, fontsize="small")
    for ax, (label, rate) in zip(others, rates.items(), strict=True):
        ax.plot(s, rate, "o-", color="0.3", ms=3, lw=1)
        ax.set(ylim=(0, 1.05), ylabel=label)
    _set_temperature_axis(axes[-1, 0], s)
    axes[-1, 0].set_xlabel("inverse temperature $s$ (1: the Gibbs measure)")
    figure.suptitle(_summary(entropy, at), fontsize="small")
    return figure


def _at_all_radii(entropy: LocalEntropy) -> list[np.ndarray]:
    """Excess, its standard error, whether it is reliable, and its bracket, (radii,) each."""
    low, high = entropy.excess_bracket
    found = (entropy.excess, entropy.excess_stderr, entropy.reliable, low, high)
    return [np.atleast_1d(np.asarray(item)) for item in found]


def _draw(
    ax: Axes,
    x: np.ndarray,
    method: str,
    color: Any,
    excess: np.ndarray,
    stderr: np.ndarray,
    reliable: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> None:
    """One line with error bars where the points are reliable, and hollow points where not."""
    line, marker = _STYLES[method]
    ax.plot(x, excess, line, color=color, lw=1)
    ax.errorbar(x[reliable], excess[reliable], yerr=stderr[reliable], fmt=marker, color=color, ms=4, capsize=2)
    ax.plot(x[~reliable], excess[~reliable], marker, color=color, mfc="white", ms=4)
    if method == "smc":
        ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0)


def _set_radius_axis(ax: Axes, radii: np.ndarray) -> None:
    """Logarithmic, with ticks at 1, 2, 5 on a short one."""
    ax.set(xscale="log", xlabel=r"radius $1/\sqrt{\beta\gamma}$ per weight")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if radii.max() < 200 * radii.min() else (1.0,)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _set_excess_axis(ax: Axes, excesses: Sequence[np.ndarray], name: str) -> None:
    """Logarithmic; linear through zero where an excess is not positive, as it may be away from minima."""
    values = np.concatenate([excess[np.isfinite(excess)] for excess in excesses])
    if len(values) == 0 or (values > 0).all():
        ax.set(yscale="log", ylabel=name)
        return
    sizes = np.abs(values[values != 0])
    # a power of ten, where the first ticks on both sides of 0 are
    ax.set_yscale("symlog", linthresh=10 ** np.floor(np.log10(np.quantile(sizes, 0.2))) if len(sizes) else 1.0)
    ax.axhline(0, color="0.6", lw=1, zorder=0)
    ax.set_ylabel(name)


def _index_with_schedule(entropy: LocalEntropy, radius: float | None) -> int:
    """The index of the radius, or of the largest that has a schedule."""
    radii, schedules = np.atleast_1d(entropy.radius), np.atleast_2d(entropy.schedule)
    has = np.isfinite(schedules).any(axis=1)
    if not has.any():
        raise ValueError(f"the {entropy.method_name} result has no schedule: give one by method='smc'")
    known = ", ".join(f"{r:.3g}" for r in radii[has])
    if radius is None:
        return int(np.flatnonzero(has)[np.argmax(radii[has])])
    found = np.flatnonzero(has & np.isclose(radii, radius))
    if len(found) == 0:
        raise ValueError(f"radius={radius}: give one of those with a schedule, {known}")
    return int(found[0])


def _set_temperature_axis(ax: Axes, s: np.ndarray) -> None:
    """Scaled by the power of s that puts the middle temperature in the middle, with round ticks that stand apart."""
    power = min(1.0, np.log(0.5) / np.log(s[len(s) // 2])) if len(s) > 2 else 1.0
    ax.set_xscale(
        "function", functions=(lambda s: np.maximum(s, 0) ** power, lambda u: np.maximum(u, 0) ** (1 / power))
    )
    chosen = [1.0]
    for tick in (0.5, 0.2, *10.0 ** -np.arange(1, 13)):
        if chosen[-1] ** power - tick**power > 0.08 and tick**power > 0.08:
            chosen.append(float(tick))
    chosen.append(0.0)
    ax.set_xticks(chosen, labels=[f"{tick:g}" for tick in chosen], minor=False)
    ax.set_xticks([], minor=True)
    ax.set_xlim(0, 1)


def _summary(entropy: LocalEntropy, at: int) -> str:
    """F~ and the diagnostics of its chains, in two lines."""

    def of(name: str) -> float:
        return float(np.atleast_1d(getattr(entropy, name))[at])

    name = rf"{entropy.method_name}, radius {of('radius'):.3g}, $\beta$ = {entropy.beta:g}"
    value = rf"$\tilde F$ = {of('value'):.2f} ± {of('stderr'):.2f}, within [{of('lower'):.2f}, {of('upper'):.2f}]"
    if entropy.method == "sgld":
        return f"{name}: {value}\nbias by its step size about {of('step_size_bias'):.2g}"
    return (
        f"{name}: {value}\nat $s$ = 1: R-hat {of('r_hat'):.2f}, autocorrelation time {of('autocorrelation_time'):.1f}, "
        f"virial {of('virial'):.3f}, drift {of('drift'):.2f} ± {of('drift_stderr'):.2f}"
    )
