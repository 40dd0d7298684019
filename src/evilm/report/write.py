"""Write every table and figure of the paper with our results: Markdown, CSV, LaTeX and PNG."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from evilm import files
from evilm.errors import OutputError
from evilm.report import figures, tables
from evilm.report.evaluations import read_evaluations, select

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

TABLES, FIGURES = range(1, 7), (1, 2)
_ESCAPED = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def write_all(runs: Iterable[Path], out: Path, on: str | None = None) -> list[Path]:
    """Write ``table-1`` to ``table-6`` (.md, .csv, .tex) and ``figure-1``, ``figure-2`` (.md, .png) into a folder.

    Args:
        runs: folders that contain evaluated runs; none gives the paper's values alone.
        out: the folder; files of these names are replaced.
        on: use only evaluations on this data, see ``evaluations.select``.

    Raises:
        DataError: no evaluation below ``runs`` is on such data.
        OutputError: a file cannot be written.
    """
    runs = list(runs)
    evaluations, unusable = read_evaluations(runs)
    chosen = select(evaluations, on)
    contents: dict[str, str] = {}
    for number in TABLES:
        filled = tables.fill(number, chosen, unusable)
        rows, _ = tables.rows_of(filled)
        contents[f"table-{number}.md"] = tables.as_markdown(filled) + "\n"
        contents[f"table-{number}.csv"] = as_csv(rows)
        contents[f"table-{number}.tex"] = as_latex(rows)
    written: list[Path] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            files.write_atomic(out / name, text)
            written.append(out / name)
        for number in FIGURES:
            filled_figure = figures.fill(number, chosen, unusable)
            files.write_atomic(out / f"figure-{number}.md", figures.as_markdown(filled_figure) + "\n")
            figures.draw(filled_figure, out / f"figure-{number}.png")
            written += [out / f"figure-{number}.md", out / f"figure-{number}.png"]
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}") from None
    return written


def as_csv(rows: Sequence[Sequence[str]]) -> str:
    """Rows as comma-separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def as_latex(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the header first, as a LaTeX ``tabular``."""
    lines = [" & ".join("".join(_ESCAPED.get(c, c) for c in cell) for cell in row) + r" \\" for row in rows]
    columns = "l" + "r" * (len(rows[0]) - 1)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", lines[0], r"\hline", *lines[1:], r"\end{tabular}"]) + "\n"
