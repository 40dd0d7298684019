"""Inputs and results of an ``Embedder``: videos however they are named, embeddings with a status, answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.data import sampling
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image

    from evilm.data.video import DecoderPool
    from evilm.errors import VideoStatus

    Video = str | Path | tuple[str | Path, float, float | None] | Clip
    Picture = str | Path | bytes | Image | NDArray[np.uint8]


def to_clip(video: Video) -> Clip:
    """A path, a (path, start, end) in seconds, or a ``Clip``, as a ``Clip``."""
    if isinstance(video, Clip):
        return video
    if isinstance(video, tuple):
        path, start, end = video
        return Clip(Path(path), float(start), None if end is None else float(end))
    return Clip(Path(video))


def sampled_times(clip: Clip, count: int, decoders: DecoderPool) -> tuple[float, ...]:
    """The times of the ``count`` sampled frames: seconds in the file, or frame numbers for a clip of still images.

    Raises:
        VideoError: the video cannot be opened.
    """
    if clip.frames:
        return tuple(float(i) for i in sampling.pick_frames(len(clip.frames), count))
    duration = decoders.duration(clip.path)
    end = duration if clip.end is None else min(clip.end, duration)
    return tuple(float(t) for t in sampling.frame_times(count, max(end - clip.start, 0.0), None, clip.start))


@dataclass(frozen=True, slots=True)
class VideoEmbeddings:
    """Embeddings of n videos.

    Attributes:
        vectors: (n, d) float32, l2-normalised; a row of zeros where the video could not be read.
        statuses: (n,) ``ok``, or another of ``errors.VideoStatus``.
        problems: (n,) one line that explains a status other than ``ok``, else empty.
    """

    vectors: NDArray[np.float32]
    statuses: tuple[VideoStatus, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a question about a video.

    Attributes:
        answer: the most probable answer.
        probability: its probability among all candidates.
        confident: False if the probability is below ``threshold``; the answer is then "cannot tell".
        threshold: set on validation data; None if it was never set, and every answer is then ``confident``.
        candidates: the five most probable answers with their probabilities, best first.
        times: (T,) seconds of the frames; frame numbers for a clip of still images.
        attention: (T, h, w) share of the attention on each patch; sums to 1. None where the answer needed no fusion.
    """

    answer: str
    probability: float
    confident: bool
    threshold: float | None
    candidates: tuple[tuple[str, float], ...]
    times: tuple[float, ...]
    attention: NDArray[np.float32] | None

    def attended_frames(self) -> list[tuple[float, float, tuple[float, float]]]:
        """For each frame: its time, its share of the attention, and the place of the most attended patch.

        The place is (row, column) of the patch's centre, as fractions of the frame's height and width. Without
        attention there are none.
        """
        rows: list[tuple[float, float, tuple[float, float]]] = []
        if self.attention is None:
            return rows
        for time, patches in zip(self.times, self.attention, strict=True):
            row, column = divmod(int(patches.argmax()), patches.shape[1])
            place = ((row + 0.5) / patches.shape[0], (column + 0.5) / patches.shape[1])
            rows.append((time, float(patches.sum()), place))
        return rows

    def as_json(self) -> dict[str, Any]:
        """The answer as JSON values; ``answer`` is None where the model is not confident."""
        return {
            "answer": self.answer if self.confident else None,
            "best_guess": self.answer,
            "probability": self.probability,
            "threshold": self.threshold,
            "candidates": [{"answer": name, "probability": value} for name, value in self.candidates],
            "frames": [
                {"time": time, "attention": value, "row": row, "column": column}
                for time, value, (row, column) in self.attended_frames()
            ],
        }


def join_question(question: str | None, option: str) -> str:
    """A choice as one text, as the task ``multiple_choice`` reads it: the question if there is one, then the option."""
    return f"{question} {option}" if question else option


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (K,) to probabilities."""
    powers = np.exp(logits.astype(np.float64) - float(logits.max()))
    return (powers / powers.sum()).astype(np.float32)


def rank_names(names: Sequence[str], probabilities: NDArray[np.float32]) -> tuple[tuple[str, float], ...]:
    """Names with their probabilities, highest first."""
    return tuple((names[int(k)], float(probabilities[k])) for k in np.argsort(-probabilities, kind="stable"))
