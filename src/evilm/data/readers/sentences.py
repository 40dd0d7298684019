"""Sentences by video, out of every shape that json and text files of captions are published in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from evilm.data.readers.row import Row
from evilm.data.readers.tables import json_rows, list_rows, read_json, read_rows
from evilm.data.readers.text import lines
from evilm.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

VIDEO_FIELDS = ("video_id", "video", "clip_name", "image_id", "id", "path")
TEXT_FIELDS = ("caption", "captions", "sentence", "sentences", "description", "text", "desc", "enCap")


def by_video(path: Path, name: Callable[[str], str]) -> dict[str, list[str]]:
    """All sentences of a file, in its order, by video.

    A json file is one of: ``{"sentences": [{video_id, caption}]}``, ``{"annotations": [{image_id, caption}]}``,
    ``{video: [sentence]}``, or a list of tables with one of ``VIDEO_FIELDS`` and of ``TEXT_FIELDS`` (a sentence or a
    list). Csv, tsv, jsonl and parquet have the same two columns. ``.txt`` has ``video sentence`` lines, # a comment.

    Args:
        path: the file.
        name: what the data set calls the video of that id (``7`` to ``video7``).

    Raises:
        AnnotationError: the file is missing or of none of these shapes.
    """
    if path.suffix.lower() == ".txt":
        return _of_lines(path, name)
    if path.suffix.lower() != ".json":
        return _of_rows(read_rows(path), name)
    data = read_json(path)
    if isinstance(data, list):
        return _of_rows(list_rows(path, cast("list[Any]", data)), name)
    table = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    for key in ("sentences", "annotations"):
        if key in table:
            return _of_rows(json_rows(path, table, key), name)
    if not table or not all(isinstance(texts, list) for texts in table.values()) or "videos" in table:
        keys = ", ".join(list(table)[:8]) or "none"
        raise AnnotationError(path, f"has no list 'sentences' or 'annotations', and is no table of lists; keys: {keys}")
    found: dict[str, list[str]] = {}
    for number, (video, texts) in enumerate(table.items(), start=1):
        row = Row(path, number, {"video": video, "captions": texts})
        found.setdefault(name(row.text("video")), []).extend(row.texts("captions"))
    return found


def _of_rows(rows: Iterable[Row], name: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        video = next((field for field in VIDEO_FIELDS if row.has(field)), None)
        text = next((field for field in TEXT_FIELDS if row.has(field)), None)
        if video is None or text is None:
            lacks, needed = ("video", VIDEO_FIELDS) if video is None else ("caption", TEXT_FIELDS)
            raise row.error(
                f"has no {lacks}; fields found: {', '.join(row.values) or 'none'}; needed one of: {', '.join(needed)}"
            )
        found.setdefault(name(row.text(video)), []).extend(row.texts(text))
    return found


def _of_lines(path: Path, name: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines(path), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        video, _, text = line.strip().partition(" ")
        row = Row(path, number, {"video": video, "caption": text})
        if not text.strip():
            raise row.error(f"{line.strip()!r:.60} is not a video followed by a sentence")
        found.setdefault(name(video), []).append(row.text("caption"))
    return found
