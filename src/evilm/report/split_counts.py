"""Counts of one split of a data set, updated row by row.

Only hashes of a row are kept: 8 bytes for its key, 8 for its video, and twice 8 for each caption or question.
"""

from __future__ import annotations

import functools
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm import config

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from evilm.types import Example


@functools.cache
def published() -> dict[str, Any]:
    """Splits, sizes and answer vocabularies of the published data sets (``datasets.toml``)."""
    return config.read(Path(__file__).with_name("datasets.toml"))


@dataclass(slots=True)
class SplitCounts:
    """Counts of one split.

    Attributes:
        name: of the split in the report.
        requested: the split that the reader was called with.
        keys, videos: a hash for each row.
        texts, plain_texts: a hash for each caption or question, with and without its video.
        missing: a hash for each row whose video does not exist.
        captioned: rows with captions.
        bare: rows without caption, question or label.
        words: number of captions by number of words.
        options: number of questions by number of options.
        answers, labels: frequency of each; the index of the right option is a label too.
    """

    name: str
    requested: str
    keys: array[int] = field(default_factory=lambda: array("q"))
    videos: array[int] = field(default_factory=lambda: array("q"))
    texts: array[int] = field(default_factory=lambda: array("q"))
    plain_texts: array[int] = field(default_factory=lambda: array("q"))
    missing: array[int] = field(default_factory=lambda: array("q"))
    captioned: int = 0
    bare: int = 0
    words: Counter[int] = field(default_factory=Counter[int])
    options: Counter[int] = field(default_factory=Counter[int])
    answers: Counter[str] = field(default_factory=Counter[str])
    labels: Counter[int] = field(default_factory=Counter[int])

    def add(self, example: Example, exists: bool) -> None:
        """Count a row; ``exists`` tells whether its video does."""
        video = hash(video_of(example))
        self.keys.append(hash(example.key))
        self.videos.append(video)
        for text in texts_of(example):
            self.texts.append(hash((video, text)))
            self.plain_texts.append(hash(text))
        if not exists:
            self.missing.append(video)
        self.captioned += bool(example.captions)
        self.words.update(len(caption.split()) for caption in example.captions)
        self.bare += not (example.captions or example.question or example.choices or example.label is not None)
        if example.choices:
            self.options[len(example.choices)] += 1
        if example.answer is not None:
            self.answers[example.answer] += 1
        if example.label is not None:
            self.labels[example.label] += 1

    def __len__(self) -> int:
        return len(self.keys)

    def as_json(self, format_name: str) -> dict[str, Any]:
        """The counts; those that a format does not have are omitted."""
        videos, missing = (int(np.unique(hashes(each)).size) for each in (self.videos, self.missing))
        counts: dict[str, Any] = {"rows": len(self), "videos": videos, "found": videos - missing, "missing": missing}
        if self.words:
            number = self.words.total()
            mean = sum(words * times for words, times in self.words.items()) / number
            counts["captions"] = {
                "count": number,
                "rows_without": len(self) - self.captioned,
                "words": {"least": min(self.words), "mean": round(mean, 2), "most": max(self.words)},
            }
        if self.answers:
            counts["answers"] = len(self.answers)
        if self.options:
            counts["options"] = {"least": min(self.options), "most": max(self.options)}
        if self.labels:
            counts["places" if self.options else "classes"] = len(self.labels)
        repeats = {name: len(each) - int(np.unique(hashes(each)).size) for name, each in
                   (("keys", self.keys), ("texts", self.texts))}  # fmt: skip
        counts["repeated"] = repeats
        known = published()["sizes"].get(format_name, {}).get(self.name, [])
        if known:
            same = next((what for rows, films, what in known if rows == len(self) and films in (0, videos)), None)
            counts["published"] = {"rows": [rows for rows, *_ in known], "agrees": same is not None, "which": same}
        return counts


def video_of(example: Example) -> str:
    """The same for rows of one video: its file, whatever part of it; the first of still frames."""
    frames = example.clip.frames
    return f"{example.clip.path}/{frames[0]}" if frames else str(example.clip.path)


def texts_of(example: Example) -> tuple[str, ...]:
    """The captions of a row, or its question."""
    return example.captions or ((example.question,) if example.question else ())


def hashes(values: array[int]) -> NDArray[np.int64]:
    """The hashes as an array, without a copy."""
    return np.frombuffer(values, dtype=np.int64) if len(values) else np.zeros(0, dtype=np.int64)


def is_repeated(values: array[int]) -> Callable[[int], bool]:
    """A function that tells whether a hash occurs more than once."""
    each, times = np.unique(hashes(values), return_counts=True)
    return set(each[times > 1].tolist()).__contains__
