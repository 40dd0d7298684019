"""The blocks that every part of the page is built of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evilm.report import figures
from evilm.report.markup import Html, tag

if TYPE_CHECKING:
    from evilm.report.results import Metric


def section(name: str, title: str, lead: str, *body: Html | None) -> Html:
    """A part of the page under its title."""
    return tag("section", tag("h2", title), tag("p", lead, class_="lead") if lead else None, *body, id=name)


def absent(what: str) -> Html:
    """What stands in for a part that is not there."""
    return tag("p", f"Not run yet: {what}.", class_="absent")


def dot_row(metric: Metric, title: str, note: str) -> Html:
    """A metric as a row: its name, its track, its value; ``note`` where it has nothing to be read beside."""
    others = [f"{name} {value:.1f}" for name, value in metric.baselines.items()]
    if metric.chance is not None:
        others.insert(0, f"chance {metric.chance:.1f}")
    beside = tag("p", ", ".join(others) or note, class_="note")
    label = tag("div", tag("h3", title), beside)
    return tag("div", label, figures.dots(metric), value_of(metric.value), class_="row")


def value_of(value: float) -> Html:
    """A number of a figure."""
    return tag("span", f"{value:.1f}", class_="figure-value")


def mark(text: str | float, ok: bool) -> Html:
    """Words with a tick or a cross: never told by colour alone."""
    return tag(
        "span", tag("span", "✓" if ok else "✕", class_="sign"), " ", text, class_="mark-right" if ok else "mark-wrong"
    )
