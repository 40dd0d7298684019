"""A table of the paper with our own runs in it: its value, ours, and on what data; empty where there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evilm import config
from evilm.report import published

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from evilm.report.measured import Evaluation, Origin
    from evilm.report.published import Cell, Column, Row, Table

WORDS = 30  # word pieces of the text that a model's compute is counted on


@dataclass(frozen=True, slots=True)
class Ours:
    """A cell of ours.

    Attributes:
        value: as the column has it; None where the evaluation lacks a number.
        evaluation: where it is from; None for what is said of the model itself.
        note: what must be read beside it.
    """

    value: Cell
    evaluation: Evaluation | None
    note: str


@dataclass(slots=True)
class Line:
    """A line of ours.

    Attributes:
        label: which model.
        method: the paper's row that it stands beside; None where the paper has no such row.
        cells: by column.
    """

    label: str
    method: str | None
    cells: dict[str, Ours] = field(default_factory=lambda: {})


@dataclass(frozen=True, slots=True)
class Comparison:
    """A table of the paper and our lines in it.

    Attributes:
        table: the paper's.
        lines: ours.
        left_out: why an evaluation that was given stands nowhere, one line each.
    """

    table: Table
    lines: tuple[Line, ...]
    left_out: tuple[str, ...]


def compare(number: int, evaluations: Sequence[Evaluation], *, costs: bool = True) -> Comparison:
    """Put our evaluations where they belong in a table of the paper.

    Args:
        number: of the table.
        evaluations: those at hand.
        costs: whether to count parameters and compute for Table 1 (seconds a model, needs torch).

    Raises:
        ConfigError: the paper has no such table.
    """
    table = published.table(number)
    lines: dict[tuple[str, str | None], Line] = {}
    origins: dict[tuple[str, str | None], Origin] = {}
    left_out: list[str] = []
    # The test split first, so that it has the cell.
    for evaluation in sorted(evaluations, key=lambda each: (each.split != "test", str(each.file))):
        column = next((c for c in table.columns if _fills(evaluation, c)), None)
        if column is None:
            continue
        method, why = _place(table, evaluation)
        if why is not None:
            left_out.append(f"{evaluation.file}: {why}")
            continue
        key = (_label(evaluation.origin), method)
        line = lines.setdefault(key, Line(*key))
        origins.setdefault(key, evaluation.origin)
        if column.key in line.cells:
            left_out.append(f"{evaluation.file}: {column.name} of {line.label} is there already")
            continue
        line.cells[column.key] = _measured(evaluation, column)
    for key, line in lines.items():
        line.cells.update(_of_the_model(table, origins[key], evaluations, costs=costs))
    alone = _tokenizers_alone(table, list(origins.values()), evaluations)
    return Comparison(table, (*lines.values(), *alone), tuple(left_out))


def _fills(evaluation: Evaluation, column: Column) -> bool:
    return (evaluation.task, evaluation.reader) == (column.task, column.reader)


def _place(table: Table, evaluation: Evaluation) -> tuple[str | None, str | None]:
    """The method beside which an evaluation stands, or why it stands nowhere."""
    if evaluation.shuffled or evaluation.blind:
        return None, "a control, not a result: " + ("frames shuffled" if evaluation.shuffled else "without the video")
    if evaluation.zero_shot != table.zero_shot:
        return None, "zero-shot: see Table 4" if evaluation.zero_shot else "tuned, and Table 4 is zero-shot"
    objectives = evaluation.origin.objectives
    told = table.number not in (3, 5, 6)
    if not told and objectives is None:
        return None, f"what it was pre-trained by is lost ({', '.join(evaluation.origin.all_lost)} is not there)"
    if table.number in (3, 6) and evaluation.origin.pretraining is None:
        return None, "not pre-trained: only Table 5 has such a row"
    tokenizer = None
    if table.number == 6:
        tokenizer = _tokenizer(evaluation.origin)
        if tokenizer is None:
            return None, "the video tokenizer of its pre-training is not there any more"
    rows = [row for row in table.rows if row.ours]
    fits = (row for row in rows if told or _is_row(row, objectives or frozenset(), tokenizer))
    return next((row.method for row in fits), None), None


def _is_row(row: Row, objectives: frozenset[str], tokenizer: str | None) -> bool:
    """Whether a row of Tables 3, 5 or 6 is of a model with these objectives and this tokenizer."""
    if row.objectives is not None:
        return row.objectives == objectives
    return row.tokenizer == tokenizer if row.tokenizer is not None else row.mvm == ("mvm" in objectives)


def _tokenizer(origin: Origin) -> str | None:
    """The row of Table 6: a tokenizer's kind, ``none`` without MVM; None when it is lost."""
    pretraining = origin.pretraining
    if pretraining is None or not pretraining.settings.get("mvm"):
        return "none"
    return None if pretraining.tokenizer is None else pretraining.tokenizer.teaches


