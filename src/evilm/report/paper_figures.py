"""Figures 1 and 2 of the paper with our own runs in them, as numbers and as a picture."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evilm.errors import OutputError
from evilm.report import paper_tables, published

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from evilm.report.measured import Evaluation, Origin
    from evilm.report.published import Figure

MARKERS = "osD^vP"


@dataclass(frozen=True, slots=True)
class Point:
    """One mark of a figure.

    Attributes:
        method: whose.
        paper: whether the paper printed it.
        series: the benchmark.
        parameters: millions.
        flops: 1e9, as the paper counts or twice the MACs; None where the figure does not need it.
        value: percent: accuracy, R@10, or the gain of MVM.
        note: the data and rule of ours.
    """

    method: str
    paper: bool
    series: str
    parameters: float
    flops: float | None
    value: float
    note: str = ""


def points(number: int, evaluations: Sequence[Evaluation]) -> tuple[Figure, list[Point], list[str]]:
    """A figure, the marks in it, and why evaluations that were given have none.

    Raises:
        ConfigError: the paper has no such figure.
    """
    figure = published.figure(number)
    if number == 2:
        found, said = _gains(evaluations)
        return figure, found, said
    paper = [point for method in figure.methods for point in _published(figure, method)]
    ours: list[Point] = []
    said: list[str] = []
    for which in sorted({table for table, _ in figure.columns}):
        compared = paper_tables.compare(which, evaluations, costs=False)
        said += compared.left_out
        keys = [key for table, key in figure.columns if table == which]
        for line in compared.lines:
            ours += _ours(line, which, keys)
    return figure, paper + ours, said


def _published(figure: Figure, method: str) -> Iterator[Point]:
    """The paper's marks: accuracies of Table 1 and R@10 of Table 2 against the size and compute of Table 1."""
    tables = {number: published.table(number) for number, _ in figure.columns}
    about = next(row for row in tables[1].rows if row.method == method).values
    for number, key in figure.columns:
        row = next(row for row in tables[number].rows if row.method == method)
        if key in row.values:
            value = row.values[key]
            last = value[-1] if isinstance(value, tuple) else value
            name = _series(number, key)
            yield Point(method, True, name, float(about["parameters"]), float(about["flops"]), float(last))  # pyright: ignore[reportArgumentType], numbers in paper.toml


def _ours(line: paper_tables.Line, number: int, keys: Sequence[str]) -> Iterator[Point]:
    for key in keys:
        cell = line.cells.get(key)
        if cell is None or cell.evaluation is None:
            continue
        value = cell.value[-1] if isinstance(cell.value, tuple) else cell.value
        size = _size(cell.evaluation.origin)
        if isinstance(value, float) and size is not None:
            yield Point(line.label, False, _series(number, key), *size, value, cell.note)


def _series(number: int, key: str) -> str:
    column = published.table(number).column(key)
    return column.name + (" R@10" if number == 2 else "")


def _size(origin: Origin) -> tuple[float, float] | None:
    """Parameters (millions) and twice the MACs (1e9) of a model."""
    if origin.model is None:
        return None
    counted = dict(paper_tables.costs_of(origin))
    return float(counted["parameters"].value), float(counted["flops"].value)  # pyright: ignore[reportArgumentType], costs_of gives numbers


