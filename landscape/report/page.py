"""A Comparison as one self-contained HTML page, its figures as PNG files and its numbers as JSON."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from landscape.compare import Picture, group_verdicts, paired_by_seed, verdicts
from landscape.compare.pictures import of_groups, style
from landscape.report import text
from landscape.results import Comparison, LocalEntropy

__all__ = ["figures", "write_report"]


def write_report(comparison: Comparison, folder: str | Path) -> Path:
    """Write ``report.html``, ``figures/*.png`` and ``results.json`` into ``folder``.

    The page holds its figures and needs no network. Its sections are those of the analyses that the comparison made.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(text.plain(comparison), indent=1, allow_nan=False)
    (folder / "results.json").write_text(numbers, encoding="utf-8")
    sections = [_Section(title, [_Image(p, _png(p.figure)) for p in drawn]) for title, drawn in _drawn(comparison)]
    top = [_Image(p, _png(p.figure)) for p in _of_groups(comparison)]
    for image in (*top, *(image for section in sections for image in section.images)):
        (folder / "figures" / f"{image.picture.name}.png").write_bytes(image.png)
    page = folder / "report.html"
    page.write_text(_page(comparison, top, sections), encoding="utf-8")
    return page


def figures(comparison: Comparison) -> dict[str, Figure]:
    """All pictures of the comparison, by name. They are drawn off screen: nothing is shown."""
    drawn = [*_of_groups(comparison), *(picture for _, pictures in _drawn(comparison) for picture in pictures)]
    return {picture.name: picture.figure for picture in drawn}


@dataclass(frozen=True)
class _Image:
    picture: Picture
    png: bytes

    @property
    def source(self) -> str:
        """For an ``img`` of a page that needs no network."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class _Section:
    title: str
    images: list[_Image]


def _of_groups(comparison: Comparison) -> list[Picture]:
    """The picture of the groups, if there are any and a measure that calls one the flatter."""
    if not comparison.replicated or not any(comparison.measures.flatter):
        return []
    with style():
        return [of_groups(comparison)]


def _drawn(comparison: Comparison) -> list[tuple[str, list[Picture]]]:
    """The pictures of the analyses that have records, by the title that these share; one that several draw is drawn
    once."""
    made = {group.rpartition("/")[2] for group in comparison.results}
    with_records = [analysis for analysis in comparison.analyses if analysis.name in made]
    sections: dict[str, list[Picture]] = {}
    drawn = set()
    with style():
        for analysis in with_records:
            pictures = sections.setdefault(analysis.title, [])
            if analysis.draw is not None and analysis.draw not in drawn:
                drawn.add(analysis.draw)
                pictures += analysis.draw(comparison)
    return [(title, pictures) for title, pictures in sections.items() if title]


def _page(comparison: Comparison, top: list[_Image], sections: list[_Section]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("landscape.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = text.number
    environment.filters["p_value"] = text.p_value
    environment.filters["training_settings"] = text.training_settings
    functions = (
        text.with_error,
        text.verdict,
        text.reason,
        text.group_verdict,
        text.interval,
        text.with_spread,
        text.by_pair,
    )
    for function in functions:
        environment.globals[function.__name__] = function
    records: dict[str, Any] = comparison.results
    entropies = {group: record for group, record in records.items() if isinstance(record, LocalEntropy)}
    notes = [f"{group}: {entropy.note}" for group, entropy in entropies.items() if entropy.note]
    costs = {group: asdict(record.cost) for group, record in records.items() if hasattr(record, "cost")}
    groups = comparison.groups if comparison.replicated else {}
    paired = paired_by_seed(groups, comparison.metadata) if groups else None
    by_group = group_verdicts(comparison.measures, paired or groups, paired=paired is not None) if groups else []
    one_by_one = verdicts(comparison.measures)
    return environment.get_template("page.html.jinja").render(
        comparison=comparison,
        top=top,
        by_group=by_group,
        answer=text.group_answer(by_group) if groups else text.answer(one_by_one),
        budgets=text.budgets(comparison.metadata, comparison.groups),
        measures=comparison.measures,
        sections=sections,
        verdicts=one_by_one,
        pairs=comparison.of("eigenpairs"),
        sweep=next(iter(entropies.values()), None),
        notes=notes,
        costs=costs,
        provenance=json.dumps(comparison.provenance, indent=1),
        settings=json.dumps(comparison.settings, indent=1),
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # tight, since labels of axes with equal units may reach beyond the page that the layout reckons with
    figure.savefig(buffer, format="png", dpi=180, bbox_inches="tight")
    return buffer.getvalue()
