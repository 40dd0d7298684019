"""WebVid: ``results_2M_{train,val}.csv`` with ``videoid, page_dir, name``; videos ``{page_dir}/{videoid}.mp4``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evilm.data.readers.places import Videos, find, video_root
from evilm.data.readers.tables import read_rows
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def webvid(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """One caption a row; the videos may also lie in one folder, without ``page_dir``."""
    table = find(annotations, (f"results*_{split}.csv", f"webvid_{split}.csv", f"{split}.csv"))
    library = Videos(video_root(annotations, videos))
    for row in read_rows(table):
        name = row.text("videoid")
        folder = row.text("page_dir") if row.has("page_dir") else ""
        path = library.path(f"{folder}/{name}", name) if folder else library.path(name)
        yield Example(key=name, video=name, clip=Clip(path), captions=(row.text("name"),))
