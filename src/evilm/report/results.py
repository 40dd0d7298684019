"""The metrics in ``results.json`` of a demo run, for its page and for the terminal."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NAMES = {
    "MdR": "median rank",
    "voc_rate": "VOC. RATE",
    "word_mAP": "caption words, mAP",
    "mvm_accuracy": "masked patches",
    "mlm_accuracy": "masked words",
    "vtm_accuracy": "video-text matching",
}
_RANKS = frozenset({"MdR", "v2t_MdR"})  # these and perplexity are not in percent


class Baseline(BaseModel):
    """A value of a baseline, and the paired bootstrap 95 % interval of the metric's value minus this one."""

    value: float
    gain: tuple[float, float] | None = None


class Metric(BaseModel):
    """One number of ``results.json`` and what it is compared with."""

    group: str
    title: str  # of the group
    name: str  # its key, such as R@1; nested keys are joined by dots
    value: float  # in percent, except for ranks and perplexity
    chance: float | None = None  # the value of random answers, where it is defined
    baselines: dict[str, Baseline] = {}
    interval: tuple[float, float] | None = None  # bootstrap 95 %
    target: float | str | None = None  # a number or a condition in words
    met: bool | None = None  # whether the target is met, by the rule in demo.results

    @property
    def id(self) -> str:
        """Group and name, such as ``retrieval R@1``."""
        return f"{self.group} {self.name}"

    @property
    def label(self) -> str:
        """The name as it is printed."""
        last = self.name.rsplit(".", 1)[-1]
        return NAMES.get(last, last.replace("_", " "))

    def show(self, value: float | str | None) -> str:
        """Format a value of this metric: ranks as short as possible, all else with one decimal."""
        if value is None or isinstance(value, str):
            return value or ""
        return f"{value:g}" if self.name in _RANKS else f"{value:.1f}"

    @property
    def comparisons(self) -> list[str]:
        """Chance and baselines in words."""
        chance = [] if self.chance is None else [f"chance {self.chance:.1f}"]
        return chance + [f"{name} {baseline.value:.1f}" for name, baseline in self.baselines.items()]


def read_metrics(results: Mapping[str, Any]) -> list[Metric]:
    """Every metric of a ``results.json`` in its order."""
    metrics: list[Metric] = []
    for group, table in results.items():
        if group != "seconds" and isinstance(table, dict):
            values = cast("dict[str, Any]", table)
            fields = {"group": group, "title": values.get("title") or group.replace("_", " ").capitalize()}
            metrics += [Metric.model_validate({**leaf, **fields, "name": name}) for name, leaf in _leaves(values)]
    return metrics


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables within ``table`` that have a value, with their dotted names."""
    for key, inner in table.items():
        if isinstance(inner, dict) and "value" in inner:
            if inner["value"] is not None:
                yield prefix + key, cast("dict[str, Any]", inner)
        elif isinstance(inner, dict):
            yield from _leaves(cast("dict[str, Any]", inner), f"{prefix}{key}.")


def terminal_table(results: Mapping[str, Any]) -> Table:
    """One row for each metric: value, 95 % interval, chance, baselines, target."""
    table = Table(title="Held-out clips, in percent unless stated otherwise", title_justify="left", pad_edge=False)
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", style="bold", no_wrap=True)
    table.add_column("95 %", justify="right", style="dim", no_wrap=True)
    table.add_column("chance", justify="right", no_wrap=True)
    table.add_column("baselines (95 % interval of the gain)")
    table.add_column("target", justify="right", no_wrap=True)
    for title, metrics in groupby(read_metrics(results), key=lambda metric: metric.title):
        table.add_section()
        table.add_row(f"[bold]{escape(title)}[/]")
        for metric in metrics:
            baselines = [
                f"{name} {metric.show(one.value)}" + (" ({:+.1f} to {:+.1f})".format(*one.gain) if one.gain else "")
                for name, one in metric.baselines.items()
            ]
            sign = {True: "[green]met[/] ", False: "[red]not met[/] ", None: ""}[metric.met]
            table.add_row(
                "  " + escape(metric.label),
                metric.show(metric.value),
                " to ".join(metric.show(end) for end in metric.interval or ()),
                metric.show(metric.chance),
                escape(", ".join(baselines)),
                sign + escape(metric.show(metric.target)),
            )
    return table
