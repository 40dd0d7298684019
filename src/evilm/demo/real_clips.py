"""The demo's last stage: the bundled model of real scenes searches the bundled clips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evilm.demo import clips
from evilm.inference.loading import PHOTO
from evilm.search.index import VideoIndex

if TYPE_CHECKING:
    from pathlib import Path

CUTOFFS = (1, 5, 10)


def search_by_name(out: Path) -> dict[str, Any]:
    """Index the sample clips, and search each by the words of its file name.

    The names are what their recordings' authors or we called them; the model was trained on none of them.

    Args:
        out: new folder for the index, or one of an earlier call.

    Returns:
        ``folder`` of the clips; ``metrics``: R@1, R@5, R@10 with ``chance``, title, rule and number of ``samples``;
        ``searches``: of each clip its ``video`` (path in the folder), ``text``, ``rank`` and the ``first`` five videos.

    Raises:
        VideoIndexError: another model made the index in ``out``.
    """
    folder = clips.folder()
    with VideoIndex.build(folder, PHOTO, out) as index:
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.mp4"))
        searches = [_search(index, folder, name) for name in names]
    return {
        "folder": str(folder),
        "metrics": {
            "title": "Real clips by name, evilm-photo",
            "metrics": {
                f"R@{k}": 100 * sum(each["rank"] <= k for each in searches) / len(searches) for k in CUTOFFS
            },
            "chance": {f"R@{k}": 100 * k / len(searches) for k in CUTOFFS},
            "rule": f"the words of a file's name, {len(searches)} clips; none was used in training",
            "samples": len(searches),
        },
        "searches": searches,
    }  # fmt: skip


def _search(index: VideoIndex, folder: Path, name: str) -> dict[str, Any]:
    text = name.rsplit("/", 1)[-1].removesuffix(".mp4").replace("-", " ")
    found = index.search(text, len(index))
    order = list(dict.fromkeys(hit.path.relative_to(folder).as_posix() for hit in found))
    return {"video": name, "text": text, "rank": 1 + order.index(name), "first": order[:5]}
