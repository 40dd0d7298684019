"""Figures 1 and 2 of the paper with the results of our own runs, as numbers and as a picture."""

from __future__ import annotations

import io
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from evilm import files, metrics
from evilm.errors import OutputError
from evilm.report import paper, tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from evilm.report.evaluations import Evaluation
    from evilm.report.paper import Figure


@dataclass(frozen=True, slots=True)
class Point:
    """One mark of a figure."""

    method: str
    paper: bool  # whether the paper prints it
    series: str  # the benchmark
    parameters: float  # millions
    flops: float | None  # 1e9; as the paper prints it, 2 x MACs for ours; None where the figure does not show it
    value: float  # accuracy, R@10 or the gain from MVM, in percent
    note: str = ""  # data and rule of our values


@dataclass(frozen=True, slots=True)
class FilledFigure:
    """A figure of the paper, its points with ours, and why evaluations were not used (one line each)."""

    figure: Figure
    points: list[Point]
    unused: list[str]


def fill(number: int, evaluations: Sequence[Evaluation], unusable: Sequence[str] = ()) -> FilledFigure:
    """Put our evaluations into a figure of the paper.

    Raises:
        ConfigError: the paper has no such figure.
    """
    figure = paper.figure(number)
    if not figure.methods:
        return _gains(figure, evaluations, unusable)
    points = [point for method in figure.methods for point in _published(figure, method)]
    unused = list(unusable)
    for which in sorted({table for table, _ in figure.columns}):
        filled = tables.fill(which, evaluations)
        unused += filled.unused
        for line in filled.lines:
            for key in (key for table, key in figure.columns if table == which and key in line.cells):
                cell = line.cells[key]
                value = cell.value[-1] if isinstance(cell.value, tuple) else cell.value
                if isinstance(value, float) and line.model is not None and line.model.model is not None:
                    parameters, flops, _ = tables.model_cost(line.model.checkpoint)
                    points.append(Point(line.label, False, _series(which, key), parameters, flops, value, cell.note))
    return FilledFigure(figure, points, unused)


def _published(figure: Figure, method: str) -> Iterator[Point]:
    """The paper's points of Figure 1: accuracies of Table 1 and R@10 of Table 2 by the sizes of Table 1."""
    rows = {number: {row.method: row.values for row in paper.table(number).rows} for number, _ in figure.columns}
    size = rows[1][method]
    for number, key in figure.columns:
        value = rows[number][method].get(key)
        if value is not None:
            last = value[-1] if isinstance(value, tuple) else value
            parameters, flops, percent = (float(str(each)) for each in (size["parameters"], size["flops"], last))
            yield Point(method, True, _series(number, key), parameters, flops, percent)


def _series(number: int, key: str) -> str:
    column = paper.table(number).columns[key]
    return column.name + (f" {column.metrics[-1]}" if len(column.metrics) > 1 else "")


