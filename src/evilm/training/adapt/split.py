"""Which of a user's clips are held out: by video, so that no part or copy of one is on both sides."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

from evilm.data import sampling
from evilm.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from evilm.types import Example

FEWEST = 8  # videos: two to measure with and some to learn from
MOST_HELD = 500  # videos; more would only take longer to measure


def divide(
    examples: Sequence[Example], share: float = 0.2, seed: int = 0
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Clips to learn from, and clips held out; the same clips and seed give the same parts, whatever their order.

    Args:
        examples: one a clip.
        share: of the videos that are held out, at least two and at most ``MOST_HELD`` of them.
        seed: draws them.

    Raises:
        DataError: fewer than ``FEWEST`` videos, or a share that leaves too few.
    """
    of = _videos(examples)
    names = sorted(set(of))
    held = min(MOST_HELD, max(2, round(share * len(names))))
    if len(names) < FEWEST or len(names) - held < 2:
        raise DataError(
            f"{len(names)} different videos are too few to hold some out and learn from the rest: at least {FEWEST} "
            "are needed, and some dozens to learn anything"
        )
    chosen = {names[int(i)] for i in sampling.generator(seed, "held-out").permutation(len(names))[:held]}
    train = tuple(row for row, name in zip(examples, of, strict=True) if name not in chosen)
    return train, tuple(row for row, name in zip(examples, of, strict=True) if name in chosen)


def _videos(examples: Sequence[Example]) -> list[str]:
    """A name for the video of each row: equal for parts of one file, and for files of the same content."""
    places = [(row.clip.path, row.clip.frames) for row in examples]
    sizes = Counter(size for path in {path for path, frames in places if not frames} if (size := _size(path)))
    names: dict[Path, str] = {}
    for row, (path, frames) in zip(examples, places, strict=True):
        if frames:  # stills: a folder is a video, and so is a picture of a folder of pictures
            names[path / frames[0]] = row.video
        elif path not in names:
            names[path] = _digest(path) if sizes[_size(path)] > 1 else row.video
    return [names[path / frames[0] if frames else path] for path, frames in places]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
