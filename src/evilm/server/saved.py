"""Saved searches: a list of names and page addresses in a file beside the index."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from evilm.errors import QueryError
from evilm.files import write_atomic
from evilm.server import schemas

if TYPE_CHECKING:
    from pathlib import Path

NAME = "saved-searches.json"


def load(folder: Path) -> list[dict[str, Any]]:
    """The saved searches of an index; none if the file is missing or damaged."""
    try:
        value: Any = json.loads((folder / NAME).read_text(encoding="utf-8"))
        rows = schemas.SavedBody.model_validate({"saved": value}).saved
    except (OSError, ValueError):
        return []
    return [row.model_dump() for row in rows]


def store(folder: Path, rows: list[schemas.SavedSearch]) -> None:
    """Replace the saved searches of an index.

    Raises:
        QueryError: there is no index yet, or its folder cannot be written.
    """
    if not (folder / "index.db").is_file():
        raise QueryError("there is no index yet: choose a folder in the Index view")
    try:
        write_atomic(folder / NAME, json.dumps([row.model_dump() for row in rows], indent=2))
    except OSError as error:
        raise QueryError(f"the searches cannot be saved: {error.strerror}") from None
