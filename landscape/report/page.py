"""A Comparison as one self-contained HTML page, its figures as PNG files and its numbers as JSON."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
import seaborn as sns
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from landscape import plots
from landscape.results import Comparison, Measures

__all__ = ["figures", "verdicts", "write_report"]

# a difference of fewer standard errors is called none
_SIGNIFICANT = 2.0
_METHODS = ("laplace", "monte_carlo", "tempered")  # of local entropy


def write_report(comparison: Comparison, folder: str | Path) -> Path:
    """Write ``report.html``, ``figures/*.png`` and ``results.json`` into ``folder``.

    The page holds its figures and needs no network.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(_plain(comparison), indent=1, allow_nan=False)
    (folder / "results.json").write_text(numbers, encoding="utf-8")
    images = {}
    for name, figure in figures(comparison).items():
        png = _png(figure)
        (folder / "figures" / f"{name}.png").write_bytes(png)
        images[name] = base64.b64encode(png).decode()
    page = folder / "report.html"
    page.write_text(_page(comparison, images), encoding="utf-8")
    return page


def figures(comparison: Comparison) -> dict[str, Figure]:
    """All pictures of the comparison, by name. They are drawn off screen: nothing is shown."""
    names = comparison.names
    densities, pairs = comparison.of("spectral_density"), comparison.of("eigenpairs")
    drawn: dict[str, Figure] = {}
    with _style():
        drawn["eigenvalue_histogram"], ax = _one()
        plots.eigenvalue_histogram(densities, eigenpairs=pairs, ax=ax)
        drawn["spectral_density"], ax = _one()
        plots.density_curve(densities, ax=ax)
        colors = plots.palette(names)
        for name, color in zip(names[1:], colors[1:], strict=True):
            key = f"line_from_{names[0]}_to_{name}"
            drawn[key], ax = _one()
            plots.line_between(
                comparison.results[f"{name}/line_from_first_train"],
                comparison.results[f"{name}/line_from_first_test"],
                ends=(names[0], name),
                colors=(colors[0], color),
                ax=ax,
            )
        drawn["line_eigenvector"], ax = _one()
        plots.lines(
            comparison.of("line_eigenvector"),
            xlabel="displacement along the top eigenvector\nin parameter norm",
            ax=ax,
        )
        drawn["band_random"], ax = _one()
        plots.line_bands(comparison.of("band_random"), ax=ax)
        drawn["loss_surfaces"] = _figure(3.6 * len(names) + 1, 4.2, layout="compressed")
        plots.loss_surfaces(comparison.of("plane_random"), figure=drawn["loss_surfaces"])
        if "minima/plane" in comparison.results:
            drawn["plane_of_minima"] = _figure(5.6, 4.6)
            ax = drawn["plane_of_minima"].subplots()
            frame = comparison.results["minima/frame"]
            _, filled = plots.loss_surface(comparison.results["minima/plane"], checkpoints=frame, ax=ax)
            plots.loss_bar(filled, ax)
        drawn["local_entropy"] = _figure(7, 4.6)
        by_method = [comparison.of(method) for method in _METHODS]
        plots.local_entropy_curve(
            {name: [method[name] for method in by_method] for name in names}, ax=drawn["local_entropy"].subplots()
        )
    return drawn


@dataclass(frozen=True)
class Verdict:
    """Which checkpoint one measure calls the flattest, and how sure that is."""

    measure: str
    flattest: str  # "" where that cannot be told
    says: str  # "... is flatter", "no difference", "the error is not known", "not reliable"
    reason: str  # the numbers


def verdicts(measures: Measures) -> list[Verdict]:
    """What each measure of flatness says of each later checkpoint against the first."""
    found = []
    first = measures.checkpoints[0]
    for i, (name, direction) in enumerate(zip(measures.names, measures.flatter, strict=True)):
        if not direction:
            continue
        for j, other in enumerate(measures.checkpoints[1:], start=1):
            values, error = measures.values[i, [0, j]], measures.differences_stderr[i, j]
            difference = measures.differences[i, j]
            flattest, reason = "", f"{first} {_number(values[0])}, {other} {_number(values[1])}"
            if not math.isfinite(difference):
                says = "not reliable"
            elif not math.isfinite(error):
                says = "the error is not known"
            elif abs(difference) > _SIGNIFICANT * error:
                flattest = other if (difference < 0) == (direction == "lower") else first
                says = f"{flattest} is flatter"
            else:
                says = "no difference"
            if math.isfinite(difference) and math.isfinite(error):
                reason += f"; {_apart(difference, error)}"
            outside = " and ".join(measures.checkpoints[k] for k in (0, j) if _outside_of_the_path(measures, i, k))
            if outside:
                reason += f"; outside the tempered bracket of {outside}: go by the tempered path"
            found.append(Verdict(name, flattest, says, reason))
    return found


def _apart(difference: float, error: float) -> str:
    if error > 0 and abs(difference) < 100 * error:
        return f"{abs(difference) / error:.2g} standard errors apart"
    return "the error is less than a hundredth of the difference" if difference else "exact"


def _outside_of_the_path(measures: Measures, i: int, k: int) -> bool:
    """Whether a local entropy of checkpoint k is none that a reliable tempered path allows at the same radius."""
    ball, _, method = measures.names[i].rpartition(" (")
    path = f"{ball} (tempered)"
    if method == "tempered)" or path not in measures.names:
        return False
    told, low, high = (
        measures.values[measures.names.index(name), k] for name in (path, f"{path}, at least", f"{path}, at most")
    )
    # NaN lies neither below nor above
    return math.isfinite(told) and bool(measures.values[i, k] < low or measures.values[i, k] > high)


def _page(comparison: Comparison, images: dict[str, str]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("landscape.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["training_settings"] = _training_settings
    environment.globals["with_error"] = _with_error
    notes = [
        f"{name}: {entropy.note}"
        for analysis in _METHODS
        for name, entropy in comparison.of(analysis).items()
        if entropy.note
    ]
    costs = {group: asdict(record.cost) for group, record in comparison.results.items() if hasattr(record, "cost")}
    return environment.get_template("page.html.jinja").render(
        comparison=comparison,
        measures=comparison.measures,
        images=images,
        verdicts=verdicts(comparison.measures),
        pairs=comparison.of("eigenpairs"),
        sweep=next(iter(comparison.of("laplace").values())),
        planes=comparison.of("plane_random"),
        notes=notes,
        costs=costs,
        provenance=json.dumps(comparison.provenance, indent=1),
        settings=json.dumps(comparison.settings, indent=1),
    )


def _training_settings(metadata: Mapping[str, Any]) -> str:
    """The optimizer's settings in a line; those that are off are left out."""
    settings = metadata.get("settings", {})
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value) or "–"  # noqa: RUF001


def _with_error(value: float, error: float) -> str:
    """The value to the digits that its standard error leaves; alone where it is exact to those shown."""
    if not math.isfinite(value) or error < 1e-4 * abs(value) or error == 0:
        return _number(value)
    if not math.isfinite(error):
        return f"{_number(value)} ± ?"
    exponent = math.floor(math.log10(max(abs(value), error)))
    scale, suffix = (10.0**exponent, f"e{exponent}") if exponent < -3 or exponent > 4 else (1.0, "")
    decimals = max(0, 1 - math.floor(math.log10(error / scale)))
    text = f"{value / scale:.{decimals}f} ± {error / scale:.{decimals}f}"
    return f"({text}){suffix}" if suffix else text


def _number(value: Any) -> str:
    """Four significant digits; a dash for what is not known."""
    if isinstance(value, float | np.floating):
        return "–" if math.isnan(value) else f"{value:.4g}"  # noqa: RUF001 - a dash is meant
    return str(value)


def _plain(value: Any) -> Any:
    """As JSON has it: no points of the parameter space (the store keeps them), NaN as null, infinity as a string."""
    if is_dataclass(value):
        named = {f.name: getattr(value, f.name) for f in fields(value)}
        return {name: _plain(item) for name, item in named.items() if not isinstance(item, torch.Tensor)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


@contextmanager
def _style() -> Iterator[None]:
    with (
        sns.axes_style("ticks", {"axes.grid": True, "grid.color": "0.93"}),
        sns.plotting_context("notebook", font_scale=0.9),
        mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False}),
    ):
        yield


def _figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _one() -> tuple[Figure, Any]:
    figure = _figure(5.6, 4)
    return figure, figure.subplots()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # tight, since labels of axes with equal units may reach beyond the page that the layout reckons with
    figure.savefig(buffer, format="png", dpi=180, bbox_inches="tight")
    return buffer.getvalue()
