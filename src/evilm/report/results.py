"""The metrics in ``results.json`` of a demo run, for its page and for the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

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


@dataclass(frozen=True, slots=True)
class Metric:
    """One number and what it is compared with.

    Attributes:
        group, name: keys of ``results.json``, such as ``retrieval`` and ``R@1``; nested keys are joined by dots.
        title: title of the group.
        value: in percent, except for ranks and perplexity.
        chance: the value of random answers; None where it is not defined.
        baselines: values of the models or inputs that this one is compared with, by name.
        gains: paired bootstrap 95 % interval of value minus baseline, by baseline.
        interval: bootstrap 95 % interval of the value, or None.
        target: a number, a condition in words, or None.
        met: whether the target is met; None where there is no target. ``demo.results`` holds the rule.
    """

    group: str
    title: str
    name: str
    value: float
    chance: float | None
    baselines: Mapping[str, float]
    gains: Mapping[str, tuple[float, float]]
    interval: tuple[float, float] | None
    target: float | str | None
    met: bool | None

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
    def beside(self) -> list[str]:
        """Chance and baselines in words."""
        chance = [] if self.chance is None else [f"chance {self.chance:.1f}"]
        return chance + [f"{name} {value:.1f}" for name, value in self.baselines.items()]

    def compare(self, baseline: str) -> str:
        """A baseline's name and value, and the interval of the gain over it: ``shuffled 40.1 (+11.2 to +20.4)``."""
        gain = " to ".join(f"{end:+.1f}" for end in self.gains.get(baseline, ()))
        return f"{baseline} {self.show(self.baselines[baseline])}" + (f" ({gain})" if gain else "")


def read_metrics(results: Mapping[str, Any]) -> list[Metric]:
    """Every metric of a ``results.json`` in its order; nested ones get dotted names."""
    return [
        _metric(group, str(as_dict(table).get("title") or group.replace("_", " ").capitalize()), name, leaf)
        for group, table in results.items()
        if group != "seconds"
        for name, leaf in _leaves(as_dict(table))
    ]


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables within ``table`` that have a number as ``value``, with their dotted names."""
    for key, part in table.items():
        inner = as_dict(part)
        if as_number(inner.get("value")) is not None:
            yield prefix + key, inner
        else:
            yield from _leaves(inner, f"{prefix}{key}.")


def _metric(group: str, title: str, name: str, leaf: Mapping[str, Any]) -> Metric:
    baselines = {key: as_dict(one) or {"value": one} for key, one in as_dict(leaf.get("baselines")).items()}
    values = {key: as_number(one.get("value")) for key, one in baselines.items()}
    gains = {key: _interval(one.get("gain")) for key, one in baselines.items()}
    target, met = leaf.get("target"), leaf.get("met")
    return Metric(
        group=group,
        title=title,
        name=name,
        value=float(leaf["value"]),
        chance=as_number(leaf.get("chance")),
        baselines={key: value for key, value in values.items() if value is not None},
        gains={key: ends for key, ends in gains.items() if ends is not None},
        interval=_interval(leaf.get("interval")),
        target=target if isinstance(target, str) else as_number(target),
        met=met if isinstance(met, bool) else None,
    )


def _interval(value: object) -> tuple[float, float] | None:
    ends = [as_number(end) for end in as_list(value)]
    return (ends[0], ends[1]) if len(ends) == 2 and ends[0] is not None and ends[1] is not None else None


def as_dict(value: object) -> dict[str, Any]:
    """A JSON object; an empty one for anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """A JSON array; an empty one for anything else."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def as_number(value: object) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def terminal_table(results: Mapping[str, Any]) -> Table:
    """One row for each metric: value, 95 % interval, chance, baselines, target."""
    table = Table(title="Held-out clips, in percent unless stated otherwise", title_justify="left", pad_edge=False)
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", style="bold", no_wrap=True)
    table.add_column("95 %", justify="right", style="dim", no_wrap=True)
    table.add_column("chance", justify="right", no_wrap=True)
    table.add_column("baselines")
    table.add_column("target", justify="right", no_wrap=True)
    for title, metrics in groupby(read_metrics(results), key=lambda metric: metric.title):
        table.add_section()
        table.add_row(f"[bold]{escape(title)}[/]")
        for metric in metrics:
            sign = {True: "[green]met[/] ", False: "[red]not met[/] ", None: ""}[metric.met]
            table.add_row(
                "  " + escape(metric.label),
                metric.show(metric.value),
                " to ".join(metric.show(end) for end in metric.interval or ()),
                metric.show(metric.chance),
                escape(", ".join(metric.compare(name) for name in metric.baselines)),
                sign + escape(metric.show(metric.target)),
            )
    return table
