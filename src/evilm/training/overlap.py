"""Whether the videos of an evaluation were trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evilm.data import readers
from evilm.errors import DataError, EvilmError
from evilm.training import checkpoint
from evilm.training import recipe as recipes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from evilm.data.config import SourceConfig
    from evilm.types import Example


def trained_videos(rows: Sequence[Example], source: SourceConfig, folder: Path) -> dict[str, Any] | None:
    """Count the videos of some rows that are among the training videos of a checkpoint or of the runs before it.

    A video is the same if it is the same clip of the same file, or has the same id in the same annotations. Copies
    under other names are not found.

    Args:
        rows: of the evaluated split.
        source: where they come from.
        folder: the checkpoint.

    Returns:
        ``videos``: the number of distinct videos of ``rows``; ``trained``: how many of them were trained on; ``first``:
        up to three of their ids. None if the training rows cannot be read any more.
    """
    wanted = {name: row.video for row in rows for name in _names(row, source)}
    found: set[str] = set()
    try:
        for train in _training_sources(folder):
            for row in readers.stream(train.reader, train.annotations, train.videos, train.split):
                found.update(wanted[name] for name in _names(row, train) if name in wanted)
    except (EvilmError, OSError):
        return None
    return {"videos": len({row.video for row in rows}), "trained": len(found), "first": sorted(found)[:3]}


def _names(row: Example, source: SourceConfig) -> tuple[str, str]:
    """Where the clip is, and its id in the annotations."""
    place = row.clip.path.absolute().as_posix()
    return row.clip.id.replace(row.clip.path.as_posix(), place, 1), f"{source.annotations.absolute()}: {row.video}"


def _training_sources(folder: Path) -> Iterator[SourceConfig]:
    """The training data of a checkpoint, and of the runs that it started from.

    Raises:
        CheckpointError: a run that it started from does not exist any more.
        DataError: runs start from each other.
    """
    seen: set[Path] = set()
    place: Path | None = folder
    while place is not None:
        found = checkpoint.find(place)
        if found in seen:
            raise DataError(f"{found}: starts from itself")
        seen.add(found)
        recipe = recipes.of_checkpoint(found, checkpoint.read_json(found / "config.json"))
        yield from dict.fromkeys((recipe.data.train, *recipe.data.extra_train))  # one may be listed several times
        place = recipe.start
