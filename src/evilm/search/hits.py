"""What a search brings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from evilm.search.calibration import Calibration


@dataclass(frozen=True, slots=True)
class Hit:
    """A moment that was found.

    Attributes:
        path: its file.
        start, end: seconds within it.
        score: 0 to 1; below one half is no good match (see ``calibration``).
        cosine: the similarity that the score was made from.
    """

    path: Path
    start: float
    end: float
    score: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Hits:
    """What a search brought, best first.

    Attributes:
        query: what was searched for.
        hits: the moments.
        no_good_match: True where even the best hit is no better than searches for unrelated things bring.
        calibration: what the scores were made with; its ``origin`` says how far they may be trusted.
    """

    query: str
    hits: tuple[Hit, ...]
    no_good_match: bool
    calibration: Calibration

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, place: int) -> Hit:
        return self.hits[place]

    def as_json(self) -> dict[str, Any]:
        """``query``, ``hits`` (``path, start, end, score``), ``no_good_match``."""
        rows = [
            {
                "path": str(hit.path),
                "start": round(hit.start, 3),
                "end": round(hit.end, 3),
                "score": round(hit.score, 4),
            }
            for hit in self.hits
        ]
        return {"query": self.query, "hits": rows, "no_good_match": self.no_good_match}
