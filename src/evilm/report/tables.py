"""A table of the paper with the results of our own runs: the paper's values, ours, and the data they are from."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from evilm import config, metrics
from evilm.report import paper
from evilm.training import checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from evilm.report.evaluations import Evaluation, Provenance
    from evilm.report.paper import Column, Row, Table, Value

WORDS = 30  # word pieces of the text for which a model's operations are counted


@dataclass(frozen=True, slots=True)
class Cell:
    """A value of ours, with its data and rule as ``note``."""

    value: Value
    note: str = ""
    evaluation: Evaluation | None = None  # the first of several seeds; None for a property of the model
    interval: tuple[float, float] | None = None  # 95 % interval of the first metric over seeds


@dataclass(slots=True)
class Line:
    """A row of ours."""

    label: str
    method: str | None  # the paper's row that it belongs to; None if the paper has no such row
    model: Provenance | None = None
    cells: dict[str, Cell] = field(default_factory=lambda: {})  # by column key
    found: dict[str, list[Evaluation]] = field(default_factory=lambda: {})  # of each cell, one for each seed


@dataclass(frozen=True, slots=True)
class FilledTable:
    """A table of the paper, our rows, and why evaluations were not used (one line each)."""

    table: Table
    lines: list[Line]
    unused: list[str]


def fill(number: int, evaluations: Sequence[Evaluation], unusable: Sequence[str] = ()) -> FilledTable:
    """Put our evaluations into a table of the paper.

    Args:
        number: of the table.
        evaluations: those at hand.
        unusable: lines about others that could not be read.

    Raises:
        ConfigError: the paper has no such table.
    """
    table = paper.table(number)
    lines: dict[tuple[str, str | None], Line] = {}
    unused = list(unusable)
    # The test split comes first, so that it fills the cell.
    for evaluation in sorted(evaluations, key=lambda each: (each.split != "test", str(each.file))):
        wanted = (evaluation.task, evaluation.data["reader"])
        key, column = next(((k, c) for k, c in table.columns.items() if (c.task, c.reader) == wanted), (None, None))
        if key is None or column is None:
            continue
        if why := _excluded(table, evaluation):
            unused.append(f"{evaluation.file}: {why}")
            continue
        model = evaluation.model
        method = next((row.method for row in table.rows if row.ours and _matches(row, model)), None)
        line = lines.setdefault(_place(lines, model, key, method), Line(_label(model), method, model))
        same = line.found.setdefault(key, [])
        if same and (evaluation.conditions != same[0].conditions or model.seeds in {e.model.seeds for e in same}):
            unused.append(f"{evaluation.file}: {column.name} of {line.label} already has a value")
        else:
            same.append(evaluation)
    models: list[Provenance] = []
    for line in lines.values():
        line.cells = {key: _cell(found, table.columns[key]) for key, found in line.found.items()}
        seeds = {evaluation.model.seeds: evaluation.model for found in line.found.values() for evaluation in found}
        if len(seeds) > 1:
            line.label += f", seeds {', '.join(sorted(seeds))}"
        models += seeds.values()
        line.cells |= dict(_model_cells(table, list(seeds.values()), evaluations))
    return FilledTable(table, [*lines.values(), *_tokenizer_lines(table, models, evaluations)], unused)


def _place(
    lines: Mapping[tuple[str, str | None], Line], model: Provenance, key: str, method: str | None
) -> tuple[str, str | None]:
    """The row of a model: that of its pre-training with any seed; without one, that of its recipe with any seed."""
    if model.pretraining is not None:
        return model.pretraining.family, method
    for place, line in lines.items():
        if place[1] == method and any(one.model.family == model.family for one in line.found.get(key, ())):
            return place
    return _label(model), method


def _excluded(table: Table, evaluation: Evaluation) -> str | None:
    """Why an evaluation does not belong into a table; None if it does."""
    if evaluation.control:
        return f"a control experiment: {evaluation.control}"
    if evaluation.zero_shot != table.zero_shot:
        return "zero-shot: see Table 4" if evaluation.zero_shot else "fine-tuned, and Table 4 is zero-shot"
    model, own = evaluation.model, [row for row in table.rows if row.ours]
    if all(row.mvm is row.objectives is row.tokenizer is None for row in own):
        return None
    if model.objectives is None:
        return f"its pre-training is unknown: {', '.join(model.all_missing)} does not exist"
    if model.pretraining is None and all(row.objectives is None for row in own):
        return "not pre-trained: only Table 5 has such a row"
    if any(row.tokenizer for row in own) and _tokenizer(model) is None:
        return "the video tokenizer of its pre-training does not exist any more"
    return None


def _matches(row: Row, model: Provenance) -> bool:
    """Whether a row of the paper's own is of a model with these objectives and this tokenizer."""
    if row.objectives is not None:
        return row.objectives == model.objectives
    if row.tokenizer is not None:
        return row.tokenizer == _tokenizer(model)
    return row.mvm is None or row.mvm == ("mvm" in (model.objectives or ()))


