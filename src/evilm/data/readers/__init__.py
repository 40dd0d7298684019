"""Annotation files to ``Example``s: one generator for each format, listed in ``READERS``.

A new format is one generator ``(annotations, videos, split)`` and one line in ``READERS``. A missing video still gives
its example, with the path that it would have, so that whoever decodes it counts it as missing.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Protocol

from evilm.data.readers.actions import hmdb51, kinetics400, ucf101
from evilm.data.readers.captions import captions, classes, didemo, sentences, sidecars, videos_alone, webvid
from evilm.data.readers.images import coco_captions, flickr8k
from evilm.data.readers.msrvtt import msrvtt_mc, msrvtt_qa, msrvtt_retrieval, msvd_qa, msvd_retrieval
from evilm.data.readers.questions import tgif_action, tgif_count, tgif_frame, tgif_transition, violet
from evilm.data.readers.tars import frames, frames_qa, shards
from evilm.errors import AnnotationError, ConfigError, SplitError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from evilm.types import Example


class Reader(Protocol):
    """A generator of the examples of one split, in the order of the file.

    Args:
        annotations: the annotation file, or the folder that contains it under its published name.
        videos: the folder of the videos; None looks beside the annotations.
        split: ``train``, ``val``, ``test``, or another split of the format.

    Raises:
        AnnotationError: with the file, the line, what was found and what is needed.
    """

    def __call__(self, annotations: Path, videos: Path | None, split: str, /) -> Iterator[Example]: ...


READERS: dict[str, Reader] = {
    "captions": captions,
    "classes": classes,
    "coco_captions": coco_captions,
    "didemo": didemo,
    "flickr8k": flickr8k,
    "frames": frames,
    "frames_qa": frames_qa,
    "hmdb51": hmdb51,
    "kinetics400": kinetics400,
    "msrvtt_mc": msrvtt_mc,
    "msrvtt_qa": msrvtt_qa,
    "msrvtt_retrieval": msrvtt_retrieval,
    "msvd_qa": msvd_qa,
    "msvd_retrieval": msvd_retrieval,
    "sentences": sentences,
    "shards": shards,
    "sidecars": sidecars,
    "tgif_action": tgif_action,
    "tgif_count": tgif_count,
    "tgif_frame": tgif_frame,
    "tgif_transition": tgif_transition,
    "ucf101": ucf101,
    "videos": videos_alone,
    "violet": violet,
    "webvid": webvid,
}


TEXTLESS = frozenset({"videos"})  # readers whose rows have a video and no text


def reader(name: str) -> Reader:
    """The reader of a format.

    Raises:
        ConfigError: there is no such format; lists those there are.
    """
    if name not in READERS:
        close = difflib.get_close_matches(name, READERS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"unknown reader {name!r}: {hint}known are {', '.join(sorted(READERS))}")
    return READERS[name]


def stream(name: str, annotations: Path, videos: Path | None = None, split: str = "train") -> Iterator[Example]:
    """The examples of a split, one by one; arguments as for ``Reader``.

    Raises:
        ConfigError: there is no such format.
        AnnotationError: the files are missing or wrong, or no row has a caption, question or label.
        SplitError: the split has no rows.
    """
    count = useful = 0
    for example in reader(name)(annotations, videos, split):
        count += 1
        useful += bool(example.captions or example.question or example.choices or example.label is not None)
        yield example
    if not count:
        raise SplitError(annotations, f"has no examples in split {split!r}")
    if not useful and name not in TEXTLESS:
        raise AnnotationError(
            annotations, f"names {count} videos in split {split!r}, and no caption, question or label for any: put the "
            "file that has them beside it"
        )  # fmt: skip


def read(name: str, annotations: Path, videos: Path | None = None, split: str = "train") -> list[Example]:
    """All examples of a split in memory; otherwise as ``stream``."""
    return list(stream(name, annotations, videos, split))
