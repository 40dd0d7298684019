"""The paper's own numbers, read from ``paper.toml`` beside this file: its tables, its figures, its contradictions."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evilm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

Cell = float | str | tuple[float | str, ...]

FILE = Path(__file__).with_name("paper.toml")


@dataclass(frozen=True, slots=True)
class Column:
    """A column, and which evaluation of ours belongs under it.

    Attributes:
        key, name: for the machine and for the reader.
        task, reader: of the evaluations that fill it; None where none does.
        metrics: which of their numbers, in order.
        samples: rows of the published test split, where that is known.
    """

    key: str
    name: str
    task: str | None = None
    reader: str | None = None
    metrics: tuple[str, ...] = ()
    samples: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table.

    Attributes:
        method: its name.
        values: by column; those that the paper leaves out are absent.
        starred: columns that the paper's authors reproduced from published weights.
        ours: whether it is the paper's own model.
        mvm, objectives, tokenizer: what sets a row of the paper's own apart, in Tables 3, 5 and 6.
    """

    method: str
    values: Mapping[str, Cell]
    starred: frozenset[str] = frozenset()
    ours: bool = False
    mvm: bool | None = None
    objectives: frozenset[str] | None = None
    tokenizer: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the paper."""

    number: int
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    zero_shot: bool
    contradictions: tuple[str, ...]

    def column(self, key: str) -> Column:
        """The column of that key."""
        return next(column for column in self.columns if column.key == key)


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the paper: which methods it shows, and from which columns of which tables its numbers come."""

    number: int
    title: str
    methods: tuple[str, ...]
    columns: tuple[tuple[int, str], ...]
    contradictions: tuple[str, ...]


def source() -> str:
    """Where the numbers are from."""
    about = _paper()["source"]
    return f"{about['title']} ({about['where']})"


def table(number: int) -> Table:
    """A table by its number.

    Raises:
        ConfigError: the paper has no such table.
    """
    for found in _paper()["tables"]:
        if found["number"] == number:
            return Table(
                number,
                found["title"],
                tuple(_column(key, about) for key, about in found["columns"].items()),
                tuple(_row(about) for about in found["rows"]),
                bool(found.get("zero_shot", False)),
                _contradictions(f"table {number}"),
            )
    raise ConfigError(f"the paper has no Table {number}: its tables are 1 to 6")


def figure(number: int) -> Figure:
    """A figure by its number.

    Raises:
        ConfigError: no such figure, or one without numbers.
    """
    for found in _paper()["figures"]:
        if found["number"] == number:
            columns = tuple((int(which), str(key)) for which, key in found["columns"])
            methods = tuple(found["methods"])
            return Figure(number, found["title"], methods, columns, _contradictions(f"figure {number}"))
    raise ConfigError(f"the paper has no Figure {number} with numbers in it: those are 1 and 2")


@cache
def _paper() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def _column(key: str, about: dict[str, Any]) -> Column:
    return Column(
        key,
        about["name"],
        about.get("task"),
        about.get("reader"),
        tuple(about.get("metrics", ())),
        about.get("samples"),
    )


def _row(about: dict[str, Any]) -> Row:
    values = {key: _cell(value) for key, value in about["values"].items()}
    objectives = about.get("objectives")
    return Row(
        about["method"],
        values,
        frozenset(about.get("starred", ())),
        bool(about.get("ours", False)),
        about.get("mvm"),
        None if objectives is None else frozenset(objectives),
        about.get("tokenizer"),
    )


def _cell(value: Any) -> Cell:
    """Three numbers of a cell come from the file as a list."""
    return tuple(cast("list[float | str]", value)) if isinstance(value, list) else value


def _contradictions(where: str) -> tuple[str, ...]:
    return tuple(found["text"] for found in _paper()["contradictions"] if where in found["in"])