def _tokenizer(model: Provenance) -> str | None:
    """The row of Table 6: a tokenizer's kind, or ``none`` without MVM; None if the tokenizer is missing."""
    pretraining = model.pretraining
    if pretraining is None or not pretraining.settings.get("mvm_weight"):
        return "none"
    return None if pretraining.tokenizer is None else pretraining.tokenizer.tokenizer_kind


def _label(model: Provenance) -> str:
    """The pre-trained run behind a model, and its objectives."""
    pretraining = model.pretraining
    if pretraining is None:
        return f"{model.run.parent.name}: " + ("pre-training missing" if model.all_missing else "no pre-training")
    objectives = " + ".join(name.upper() for name in sorted(model.objectives or ()))
    contrast = " + contrastive (not in the paper)" if pretraining.settings.get("contrastive_weight") else ""
    return f"{pretraining.name}: {objectives}{contrast}"


def _cell(found: Sequence[Evaluation], column: Column) -> Cell:
    """The mean of evaluations that differ in their seeds, or the value of one."""
    first, metrics_of = found[0], [[one.metrics[name] for name in column.metrics] for one in found]
    values = tuple(round(statistics.fmean(each), 1) for each in zip(*metrics_of, strict=True))
    note, over_seeds = first.source, None
    if column.samples is not None and first.samples != column.samples:
        note += f": not the published test split, which has {column.samples:,}"
    note += f"; {first.rule}"
    if len(found) > 1:
        over_seeds = metrics.interval_of_seeds([each[0] for each in metrics_of])
        note += f"; mean of seeds {', '.join(one.model.seeds for one in found)}"
    if interval := over_seeds or first.interval:
        note += "; 95 % interval of {} {}{:.1f} to {:.1f}".format(
            column.metrics[0], "over seeds " if over_seeds else "", *interval
        )
    return Cell(values[0] if len(values) == 1 else values, note, first, over_seeds)


def _model_cells(
    table: Table, models: Sequence[Provenance], evaluations: Iterable[Evaluation]
) -> Iterator[tuple[str, Cell]]:
    """Values of the columns that describe the model, from runs that differ in their seeds."""
    model, evaluations = models[0], list(evaluations)
    pretraining = model.pretraining
    if "pretraining" in table.columns and pretraining is not None:
        yield "pretraining", Cell(f"{pretraining.data['reader']} of {pretraining.data['annotations']}")
    if "frames" in table.columns and model.model is not None:
        yield "frames", Cell(int(model.model["num_frames"]))
    if "parameters" in table.columns and model.model is not None:
        parameters, flops, counted = model_cost(model.checkpoint)
        yield "parameters", Cell(parameters, counted)
        yield "flops", Cell(flops, f"{counted}; 2 x MACs")
    if "voc_rate" in table.columns:
        tokenizers = {
            tokenizer.run.resolve(): tokenizer
            for one in models
            if one.pretraining is not None and (tokenizer := one.pretraining.tokenizer) is not None
        }
        rates = [cell for each in tokenizers.values() for _, cell in _voc_rate(each, evaluations)]
        if rates:
            mean = statistics.fmean(float(str(cell.value)) for cell in rates)
            more = f"; mean of {len(rates)} tokenizers" if len(rates) > 1 else ""
            yield "voc_rate", Cell(round(mean, 1), rates[0].note + more, rates[0].evaluation)


@cache
def model_cost(folder: Path) -> tuple[float, float, str]:
    """Parameters (millions) and operations (1e9 FLOP) of a checkpoint without heads, and for which clip and text."""
    from evilm.data.vocabulary import Vocabulary
    from evilm.model.presets import ModelConfig
    from evilm.report.cost import cost_of_shape

    shape = config.check(ModelConfig, checkpoint.read_json(folder / "config.json")["model"], f"{folder}/config.json")
    vocabulary = Vocabulary.load(folder / "vocabulary.json").size
    frames, size, words = shape.num_frames, shape.image_size, min(WORDS, shape.max_text_len)
    cost = cost_of_shape(folder.name, shape, frames, size, words, vocabulary)
    counted = f"{frames} frames of {size}x{size} and {words} words, without heads"
    return round(cost.parameters / 1e6, 2), round(cost.flops / 1e9, 2), counted


