"""DiDeMo: all sentences of a Flickr video make one paragraph; ``{train,val,test}_data.json`` or reshaped lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evilm.data.readers.places import Videos, find, find_optional, plain_name, video_root
from evilm.data.readers.sentences import by_video
from evilm.data.readers.text import listed
from evilm.errors import AnnotationError
from evilm.types import Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 31.0  # the annotators saw six pieces of five seconds; what comes after is nobody's


def didemo(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """One example a video: its sentences joined in the order of the file, its first 31 seconds.

    The file is ``{split}_data.json`` (``description, times, video``), another json or jsonl of videos and captions, or
    ``DiDeMo_{split}.tsv`` with those two columns. ``{split}_list.txt`` beside it, where there is one, picks and orders
    the videos. Videos that were saved under another extension are found too.
    """
    patterns = (f"{split}_data.json", f"DiDeMo_{split}.tsv", f"didemo_*{split}*.json*", f"*{split}*.json*",
                f"*{split}*.tsv")  # fmt: skip
    source = find(annotations, patterns)
    library = Videos(video_root(annotations, videos, ("videos", "video")))
    published: dict[str, str] = {}

    def plain(name: str) -> str:
        return published.setdefault(plain_name(name), name) and plain_name(name)

    sentences = by_video(source, plain)
    listing = find_optional(annotations, (f"{split}_list.txt",)) if annotations.is_dir() else None
    for name in sentences if listing is None else [plain_name(each) for each in listed(listing)]:
        if name not in sentences:
            raise AnnotationError(listing or source, f"{source.name} has no sentence for {name!r} of split {split!r}")
        clip = library.clip(published[name], end=SECONDS)
        yield Example(key=name, video=name, clip=clip, captions=(" ".join(sentences[name]),))