def _gains(evaluations: Sequence[Evaluation]) -> tuple[list[Point], list[str]]:
    """What MVM adds to multiple choice, a model shape and a data set at a time: pairs that differ in MVM alone."""
    pairs: dict[tuple[str, ...], dict[bool, Evaluation]] = {}
    said: list[str] = []
    for evaluation in evaluations:
        origin = evaluation.origin
        if evaluation.task != "multiple_choice" or evaluation.shuffled or evaluation.blind:
            continue
        if origin.objectives is None or origin.pretraining is None:
            said.append(f"{evaluation.file}: not pre-trained, or its pre-training is not there any more")
            continue
        others = "+".join(sorted(origin.objectives - {"mvm"}))
        key = (str(origin.model), evaluation.about, str(evaluation.zero_shot), others)
        sides, side = pairs.setdefault(key, {}), "mvm" in origin.objectives
        if side in sides:
            said.append(f"{evaluation.file}: a run of this size, data and objectives is there already")
        else:
            sides[side] = evaluation
    found: list[Point] = []
    for sides in pairs.values():
        if len(sides) < 2:
            missing = "with" if False in sides else "without"
            said += [f"{each.file}: there is no run {missing} MVM to compare it with" for each in sides.values()]
            continue
        with_it, without = sides[True], sides[False]
        size = _size(with_it.origin)
        if size is not None:
            gain = with_it.metrics["accuracy"] - without.metrics["accuracy"]
            note = f"{with_it.metrics['accuracy']:.1f} against {without.metrics['accuracy']:.1f}; {with_it.about}"
            name = f"{with_it.origin.folder.name} against {without.origin.folder.name}"
            found.append(Point(name, False, "gain of MVM", size[0], None, round(gain, 1), note))
    return found, said


def as_json(figure: Figure, found: Sequence[Point], left_out: Sequence[str]) -> dict[str, Any]:
    """The figure's numbers as plain JSON values."""
    names = ("method", "paper", "series", "parameters", "flops", "value", "note")
    return {
        "figure": figure.number,
        "title": figure.title,
        "source": published.source(),
        "points": [{name: getattr(point, name) for name in names} for point in found],
        "contradictions": list(figure.contradictions),
        "left_out": list(left_out),
    }


def as_markdown(figure: Figure, found: Sequence[Point], left_out: Sequence[str]) -> str:
    """The figure's numbers as a table."""
    lines = [
        f"## Figure {figure.number}: {figure.title}",
        "",
        f"Published values: {published.source()}"
        + ("." if figure.methods else ": none, the figure is only drawn and its numbers are printed nowhere."),
        "",
        "| method | series | parameters (M) | FLOPs (G) | value | data |",
        "|---|---|---|---|---|---|",
    ]
    for point in found:
        flops = "" if point.flops is None else f"{point.flops:g}"
        name = point.method if point.paper else f"ours: {point.method}"
        cells = (name, point.series, f"{point.parameters:g}", flops, f"{point.value:.1f}", point.note or "the paper's")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if not any(not point.paper for point in found):
        lines.append("| ours: none | | | | | |")
    for title, entries in (
        ("What does not agree within the paper", figure.contradictions),
        ("Given, and not in this figure", left_out),
    ):
        if entries:
            lines += ["", f"{title}:", "", *(f"* {entry}" for entry in entries)]
    return "\n".join(lines)


def draw(figure: Figure, found: Sequence[Point], out: Path) -> None:
    """The figure as a picture; filled marks are the paper's, open ones ours.

    Raises:
        OutputError: not a kind of picture that can be drawn, or it cannot be written.
    """
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(7, 4.5), layout="constrained")
    axes = canvas.subplots()
    for i, series in enumerate(dict.fromkeys(point.series for point in found)):
        for paper in (True, False):
            some = [point for point in found if point.series == series and point.paper == paper]
            if some:
                axes.scatter(
                    [point.parameters for point in some], [point.value for point in some], color=f"C{i}",
                    marker=MARKERS[i % len(MARKERS)], facecolors=f"C{i}" if paper else "none",
                    label=f"{series}, {'the paper' if paper else 'ours'}",
                )  # fmt: skip
    axes.set(xlabel="parameters (millions)", ylabel="percent", title=figure.title)
    if found:
        axes.set_xscale("log")
        axes.legend(fontsize="small")
    kind = out.suffix.lstrip(".").lower()
    if kind not in canvas.canvas.get_supported_filetypes():
        raise OutputError(f"{out}: a figure ends in .png, .svg or .pdf")
    temporary = out.with_name(out.name + ".tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(temporary, format=kind)
        os.replace(temporary, out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from None