def _gains(figure: Figure, evaluations: Sequence[Evaluation], unusable: Sequence[str]) -> FilledFigure:
    """The gain from MVM: pairs of runs of one model shape on the same data that differ only in MVM."""
    number, key = figure.columns[0]
    task = paper.table(number).columns[key].task
    pairs: dict[tuple[str, ...], dict[bool, dict[str, Evaluation]]] = {}
    unused = list(unusable)
    for evaluation in evaluations:
        model = evaluation.model
        if evaluation.task != task or evaluation.control:
            continue
        if model.objectives is None or model.pretraining is None:
            unused.append(f"{evaluation.file}: not pre-trained, or its pre-training does not exist any more")
            continue
        others = "+".join(sorted(model.objectives - {"mvm"}))
        pair = pairs.setdefault((str(model.model), evaluation.source, str(evaluation.zero_shot), others), {})
        side = pair.setdefault("mvm" in model.objectives, {})
        if side.setdefault(str(model.seed), evaluation) is not evaluation:
            unused.append(f"{evaluation.file}: a run of this size, data, objectives and seed is already used")
    points: list[Point] = []
    for pair in pairs.values():
        both = sorted(pair.get(True, {}).keys() & pair.get(False, {}).keys())
        for side, runs in pair.items():
            missing = f"there is no run {'without' if side else 'with'} MVM of this seed to compare it with"
            unused += [f"{each.file}: {missing}" for seed, each in runs.items() if seed not in both]
        if not both:
            continue
        with_mvm, without = ([pair[side][seed] for seed in both] for side in (True, False))
        gains = [a.metrics["accuracy"] - b.metrics["accuracy"] for a, b in zip(with_mvm, without, strict=True)]
        parameters, _, _ = tables.model_cost(with_mvm[0].model.checkpoint)
        name = f"{with_mvm[0].model.run.name} against {without[0].model.run.name}"
        means = [statistics.fmean(one.metrics["accuracy"] for one in side) for side in (with_mvm, without)]
        note = "{:.1f} against {:.1f}".format(*means)
        if len(both) > 1:
            low, high = metrics.interval_of_seeds(gains)
            note += f"; seeds {', '.join(both)}, 95 % interval of the gain {low:.1f} to {high:.1f}"
        note += f"; {with_mvm[0].source}"
        points.append(Point(name, False, "gain from MVM", parameters, None, round(statistics.fmean(gains), 1), note))
    return FilledFigure(figure, points, unused)


def as_json(filled: FilledFigure) -> dict[str, Any]:
    """The figure's points as plain JSON values."""
    return {"source": paper.source(), "figure": filled.figure.model_dump(mode="json"),
            "points": [asdict(point) for point in filled.points], "unused": filled.unused}  # fmt: skip


def as_markdown(filled: FilledFigure) -> str:
    """The figure's numbers as a Markdown table."""
    figure = filled.figure
    rows = [
        [
            point.method if point.paper else f"ours: {point.method}",
            point.series,
            f"{point.parameters:g}",
            "" if point.flops is None else f"{point.flops:g}",
            f"{point.value:.1f}",
            point.note or "the paper's",
        ]
        for point in filled.points
    ]
    if all(point.paper for point in filled.points):
        rows.append(["ours: none", *[""] * 5])
    end = "." if figure.methods else ": none, the figure is drawn without numbers and the text prints none."
    return tables.document(
        f"Figure {figure.number}: {figure.title}",
        f"Published values: {paper.source()}{end}",
        ["method", "series", "parameters (M)", "FLOPs (G)", "value", "data"],
        rows,
        {
            "Contradictions in the paper": figure.contradictions,
            "Evaluations that do not belong here": filled.unused,
        },
    )


def draw(filled: FilledFigure, out: Path) -> None:
    """Draw the figure; the paper's points are filled, ours are open.

    Raises:
        OutputError: the suffix is no picture format, or the file cannot be written.
    """
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(7, 4.5), layout="constrained")
    axes = canvas.subplots()
    for i, series in enumerate(dict.fromkeys(point.series for point in filled.points)):
        for is_paper in (True, False):
            points = [point for point in filled.points if point.series == series and point.paper == is_paper]
            if points:
                axes.scatter(
                    [point.parameters for point in points], [point.value for point in points], color=f"C{i}",
                    marker="osD^vP"[i % 6], facecolors=f"C{i}" if is_paper else "none",
                    label=f"{series}, {'paper' if is_paper else 'ours'}",
                )  # fmt: skip
    axes.set(xlabel="parameters (millions)", ylabel="percent", title=filled.figure.title)
    if filled.points:
        axes.set_xscale("log")
        axes.legend(fontsize="small")
    kind = out.suffix.lstrip(".").lower()
    if kind not in canvas.canvas.get_supported_filetypes():
        raise OutputError(f"{out}: unknown picture format; use .png, .svg or .pdf")
    picture = io.BytesIO()
    canvas.savefig(picture, format=kind)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(out, picture.getvalue())
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from None
