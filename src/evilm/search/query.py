"""What may be asked: texts that can be searched for, and filters over files."""

from __future__ import annotations

import datetime as dt
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilm.errors import QueryError
from evilm.search.database import under

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from evilm.search.database import Database
    from evilm.search.embedder import Embedder

MOST_WORDS = 200  # a sentence; models read some thirty word pieces
_SHOWN = 60


def checked(text: str, model: Embedder) -> str:
    """A text that can be searched for, with single spaces.

    Raises:
        QueryError: it is empty, far too long, not text, or in a script that the model knows nothing of.
    """
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not any(unicodedata.category(c)[0] in "LNS" for c in plain):
        raise QueryError("the query is empty: say in a few words what should be seen")
    words = len(plain.split())
    if words > MOST_WORDS or len(plain) > 20 * MOST_WORDS:
        what = f"{words:,} words" if words > MOST_WORDS else f"{len(plain):,} characters"
        raise QueryError(f"the query has {what}: say it in one sentence (at most {MOST_WORDS} words)")
    share = getattr(model, "unknown_share", None)
    if share is not None and share([plain]) > 0.5:
        shown = plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "..."
        raise QueryError(f"the model does not know the words of {shown!r}: ask in the language that it learned")
    return plain


@dataclass(frozen=True)
class Filter:
    """Which files may be found; what is None does not matter.

    Attributes:
        folder: they lie under it.
        longer, shorter: seconds that they last at least, at most.
        after, before: when they were changed last: from this day on, before this day.
    """

    folder: Path | None = None
    longer: float | None = None
    shorter: float | None = None
    after: dt.date | None = None
    before: dt.date | None = None

    def __bool__(self) -> bool:
        return any(each is not None for each in (self.folder, self.longer, self.shorter, self.after, self.before))

    def files(self, catalogue: Database) -> NDArray[np.int64]:
        """Numbers of the files that pass, increasing."""
        conditions: list[str] = ["1"]
        values: list[Any] = []
        if self.folder is not None:
            condition, bounds = under(os.fsencode(Path(self.folder).expanduser().resolve()))
            conditions.append(condition)
            values += bounds
        bounded = (
            ("duration >=", self.longer), ("duration <=", self.shorter),
            ("changed >=", _nanoseconds(self.after)), ("changed <", _nanoseconds(self.before)),
        )  # fmt: skip
        for condition, bound in bounded:
            if bound is not None:
                conditions.append(f"{condition} ?")
                values.append(bound)
        return catalogue.select_files(" AND ".join(conditions), values)


def _nanoseconds(day: dt.date | None) -> int | None:
    """When a day begins here."""
    if day is None:
        return None
    return int(dt.datetime(day.year, day.month, day.day).astimezone().timestamp()) * 10**9


def day(text: str) -> dt.date:
    """A day as 2026-01-31.

    Raises:
        QueryError: it is none.
    """
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise QueryError(f"{text!r} is no day: write it as 2026-01-31") from None