def _label(origin: Origin) -> str:
    """The pre-trained run behind a model, and by what it was trained beyond the paper."""
    found = origin.pretraining
    if found is None:
        return f"{origin.folder.parent.name}: " + ("pre-training lost" if origin.all_lost else "no pre-training")
    objectives = " + ".join(name.upper() for name in sorted(origin.objectives or ()))
    beyond = " + contrast (not the paper's)" if found.settings.get("contrastive") else ""
    return f"{found.folder.parent.name}/{found.folder.name}: {objectives}{beyond}"


def _measured(evaluation: Evaluation, column: Column) -> Ours:
    found = tuple(_rounded(evaluation.metrics.get(name)) for name in column.metrics)
    data = evaluation.about
    if column.samples is not None and evaluation.samples != column.samples:
        data += f": not the published test split, which has {column.samples:,}"
    return Ours(found[0] if len(found) == 1 else found, evaluation, f"{data}; {evaluation.rule}")


def _rounded(value: float | None) -> float | str:
    return "-" if value is None else round(value, 1)


def _of_the_model(
    table: Table, origin: Origin, evaluations: Iterable[Evaluation], *, costs: bool
) -> Iterator[tuple[str, Ours]]:
    """Cells that say something of the model itself, where the table has such columns."""
    keys = {column.key for column in table.columns}
    pretraining = origin.pretraining
    if "pretraining" in keys and pretraining is not None:
        data = f"{pretraining.data['reader']} of {pretraining.data['annotations']}"
        yield "pretraining", Ours(data, None, "")
    if "frames" in keys and origin.model is not None:
        yield "frames", Ours(int(origin.model["frames"]), None, "")
    if "parameters" in keys and origin.model is not None and costs:
        yield from costs_of(origin)
    if "voc_rate" in keys and pretraining is not None and pretraining.tokenizer is not None:
        yield from _voc_rate(pretraining.tokenizer, evaluations)


def costs_of(origin: Origin) -> Iterator[tuple[str, Ours]]:
    """Parameters and compute of a model without its heads, for its own frames and size."""
    from evilm.data.vocabulary import Vocabulary
    from evilm.model.presets import ModelConfig
    from evilm.report.cost import cost_of_shape

    shape = config.check(ModelConfig, origin.model or {}, str(origin.checkpoint / "config.json"))
    words = Vocabulary.load(origin.checkpoint / "vocabulary.json").size
    length = min(WORDS, shape.max_text_len)
    cost = cost_of_shape(origin.folder.name, shape, shape.num_frames, shape.image_size, length, words)
    counted = f"{shape.num_frames} frames of {shape.image_size}x{shape.image_size} and {length} words, without heads"
    yield "parameters", Ours(round(cost.parameters / 1e6, 2), None, counted)
    both = f"2 x {cost.macs / 1e9:.2f} GMAC"
    yield "flops", Ours(round(cost.flops / 1e9, 2), None, f"{counted}: {both}")


def _voc_rate(tokenizer: Origin, evaluations: Iterable[Evaluation]) -> Iterator[tuple[str, Ours]]:
    """Of an evaluation of the tokenizer that was given; else what its run wrote down at its end."""
    for evaluation in evaluations:
        if evaluation.origin.folder.resolve() == tokenizer.folder.resolve() and "voc_rate" in evaluation.metrics:
            yield "voc_rate", Ours(_rounded(evaluation.metrics["voc_rate"]), evaluation, evaluation.about)
            return
    if "voc_rate" in tokenizer.validation:
        where = f"at the end of the training of {tokenizer.folder}, on its validation split"
        yield "voc_rate", Ours(_rounded(tokenizer.validation["voc_rate"]), None, where)


