"""The table that a run prints at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from evilm.report import results as numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evilm.report.results import Metric


def render(results: Mapping[str, Any]) -> Table:
    """One row a metric: value, 95 % interval, chance, baselines, target.

    Args:
        results: what ``results.json`` holds; stages that are missing have no rows.
    """
    table = Table(title="Held-out clips, in percent unless it says otherwise", title_justify="left", pad_edge=False)
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", style="bold", no_wrap=True)
    table.add_column("95 %", justify="right", style="dim", no_wrap=True)
    table.add_column("chance", justify="right", no_wrap=True)
    table.add_column("baselines")
    table.add_column("target", justify="right", no_wrap=True)
    group = ""
    for metric in numbers.read(results):
        if metric.group != group:
            group = metric.group
            table.add_section()
            table.add_row(f"[bold]{escape(numbers.GROUPS.get(group, group))}[/]")
        table.add_row(*_cells(metric))
    return table


def _cells(metric: Metric) -> tuple[str, ...]:
    def show(value: float | None) -> str:
        return numbers.shown(value, metric)

    low_high = " to ".join(show(end) for end in metric.interval) if metric.interval else ""
    baselines = ", ".join(f"{name} {show(value)}" for name, value in metric.baselines.items())
    target = show(metric.target) if isinstance(metric.target, float) else str(metric.target or "")
    sign = {True: "[green]met[/] ", False: "[red]missed[/] ", None: ""}[metric.met]
    return (
        "  " + escape(metric.name.removeprefix("kinds.") if metric.name.startswith("kinds.") else metric.label),
        show(metric.value),
        low_high,
        show(metric.chance),
        escape(baselines),
        sign + escape(target),
    )
