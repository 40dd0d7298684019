"""Figures as inline SVG, drawn from numbers alone; colours come from the page's style sheet.

Horizontal places are percentages where a figure is as wide as its column, so that nothing is stretched on a phone.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from evilm.report.markup import Html, tag

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evilm.report.evidence import Curve
    from evilm.report.results import Metric

_MOST_POINTS = 160  # of a curve; more than a screen shows only makes the page heavier


def dots(metric: Metric) -> Html:
    """A track from 0 to 100 %: the value with its interval, chance, baselines and the target."""
    low_high = metric.interval
    marks = [tag("line", class_="axis", x1="0%", x2="100%", y1="50%", y2="50%")]
    if isinstance(metric.target, float):
        down = tag("path", tag("title", f"target {metric.target:.1f}"), class_="target", d="M-5 0 L5 0 L0 7 Z")
        marks.append(tag("svg", down, x=_percent(metric.target), y=0, overflow="visible"))
    if metric.chance is not None:
        at = _percent(metric.chance)
        marks.append(
            tag("line", tag("title", f"chance {metric.chance:.1f}"), class_="chance", x1=at, x2=at, y1=7, y2=21)
        )
    for name, value in metric.baselines.items():
        title = tag("title", f"{name} {value:.1f}")
        marks.append(tag("circle", title, class_="baseline", cx=_percent(value), cy="50%", r=4.5))
    if low_high is not None:
        marks.append(
            tag("line", class_="interval", x1=_percent(low_high[0]), x2=_percent(low_high[1]), y1="50%", y2="50%")
        )
    title = tag("title", f"this model {metric.value:.1f}")
    marks.append(tag("circle", title, class_="value", cx=_percent(metric.value), cy="50%", r=6.5))
    return tag("svg", *marks, class_="track", width="100%", height=28, role="img", aria_label=_spoken(metric))


def _spoken(metric: Metric) -> str:
    others = [f"{name} {value:.1f}" for name, value in metric.baselines.items()]
    chance = [] if metric.chance is None else [f"chance {metric.chance:.1f}"]
    return ", ".join([f"{metric.label} {metric.value:.1f}", *chance, *others])


def bar(value: float, class_: str, chance: float | None = None) -> Html:
    """A bar from 0 to 100 %, with a tick at chance."""
    tick = None
    if chance is not None:
        tick = tag("line", class_="chance", x1=_percent(chance), x2=_percent(chance), y1=0, y2=16)
    rail = tag("rect", class_="rail", x=0, y=0, width="100%", height=16, rx=2)
    filled = tag("rect", class_=class_, x=0, y=0, width=_percent(value), height=16, rx=2)
    return tag("svg", rail, filled, tick, class_="bar", width="100%", height=16, aria_hidden="true")


def parts(shares: Sequence[tuple[str, float]], whole: float) -> Html:
    """Stretches of a whole side by side, each named when pointed at."""
    blocks: list[Html] = []
    begin = 0.0
    for place, (name, value) in enumerate(shares):
        wide = 100 * value / whole if whole > 0 else 0.0
        box = tag("rect", tag("title", name), class_=f"part p{place % 4}", x=f"{begin:.3f}%", y=0, width=f"{wide:.3f}%",
                  height=22)  # fmt: skip
        blocks.append(box)
        begin += wide
    return tag("svg", *blocks, class_="parts", width="100%", height=22, aria_hidden="true")


def curves(lines: Mapping[str, Curve], what: str) -> Html:
    """Losses over steps, each line named at its end; ``loss``, the total, is drawn last and strongest."""
    width, height, left, right, top, bottom = 306, 190, 28, 100, 12, 24
    if len(lines) == 2 and "loss" in lines:  # a total of one part says nothing that the part does not
        lines = {"loss": lines["loss"]}
    last_step = max(curve[-1][0] for curve in lines.values())
    first_step = min(curve[0][0] for curve in lines.values())
    ceiling = _ceiling([value for curve in lines.values() for _, value in curve])

    def x(step: float) -> float:
        return left + (width - left - right) * (step - first_step) / max(1e-9, last_step - first_step)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - min(value, ceiling) / ceiling)

    drawn: list[Html] = []
    for tick in (0.0, ceiling / 2, ceiling):
        drawn.append(tag("line", class_="grid", x1=left, x2=width - right, y1=y(tick), y2=y(tick)))
        drawn.append(tag("text", f"{tick:g}", class_="tick end", x=left - 6, y=y(tick) + 4))
    drawn.append(tag("text", f"{last_step:g} steps", class_="tick end", x=width - right, y=height - 6))
    order = [name for name in lines if name != "loss"] + (["loss"] if "loss" in lines else [])
    places = _apart({name: y(lines[name][-1][1]) for name in order}, 13, top + 4, height - bottom)
    for number, name in enumerate(order):
        kind = "total" if name == "loss" else f"s{number % 4}"
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in _thinned(lines[name]))
        drawn.append(tag("polyline", points=points, class_=f"curve {kind}"))
        label = f"{name if name != 'loss' else 'total'} {lines[name][-1][1]:.2f}"
        drawn.append(tag("text", label, class_=f"name {kind}", x=width - right + 6, y=places[name] + 4))
    return tag("svg", *drawn, class_="figure", viewBox=f"0 0 {width} {height}", role="img", aria_label=what)


def confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Html:
    """Rows are what happened, columns what was said; shade is the share of the row."""
    cell, left, top = 34, 138, 118
    size = cell * len(classes)
    drawn: list[Html] = []
    for row, name in enumerate(classes):
        middle = top + cell * (row + 0.5)
        drawn.append(tag("text", name, class_="axis-name end", x=left - 8, y=middle + 4))
        slanted = f"translate({left + cell * (row + 0.5) + 4} {top - 8}) rotate(-48)"
        drawn.append(tag("text", name, class_="axis-name", transform=slanted))
        total = sum(counts[row])
        for column, count in enumerate(counts[row]):
            share = count / total if total else 0.0
            across = left + cell * column
            title = tag("title", f"{name}, taken for {classes[column]}: {count} of {total}")
            box = tag("rect", title, class_="cell", x=across, y=top + cell * row, width=cell - 2, height=cell - 2, rx=3,
                      fill_opacity=0.05 + 0.95 * share)  # fmt: skip
            drawn.append(box)
            if count:
                strong = "count strong" if share > 0.45 else "count"
                drawn.append(tag("text", count, class_=strong, x=across + cell / 2 - 1, y=middle + 3))
    box = f"0 0 {left + size + 40} {top + size + 4}"
    return tag("svg", *drawn, class_="figure wide", viewBox=box, role="img", aria_label="confusion of actions")


def usage(counts: Sequence[int]) -> Html:
    """How often each code occurs, most frequent first, on a logarithmic scale."""
    height, top, bottom = 240, 22, 26
    ordered = sorted(counts, reverse=True)
    used = sum(count > 0 for count in ordered)
    decades = max(1, math.ceil(math.log10(max(1, *ordered) + 1)))

    def y(count: float) -> float:
        return top + (height - top - bottom) * (1 - math.log10(count + 1) / decades)

    steps = [f"V{y(count):.1f} H{place}" for place, count in enumerate(ordered, 1)]
    # Only the area is stretched to the width of the page; lines and words are not.
    area = tag("path", class_="area", d=f"M0 {y(0):.1f} {' '.join(steps)} V{y(0):.1f} Z")
    stretched = {"viewBox": f"0 0 {len(ordered)} {height}", "preserveAspectRatio": "none"}
    drawn: list[Html] = []
    for power in range(decades + 1):
        level = y(10**power - 1)
        drawn.append(tag("line", class_="grid", x1="0%", x2="100%", y1=level, y2=level))
        drawn.append(tag("text", "0" if power == 0 else f"{10**power:,}", class_="tick end", x="100%", y=level - 5))
    drawn.append(tag("svg", area, width="100%", height=height, **stretched))
    even, edge = y(sum(ordered) / len(ordered)), _percent(100 * used / len(ordered))
    drawn.append(tag("line", class_="even", x1="0%", x2="100%", y1=even, y2=even))
    drawn.append(tag("line", class_="edge", x1=edge, x2=edge, y1=top - 16, y2=y(0)))
    side, gap = ("end", -7) if 2 * used > len(ordered) else ("", 7)
    drawn.append(tag("text", "if all were used alike", class_=f"tick {side}", x=edge, y=even - 5, dx=gap))
    said = f"{used} of {len(ordered)} codes occur"
    drawn.append(tag("text", said, class_=f"edge-name {side}", x=edge, y=top - 6, dx=gap))
    drawn.append(tag("text", "codes, most frequent first", class_="tick", x=0, y=height - 8))
    return tag("svg", *drawn, class_="level", width="100%", height=height, role="img", aria_label=said)


def _percent(value: float) -> str:
    return f"{min(100.0, max(0.0, value)):.2f}%"


def _ceiling(values: Sequence[float]) -> float:
    """A round number above the values; above all but the first few, where those tower over the rest."""
    ordered = sorted(values)
    highest = ordered[min(len(ordered) - 1, int(0.985 * len(ordered)))]
    if highest <= 0:
        return 1.0
    unit = 10 ** math.floor(math.log10(highest))
    return next(step * unit for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * unit >= highest)


def _thinned(curve: Curve) -> Curve:
    """At most so many points, each the mean of its neighbours; first and last stay."""
    if len(curve) <= _MOST_POINTS:
        return curve
    group = math.ceil(len(curve) / _MOST_POINTS)
    chunks = [curve[i : i + group] for i in range(0, len(curve), group)]
    means = [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in chunks]
    return [curve[0], *means[1:-1], curve[-1]]


def _apart(places: Mapping[str, float], gap: float, top: float, bottom: float) -> dict[str, float]:
    """Labels moved down, then up again, until no two overlap."""
    order = sorted(places, key=lambda name: places[name])
    found = {name: max(top, places[name]) for name in order}
    for above, below in pairwise(order):
        found[below] = max(found[below], found[above] + gap)
    limit = bottom
    for name in reversed(order):
        found[name] = min(found[name], limit)
        limit = found[name] - gap
    return found


def key(metrics: Sequence[Metric]) -> Html:
    """What the marks on the tracks of ``dots`` mean, those that occur."""
    whiskers = any(metric.interval for metric in metrics)
    line = tag("line", class_="interval", x1=-11, x2=11, y1=0, y2=0) if whiskers else None
    marks = [
        _mark(
            "this model, with its 95 % interval" if whiskers else "this model", line, tag("circle", class_="value", r=6)
        )
    ]
    if any(metric.baselines for metric in metrics):
        marks.append(_mark("baseline", tag("circle", class_="baseline", r=4.5)))
    if any(metric.chance is not None for metric in metrics):
        marks.append(_mark("chance", tag("line", class_="chance", x1=0, x2=0, y1=-7, y2=7)))
    if any(isinstance(metric.target, float) for metric in metrics):
        marks.append(_mark("target", tag("path", class_="target", d="M-5 -4 L5 -4 L0 4 Z")))
    return tag("p", *marks, class_="key")


def _mark(name: str, *drawing: Html | None) -> Html:
    return tag("span", tag("svg", *drawing, class_="mark", width=28, height=18, viewBox="-14 -9 28 18"), name)
