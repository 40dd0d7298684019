"""Which captions are true of which clips of a world on disk: the relevance that retrieval is scored by."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.data.synthetic.language import is_true
from evilm.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


def relevance(world: Path, captions: Sequence[str], videos: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each caption is true of each clip, (captions, clips).

    Args:
        world: the ``world.jsonl`` of the world that both come from.
        captions: sentences, each one of that file's.
        videos: ids of clips, as ``video12``.

    Raises:
        AnnotationError: the file cannot be read, or it does not hold a caption or a clip that is asked for.
    """
    scenes, meanings = _read(world)
    for kind, asked, known in (("caption", captions, meanings), ("clip", videos, scenes)):
        missing = next((one for one in asked if one not in known), None)
        if missing is not None:
            raise AnnotationError(world, f"no {kind} {missing!r} in this world; take both from the same world")
    # A caption is only tried on clips that hold its first thing with its action.
    holders: dict[tuple[str, str, str], list[int]] = {}
    for column, video in enumerate(videos):
        for thing in scenes[video]["things"]:
            holders.setdefault((thing["colour"], thing["shape"], thing["action"]), []).append(column)
    true = np.zeros((len(captions), len(videos)), dtype=np.bool_)
    for row, text in enumerate(captions):
        first = meanings[text]["things"][0]
        for column in holders.get((first["colour"], first["shape"], first["action"]), ()):
            true[row, column] = is_true(meanings[text], scenes[videos[column]])
    return true


def _read(world: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scenes by video id, meanings by sentence."""
    scenes: dict[str, Any] = {}
    meanings: dict[str, Any] = {}
    try:
        lines = world.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(world, f"cannot be read: {error}; `evilm data synthetic` makes it") from None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            scenes[record["video"]] = record["scene"]
            meanings |= {said["text"]: said["meaning"] for said in record["captions"]}
        except (json.JSONDecodeError, KeyError, TypeError):
            raise AnnotationError(
                world, "not a record of a world; make it anew with `evilm data synthetic`", number
            ) from None
    return scenes, meanings