def _tokenizers_alone(table: Table, models: Sequence[Origin], evaluations: Iterable[Evaluation]) -> Iterator[Line]:
    """Lines of Table 6 for tokenizers that were evaluated and that none of the lines' models was pre-trained with."""
    if "voc_rate" not in {column.key for column in table.columns}:
        return
    teachers = (model.pretraining.tokenizer for model in models if model.pretraining is not None)
    seen = {teacher.folder.resolve() for teacher in teachers if teacher is not None}
    for evaluation in evaluations:
        folder = evaluation.origin.folder.resolve()
        row = next((row for row in table.rows if row.tokenizer == evaluation.origin.teaches), None)
        if row is not None and folder not in seen and not evaluation.shuffled:
            seen.add(folder)
            line = Line(f"{folder.parent.name}/{folder.name}, no model pre-trained with it", row.method)
            line.cells.update(_voc_rate(evaluation.origin, [evaluation]))
            yield line


def as_json(found: Comparison) -> dict[str, Any]:
    """The comparison as plain JSON values; absent cells are null."""
    table = found.table
    return {
        "table": table.number,
        "title": table.title,
        "source": published.source(),
        "columns": {column.key: column.name for column in table.columns},
        "paper": [
            {
                "method": row.method,
                "ours": row.ours,
                "values": {column.key: row.values.get(column.key) for column in table.columns},
                "starred": sorted(row.starred),
            }
            for row in table.rows
        ],
        "ours": [
            {
                "label": line.label,
                "method": line.method,
                "values": {column.key: _cell_json(line.cells.get(column.key), column) for column in table.columns},
            }
            for line in found.lines
        ],
        "contradictions": list(table.contradictions),
        "left_out": list(found.left_out),
    }


def _cell_json(cell: Ours | None, column: Column) -> dict[str, Any] | None:
    if cell is None:
        return None
    about: dict[str, Any] = {"value": cell.value, "note": cell.note}
    if cell.evaluation is not None:
        known = column.samples
        about |= {
            "run": str(cell.evaluation.file.parent),
            "data": cell.evaluation.raw["data"],
            "split": cell.evaluation.split,
            "samples": cell.evaluation.samples,
            "published_samples": known,
            "published_size": None if known is None else known == cell.evaluation.samples,
            "interval": cell.evaluation.raw.get("interval"),
        }
    return about


def as_markdown(found: Comparison) -> str:
    """The comparison as a document: the paper's lines, ours beneath those that they belong to, and what to know."""
    table = found.table
    notes: list[str] = []
    lines = [
        f"## Table {table.number}: {table.title}",
        "",
        f"Published values: {published.source()}. `*`: reproduced by its authors from published weights.",
        "",
        "| " + " | ".join(["method", *(column.name for column in table.columns)]) + " |",
        "|---|" + "---|" * len(table.columns),
    ]
    for row in table.rows:
        starred = {key: f"{shown(value)}{'*' if key in row.starred else ''}" for key, value in row.values.items()}
        lines.append(_markdown_row(row.method, [starred.get(column.key, "") for column in table.columns]))
        if row.ours:
            own = [line for line in found.lines if line.method == row.method]
            lines += [_own_row(line, table, notes) for line in own or [Line("none", row.method)]]
    lines += [_own_row(line, table, notes) for line in found.lines if line.method is None]
    for title, entries in (
        ("Where ours are from", [f"[{i}] {note}" for i, note in enumerate(notes, 1)]),
        ("What does not agree within the paper", table.contradictions),
        ("Given, and not in this table", found.left_out),
    ):
        if entries:
            lines += ["", f"{title}:", "", *(f"* {entry}" for entry in entries)]
    return "\n".join(lines)


def _own_row(line: Line, table: Table, notes: list[str]) -> str:
    cells: list[str] = []
    for column in table.columns:
        cell = line.cells.get(column.key)
        mark = ""
        if cell is not None and cell.note:
            if cell.note not in notes:
                notes.append(cell.note)
            mark = f" [{notes.index(cell.note) + 1}]"
        cells.append("" if cell is None else shown(cell.value) + mark)
    return _markdown_row(f"ours: {line.label}", cells)


def _markdown_row(name: str, cells: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in (name, *cells)) + " |"


def shown(value: Cell) -> str:
    """A cell as text: 39.3, or 27.0 / 51.7 / 64.4."""
    if isinstance(value, tuple):
        return " / ".join(shown(part) for part in value)
    return f"{value:.1f}" if isinstance(value, float) else str(value)
