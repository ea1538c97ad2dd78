"""Surface plots of the loss over planes in three dimensions, static and interactive."""

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
        plane: the result. Points with NaN or inf are holes, and the title states their number.
        metric: ``"loss"``, or ``"error"`` for the error rate.
        scale: of heights and colours, ``"log"`` or ``"linear"``. Default: log if all values are positive.
        limits: of heights and colours, to share them between planes. Default: the range of the plane.
        ax: with ``projection="3d"``. Default: a new one.

    Raises:
        ValueError: axes without ``projection="3d"``; as for :func:`landscape.plots.loss_surface`.
    """
    # with margins for the labels below and at the right, which matplotlib's layouts ignore in 3D
    solid: Any = ax or plt.figure(figsize=(6, 4.8)).add_axes((0, 0.1, 0.88, 0.94), projection="3d")
    if not hasattr(solid, "plot_surface"):
        raise ValueError('ax has two dimensions: give figure.add_subplot(projection="3d")')
    norm = shared_norm([plane], metric, scale, limits)
    a, b, values = on_grid(plane, metric)
    low, high = _heights([norm.vmin, norm.vmax], norm)
    x, y = np.meshgrid(a, b, indexing="ij")
    # most versions of matplotlib have no log axis in 3D, so heights are logarithms, with ticks at the original values
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
    """An interactive plot of the loss as height over several planes, one at a time, with common heights and colours.

    Jupyter displays the figure; ``figure.write_html("surface.html")`` writes a self-contained page. Selecting another
    plane keeps the view.

    Args:
        planes: by label, with a button for each.
        metric: as for :func:`surface_3d`.
        scale: as for :func:`surface_3d`.

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
        uirevision="view",  # keeps the view when another plane is selected
        margin={"l": 10, "r": 10, "t": 110, "b": 60},
        height=620,
    )
    if len(planes) > 1:
        figure.update_layout(updatemenus=[_choice(planes, metric)])
    return figure


def _choice(planes: Mapping[str, Plane], metric: str) -> dict[str, Any]:
    """A button for each plane, which shows only that plane and updates the title."""
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
    """The label with the names of the axes, which on the axes themselves would overlap the ticks."""
    axes = (f"{name}: {axis}" for name, axis in zip("ab", plane.axes, strict=True))
    lines = "<br>".join(filter(None, [*axes, blank_note(plane, metric)]))
    return f"<b>{label}</b><br><sup>{lines}</sup>"


def _heights(values: Any, norm: Normalize) -> np.ndarray:
    """The heights of values, clipped to the scale; NaN, which is a hole, for values that are not finite."""
    clipped = np.clip(np.where(np.isfinite(values), values, np.nan), norm.vmin, norm.vmax)
    return np.log10(clipped) if is_log(norm) else clipped
