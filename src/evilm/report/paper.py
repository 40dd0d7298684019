"""The numbers that the paper prints, read from ``paper.toml``: its tables, its figures and its contradictions."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from evilm import config
from evilm.config import Config
from evilm.errors import ConfigError

Value = int | float | str | tuple[int | float | str, ...]


class Column(Config):
    """A column of a table; ``task``, ``reader`` and ``metrics`` select our evaluations that belong there."""

    name: str
    task: str | None = None
    reader: str | None = None
    metrics: tuple[str, ...] = ()
    samples: int | None = None  # rows of the published test split, where known


class Row(Config):
    """A row of a table. Values that the paper does not print are absent."""

    method: str
    values: dict[str, Value]
    starred: frozenset[str] = frozenset()  # columns that the paper's authors reproduced from published weights
    ours: bool = False  # whether it is the paper's own model
    # What distinguishes the paper's own models in Tables 3, 5 and 6.
    mvm: bool | None = None
    objectives: frozenset[str] | None = None
    tokenizer: str | None = None


class Table(Config):
    """A table of the paper."""

    number: int
    title: str
    columns: dict[str, Column]
    rows: tuple[Row, ...]
    zero_shot: bool = False
    contradictions: tuple[str, ...]


class Figure(Config):
    """A figure of the paper: its methods, and the columns (table, key) that hold its numbers."""

    number: int
    title: str
    methods: tuple[str, ...]
    columns: tuple[tuple[int, str], ...]
    contradictions: tuple[str, ...]


@cache
def _paper() -> dict[str, Any]:
    return config.read(Path(__file__).with_name("paper.toml"))


def source() -> str:
    """Title and arXiv number of the paper."""
    return "{title} ({where})".format(**_paper()["source"])


def table(number: int) -> Table:
    """A table by its number.

    Raises:
        ConfigError: the paper has no such table.
    """
    return Table.model_validate(_numbered("table", number, "1 to 6"))


def figure(number: int) -> Figure:
    """A figure by its number.

    Raises:
        ConfigError: the paper has no such figure, or it shows no numbers.
    """
    return Figure.model_validate(_numbered("figure", number, "1 and 2; Figure 3 shows no numbers"))


def _numbered(kind: str, number: int, known: str) -> dict[str, Any]:
    place = f"{kind} {number}"
    found = next((one for one in _paper()[f"{kind}s"] if one["number"] == number), None)
    if found is None:
        raise ConfigError(f"the paper has no {place.title()} with numbers: its {kind}s are {known}")
    return found | {"contradictions": [one["text"] for one in _paper()["contradictions"] if place in one["in"]]}
