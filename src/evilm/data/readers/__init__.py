"""Annotation files to ``Example``s: one generator a format, and the table of all of them.

A new format is one generator of ``(annotations, videos, split)`` and one line in ``READERS``.

A video that is missing still gives its example, with the path it would have: whoever decodes it counts it.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Protocol

from evilm.data.readers.generic import captions, classes, frames
from evilm.data.readers.hmdb51 import hmdb51
from evilm.data.readers.msrvtt import msrvtt_mc, msrvtt_qa, msrvtt_retrieval
from evilm.data.readers.tgif import tgif_action, tgif_frame, tgif_transition
from evilm.data.readers.webvid import webvid
from evilm.errors import AnnotationError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from evilm.types import Example


class Reader(Protocol):
    """Examples of one split, in the order of the file.

    Args:
        annotations: the annotation file, or the folder in which it has its published name.
        videos: the folder of the videos; None looks beside the annotations.
        split: ``train``, ``val``, ``test``, or what else the format knows.

    Raises:
        AnnotationError: naming file, line, what was found and what is needed.
    """

    def __call__(self, annotations: Path, videos: Path | None, split: str, /) -> Iterator[Example]: ...


READERS: dict[str, Reader] = {
    "captions": captions,
    "classes": classes,
    "frames": frames,
    "hmdb51": hmdb51,
    "msrvtt_mc": msrvtt_mc,
    "msrvtt_qa": msrvtt_qa,
    "msrvtt_retrieval": msrvtt_retrieval,
    "tgif_action": tgif_action,
    "tgif_frame": tgif_frame,
    "tgif_transition": tgif_transition,
    "webvid": webvid,
}


def read(name: str, annotations: Path, videos: Path | None = None, split: str = "train") -> list[Example]:
    """All examples of a split, read by the format ``name``; arguments as for ``Reader``.

    Raises:
        ConfigError: there is no such format.
        AnnotationError: the files are missing or wrong, or the split is empty.
    """
    if name not in READERS:
        close = difflib.get_close_matches(name, READERS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"unknown reader {name!r}: {hint}known are {', '.join(sorted(READERS))}")
    examples = list(READERS[name](annotations, videos, split))
    if not examples:
        raise AnnotationError(annotations, f"has no examples in split {split!r}")
    return examples
