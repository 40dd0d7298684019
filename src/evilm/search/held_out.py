"""The held-out clips of a world as an index whose "no good match" line is known: one call, for the demo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evilm.data.readers.msrvtt import msrvtt_retrieval
from evilm.data.synthetic.truth import relevance
from evilm.search.index import VideoIndex

if TYPE_CHECKING:
    from pathlib import Path

    from evilm.search.embedder import Embedder


def index_held_out(world: Path, model: Embedder | str | Path, out: Path, split: str = "test") -> VideoIndex:
    """Index the clips of one split of a world, and calibrate the index with its captions.

    Args:
        world: as ``evilm data synthetic`` made it.
        model: what ``evilm.load`` takes, or gives.
        out: a folder, new or made by this before: ``clips`` (links to the videos) and ``index`` are made in it.
        split: which clips.

    Returns:
        the open index, in ``out / "index"``.

    Raises:
        VideoIndexError: the index is of another model, or nothing could be read.
    """
    examples = list(msrvtt_retrieval(world, None, split))
    clips = {example.video: example.clip.path for example in examples}
    links = out / "clips"
    links.mkdir(parents=True, exist_ok=True)
    for path in clips.values():
        link = links / path.name
        if not link.is_symlink():
            link.symlink_to(path.resolve())
    index = VideoIndex.build(links, model, out / "index")
    captions = list(dict.fromkeys(example.captions[0] for example in examples))
    true = relevance(world / "world.jsonl", captions, list(clips))
    paths = [links / path.name for path in clips.values()]
    index.calibrate([(text, path) for text, row in zip(captions, true, strict=True)
                     for path, right in zip(paths, row, strict=True) if right])  # fmt: skip
    return index
