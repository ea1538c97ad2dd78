"""The loss over planes as surfaces in three dimensions: one for print, and one to turn with the mouse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from landscape.plots.scales import blank_note, is_log, on_grid, scale_name, shared_norm, ticks, wrapped
from landscape.results import Plane

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["interactive_surface", "surface_3d"]


def surface_3d(
    plane: Plane,
    *,
    metric: str = "loss",
    scale: str | None = None,
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The loss as height over the plane.

    Args:
        plane: the result. Points whose loss is NaN or inf are holes, and are counted in the title.
        metric: ``"loss"``, or ``"error"`` for the share of wrong answers.
        scale: of heights and colours, ``"log"`` or ``"linear"``. Default: log where all is positive.
        limits: of heights and colours, to share them between planes. Default: the plane's own.
        ax: with ``projection="3d"``. Default: a new one.

    Raises:
        ValueError: axes of two dimensions; as for :func:`landscape.plots.loss_surface`.
    """
    # room for the labels below and at the right, which no layout of matplotlib's counts in 3D
    solid: Any = ax or plt.figure(figsize=(6, 4.8)).add_axes((0, 0.1, 0.88, 0.94), projection="3d")
    if not hasattr(solid, "plot_surface"):
        raise ValueError('ax has two dimensions: give figure.add_subplot(projection="3d")')
    norm = shared_norm([plane], metric, scale, limits)
    a, b, values = on_grid(plane, metric)
    low, high = _heights([norm.vmin, norm.vmax], norm)
    x, y = np.meshgrid(a, b, indexing="ij")
    # most versions of matplotlib have no log axis in 3D, so heights are logarithms and the ticks say of what
    solid.plot_surface(
        x,
        y,
        _heights(values, norm),
        rstride=1,
        cstride=1,
        cmap="viridis",
        norm=Normalize(low, high),
        lw=0.15,
        edgecolor="0.3",
    )
    positions, texts = ticks(norm)
    solid.set_zlim(low, high)
    solid.set_zticks(_heights(positions, norm), labels=texts)
    solid.set_zlabel(scale_name(metric, norm), labelpad=8)
    solid.set_xlabel(wrapped(plane.axes[0], 44), labelpad=16, fontsize=8)
    solid.set_ylabel(wrapped(plane.axes[1], 44), labelpad=16, fontsize=8)
    solid.locator_params(axis="x", nbins=5)
    solid.locator_params(axis="y", nbins=5)
    solid.set_title(blank_note(plane, metric), fontsize="medium")
    solid.set_box_aspect((1, 1, 0.75), zoom=0.9)  # labels are cut off at zoom 1
    return solid


def interactive_surface(planes: Mapping[str, Plane], *, metric: str = "loss", scale: str | None = None) -> Figure:
    """The loss as height over several planes, one at a time, on one scale of heights and colours.

    In Jupyter it shows itself; ``figure.write_html("surface.html")`` writes a page that needs no network. Choosing
    another plane leaves the view as it was turned.

    Args:
        planes: by label; a button for each.
        metric: as for :func:`surface_3d`.
        scale: see there.

    Raises:
        ValueError: plotly is not installed; as for :func:`surface_3d`.
    """
    try:
        from plotly import graph_objects
    except ImportError as error:
        raise ValueError("an interactive surface is plotly's: pip install plotly") from error

    norm = shared_norm(list(planes.values()), metric, scale)
    low, high = _heights([norm.vmin, norm.vmax], norm).tolist()
    positions, texts = ticks(norm)
    at = _heights(positions, norm).tolist()
    first = next(iter(planes))
    figure = graph_objects.Figure()
    for label, plane in planes.items():
        a, b, values = on_grid(plane, metric)
        figure.add_surface(
            x=a,
            y=b,
            z=_heights(values, norm).T,
            customdata=np.where(np.isfinite(values), values, np.nan).T,
            name=label,
            coloraxis="coloraxis",
            visible=label == first,
            hovertemplate=f"a = %{{x:.3g}}<br>b = %{{y:.3g}}<br>{metric} = %{{customdata:.4g}}",
        )
    figure.update_layout(
        title={"text": _title(first, planes[first], metric), "x": 0.5, "y": 0.95, "yanchor": "top"},
        coloraxis={
            "cmin": low,
            "cmax": high,
            "colorscale": "Viridis",
            "colorbar": {
                "title": {"text": scale_name(metric, norm), "side": "right"},
                "tickvals": at,
                "ticktext": texts,
            },
        },
        scene={
            "xaxis": {"title": {"text": "a"}},
            "yaxis": {"title": {"text": "b"}},
            "zaxis": {
                "title": {"text": metric},
                "range": [low - (high - low) / 50, high],
                "tickvals": at,
                "ticktext": texts,
            },
            "aspectmode": "manual",
            "aspectratio": {"x": 1, "y": 1, "z": 0.7},
        },
        uirevision="view",  # choosing a plane turns nothing back
        margin={"l": 10, "r": 10, "t": 110, "b": 60},
        height=620,
    )
    if len(planes) > 1:
        figure.update_layout(updatemenus=[_choice(planes, metric)])
    return figure


def _choice(planes: Mapping[str, Plane], metric: str) -> dict[str, Any]:
    """A button for each plane, which shows it alone and says what its axes are."""
    buttons = [
        {
            "label": label,
            "method": "update",
            "args": [{"visible": [other == label for other in planes]}, {"title.text": _title(label, plane, metric)}],
        }
        for label, plane in planes.items()
    ]
    place = {"x": 0.5, "xanchor": "center", "y": -0.03, "yanchor": "top"}
    return {"type": "buttons", "direction": "right", "buttons": buttons, **place}


def _title(label: str, plane: Plane, metric: str) -> str:
    """What is shown and in which units: on the axes themselves, long names would lie across the numbers."""
    axes = (f"{name}: {axis}" for name, axis in zip("ab", plane.axes, strict=True))
    said = "<br>".join(filter(None, [*axes, blank_note(plane, metric)]))
    return f"<b>{label}</b><br><sup>{said}</sup>"


def _heights(values: Any, norm: Normalize) -> np.ndarray:
    """Where values are on the axis of heights, cut at its ends; NaN, a hole, for those that have no place."""
    cut = np.clip(np.where(np.isfinite(values), values, np.nan), norm.vmin, norm.vmax)
    return np.log10(cut) if is_log(norm) else cut
