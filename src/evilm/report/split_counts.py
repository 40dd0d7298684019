"""What one split of a data set holds, counted while its rows pass by.

Of each row only hashes are kept: 8 bytes for its key and for its video, twice 8 for each caption or question.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.data.readers import published

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from evilm.types import Example


@dataclass(slots=True)
class SplitCounts:
    """One split as it was found.

    Attributes:
        name: what it is called in the report.
        asked: the split that its reader was asked for.
        keys, videos: a hash a row. texts, spoken: a hash a caption or question, with and without its video.
        missing: a hash a row whose video is not there.
        captioned, bare: rows with captions; rows with no caption, question or label.
        words, options: how many captions have so many words, how many questions so many options.
        answers, labels: how often each comes; the place of the right option is a label too.
    """

    name: str
    asked: str
    keys: array[int] = field(default_factory=lambda: array("q"))
    videos: array[int] = field(default_factory=lambda: array("q"))
    texts: array[int] = field(default_factory=lambda: array("q"))
    spoken: array[int] = field(default_factory=lambda: array("q"))
    missing: array[int] = field(default_factory=lambda: array("q"))
    captioned: int = 0
    bare: int = 0
    words: Counter[int] = field(default_factory=Counter[int])
    options: Counter[int] = field(default_factory=Counter[int])
    answers: Counter[str] = field(default_factory=Counter[str])
    labels: Counter[int] = field(default_factory=Counter[int])

    def add(self, example: Example, there: bool) -> None:
        """Count a row whose video is there or not."""
        video = hash(video_of(example))
        self.keys.append(hash(example.key))
        self.videos.append(video)
        for text in texts_of(example):
            self.texts.append(hash((video, text)))
            self.spoken.append(hash(text))
        if not there:
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
        """The counts; what a format does not have is left out."""
        distinct, missing = (int(np.unique(hashes(each)).size) for each in (self.videos, self.missing))
        found: dict[str, Any] = {
            "rows": len(self),
            "videos": distinct,
            "found": distinct - missing,
            "missing": missing,
        }
        if self.words:
            count = self.words.total()
            mean = sum(number * times for number, times in self.words.items()) / count
            found["captions"] = {
                "count": count,
                "rows_without": len(self) - self.captioned,
                "words": {"least": min(self.words), "mean": round(mean, 2), "most": max(self.words)},
            }
        if self.answers:
            found["answers"] = len(self.answers)
        if self.options:
            found["options"] = {"least": min(self.options), "most": max(self.options)}
        if self.labels:
            found["places" if self.options else "classes"] = len(self.labels)
        found["repeated"] = {"keys": repeats(self.keys), "texts": repeats(self.texts)}
        known = published.counts(format_name, self.name)
        if known:
            fits = next((k for k in known if k.rows == len(self) and k.videos in (None, distinct)), None)
            found["published"] = {
                "rows": [each.rows for each in known],
                "agrees": fits is not None,
                "which": fits.what if fits else None,
            }
        return found


def video_of(example: Example) -> str:
    """What makes two rows be of one video: the file, whatever part of it; of still frames the first."""
    frames = example.clip.frames
    return f"{example.clip.path}/{frames[0]}" if frames else str(example.clip.path)


def texts_of(example: Example) -> tuple[str, ...]:
    """The captions of a row, or its question."""
    return example.captions or ((example.question,) if example.question else ())


def hashes(values: array[int]) -> NDArray[np.int64]:
    """The hashes as an array, without a copy."""
    return np.frombuffer(values, dtype=np.int64) if len(values) else np.zeros(0, dtype=np.int64)


def repeats(values: array[int]) -> int:
    """How many of the hashes were there before."""
    return len(values) - int(np.unique(hashes(values)).size)


def repeated(values: array[int]) -> Callable[[int], bool]:
    """Whether a hash comes more than once."""
    each, times = np.unique(hashes(values), return_counts=True)
    more = set(each[times > 1].tolist())
    return more.__contains__