def _voc_rate(tokenizer: Provenance, evaluations: Iterable[Evaluation]) -> Iterator[tuple[str, Cell]]:
    """VOC. RATE from an evaluation of the tokenizer, or else from the end of its training."""
    for evaluation in evaluations:
        if evaluation.model.run.resolve() == tokenizer.run.resolve() and "voc_rate" in evaluation.metrics:
            yield "voc_rate", Cell(round(evaluation.metrics["voc_rate"], 1), evaluation.source, evaluation)
            return
    if "voc_rate" in tokenizer.validation:
        note = f"validation split, at the end of the training of {tokenizer.run}"
        yield "voc_rate", Cell(round(tokenizer.validation["voc_rate"], 1), note)


def _tokenizer_lines(table: Table, models: Sequence[Provenance], evaluations: Iterable[Evaluation]) -> Iterator[Line]:
    """Rows of Table 6 for evaluated tokenizers with which none of ``models`` was pre-trained."""
    if "voc_rate" not in table.columns:
        return
    used = (model.pretraining.tokenizer for model in models if model.pretraining is not None)
    seen = {tokenizer.run.resolve() for tokenizer in used if tokenizer is not None}
    methods = {row.tokenizer: row.method for row in table.rows if row.tokenizer}
    for evaluation in evaluations:
        model, kind = evaluation.model, evaluation.model.tokenizer_kind
        if kind in methods and model.run.resolve() not in seen and not evaluation.control:
            seen.add(model.run.resolve())
            cells = dict(_voc_rate(model, [evaluation]))
            yield Line(f"{model.name}, no model pre-trained with it", methods[kind], model, cells)


def as_json(filled: FilledTable) -> dict[str, Any]:
    """The table as plain JSON values: the paper's, and ours with their evaluations."""

    def cell(own: Cell) -> dict[str, Any]:
        evaluation = None if own.evaluation is None else own.evaluation.model_dump(mode="json", exclude={"model"})
        return {"value": own.value, "note": own.note, "evaluation": evaluation, "interval_of_seeds": own.interval}

    ours = [
        {"label": line.label, "method": line.method, "cells": {key: cell(own) for key, own in line.cells.items()}}
        for line in filled.lines
    ]
    paper_table = filled.table.model_dump(mode="json")
    return {"source": paper.source(), "table": paper_table, "ours": ours, "unused": filled.unused}


def rows_of(filled: FilledTable) -> tuple[list[list[str]], list[str]]:
    """The rows as text, each of the paper with ours below, the header first; and the sources that they number."""
    table, notes = filled.table, list[str]()

    def own(line: Line) -> list[str]:
        cells: list[str] = []
        for key in table.columns:
            cell = line.cells.get(key)
            if cell is not None and cell.note and cell.note not in notes:
                notes.append(cell.note)
            mark = f" [{notes.index(cell.note) + 1}]" if cell is not None and cell.note else ""
            over_seeds = " ({:.1f} to {:.1f})".format(*cell.interval) if cell is not None and cell.interval else ""
            cells.append("" if cell is None else _shown(cell.value) + over_seeds + mark)
        return [f"ours: {line.label}", *cells]

    rows = [["method", *(column.name for column in table.columns.values())]]
    for row in table.rows:
        cells = {key: _shown(value) + "*" * (key in row.starred) for key, value in row.values.items()}
        rows.append([row.method, *(cells.get(key, "") for key in table.columns)])
        if row.ours:
            lines = [line for line in filled.lines if line.method == row.method]
            rows += [own(line) for line in lines or [Line("none", row.method)]]
    rows += [own(line) for line in filled.lines if line.method is None]
    return rows, notes


def as_markdown(filled: FilledTable) -> str:
    """The table as Markdown: the rows of ``rows_of``, and the numbered sources."""
    table, (rows, notes) = filled.table, rows_of(filled)
    return document(
        f"Table {table.number}: {table.title}",
        f"Published values: {paper.source()}. `*`: reproduced by its authors from published weights.",
        rows[0],
        rows[1:],
        {
            "Sources of our values": [f"[{number}] {note}" for number, note in enumerate(notes, 1)],
            "Contradictions in the paper": table.contradictions,
            "Evaluations that do not belong here": filled.unused,
        },
    )


def document(
    title: str, lead: str, header: Sequence[str], rows: Iterable[Sequence[str]], lists: Mapping[str, Sequence[str]]
) -> str:
    """Markdown with a heading, a sentence, a table and lists; empty lists are left out."""
    cells = ([text.replace("|", "\\|") for text in row] for row in (header, ["---"] * len(header), *rows))
    lines = [f"## {title}", "", lead, "", *(f"| {' | '.join(row)} |" for row in cells)]
    for name, entries in lists.items():
        if entries:
            lines += ["", f"{name}:", "", *(f"* {entry}" for entry in entries)]
    return "\n".join(lines)


def _shown(value: Value) -> str:
    """A value as text: 39.3, or 27.0 / 51.7 / 64.4."""
    if isinstance(value, tuple):
        return " / ".join(_shown(part) for part in value)
    return f"{value:.1f}" if isinstance(value, float) else str(value)
