"""What a task is: a batch in, named losses out; then predictions, and what they amount to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from evilm import distributed, losses, metrics
from evilm.config import Config
from evilm.data import sampling
from evilm.errors import ConfigError
from evilm.losses import IGNORE
from evilm.types import Encoded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.types import Batch, Example, Losses, Text

Facts = dict[str, Any]


class TaskConfig(Config):
    """The settings of a task; each task extends it beside its code and gives it a literal ``name`` of its own."""


@dataclass(slots=True)
class Prediction:
    """One row's outcome.

    Attributes:
        example: the row.
        readable: False when the video gave no frames: the row counts as wrong, whatever ``values`` say.
        values: what the task's ``summarise`` needs, as NumPy arrays or plain values.
    """

    example: Example
    readable: bool
    values: dict[str, Any]


@dataclass(slots=True)
class Metrics:
    """What predictions amount to.

    Attributes:
        metrics: names to numbers, in percent where they are shares.
        chance: the same metrics for an answer at random.
        rule: the rule behind the numbers, printed beside them.
        rows: one JSON-able row a prediction, with at least ``key``, ``readable`` and ``score`` in [0, 1].
        details: anything else worth keeping, JSON-able.
    """

    metrics: dict[str, float]
    chance: dict[str, float]
    rule: str
    rows: list[dict[str, Any]]
    details: dict[str, Any] = field(default_factory=lambda: {})


class Task(nn.Module, ABC):
    """Head, objective and metric around one model."""

    name: ClassVar[str]
    primary_metric: ClassVar[str]  # the metric by which a checkpoint is chosen; higher is better

    @abstractmethod
    def losses(self, batch: Batch) -> Losses:
        """The losses of a training batch."""

    @abstractmethod
    def predict(self, batch: Batch) -> list[Prediction]:
        """One prediction a row, without a gradient."""

    @abstractmethod
    def compute_metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Metrics of a whole split."""

    @classmethod
    def learn_facts(cls, config: Any, examples: Sequence[Example]) -> Facts:
        """What the task must know of its training split, JSON-able; kept in the checkpoint."""
        return {}


class VideoTextTask(Task):
    """A task on an E-ViLM.

    Args:
        model: the three verbs.
        vocabulary: its words.
        words: the longest text, in word pieces.
    """

    def __init__(self, model: EViLM, vocabulary: Vocabulary, words: int) -> None:
        super().__init__()
        if words > model.config.max_text_len:
            raise ConfigError(
                f"task.max_text_len = {words}: this model reads at most {model.config.max_text_len} word pieces"
            )
        self.model, self.vocabulary, self.words = model, vocabulary, words

    def text(self, texts: Sequence[str], batch: Batch) -> Text:
        """Texts as word pieces on the batch's device."""
        return self.vocabulary.encode(texts, self.words).to(batch.frames.device)

    def captions(self, batch: Batch) -> list[str]:
        """One caption a row: drawn in training, the first in evaluation."""
        pairs = zip(batch.examples, batch.own_seeds, strict=True)
        return [caption_of(example, seed if self.training else None) for example, seed in pairs]

    def several_captions(self, batch: Batch, count: int) -> list[str]:
        """``count`` captions a row, drawn in training, the first ones in evaluation; a row's follow one another."""
        pairs = zip(batch.examples, batch.own_seeds, strict=True)
        return [
            text for example, seed in pairs for text in captions_of(example, seed if self.training else None, count)
        ]

    def encode(self, batch: Batch) -> Encoded:
        """e^V of the batch's frames, unmasked; of its features, where these were computed before."""
        if batch.features is not None:
            return self.model.video_encoder.patches(batch.features)
        return self.model.encode_video(self.model.normalise(batch.frames))


def caption_of(example: Example, seed: int | None) -> str:
    """A caption of the row; an empty text where it has none."""
    if not example.captions:
        return ""
    return example.captions[0 if seed is None else sampling.derive_seed(seed, "caption") % len(example.captions)]


def captions_of(example: Example, seed: int | None, count: int) -> list[str]:
    """``count`` captions of the row, none twice while there are others; the first is that of ``caption_of``."""
    first = caption_of(example, seed)
    if count == 1 or len(example.captions) < 2:
        return [first] * count
    start = example.captions.index(first)
    rest = np.delete(np.arange(len(example.captions)), start)
    order = [start, *(rest if seed is None else sampling.generator(seed, "captions").permutation(rest)).tolist()]
    return [example.captions[order[i % len(order)]] for i in range(count)]


# What a loss over the global batch needs where several processes share it; see ``distributed``.


def predicted(logits: Tensor, labels: Tensor, focus: float = 0.0) -> Tensor:
    """``losses.masked_prediction`` whose mean over all processes is that of the global batch."""
    return losses.masked_prediction(logits, labels, distributed.all_reduce_mean((labels != IGNORE).sum()), focus)


def same_video(batch: Batch) -> Tensor:
    """(B, B) bool over the global batch: rows of the same video, whose captions are true of each other."""
    names = [sampling.derive_seed("video", example.video) for example in batch.examples]
    rows = distributed.all_gather(torch.tensor(names, device=batch.frames.device))
    return rows[:, None] == rows[None]


def everyone(text: Encoded) -> Encoded:
    """The texts of the global batch (B, L, D), those of shorter slices padded."""
    if distributed.world_size() == 1:
        return text
    assert text.mask is not None
    lack = distributed.all_reduce_max(text.mask.shape[1]) - text.mask.shape[1]
    tokens, mask = F.pad(text.tokens, (0, 0, 0, lack)), F.pad(text.mask, (0, lack))
    return Encoded(distributed.all_gather(tokens), distributed.all_gather(mask))


def own_rows(whole: Tensor, batch: Batch) -> Tensor:
    """The rows of this process out of those of the global batch."""
    return whole[distributed.rank() * len(batch) :][: len(batch)]


def own_video(predictions: Sequence[Prediction]) -> NDArray[np.bool_]:
    """(texts, videos): a text is true of its own video alone."""
    videos = np.array([p.example.video for p in predictions])
    return videos[:, None] == videos[None]


def scored_rows(
    predictions: Sequence[Prediction], scores: Sequence[float], columns: Mapping[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """The rows of a ``Summary``: key, video, kind, temporal, readable, score, then the task's columns."""
    rows: list[dict[str, Any]] = []
    for i, (prediction, score) in enumerate(zip(predictions, scores, strict=True)):
        example = prediction.example
        head = {
            "key": example.key,
            "video": example.video,
            "kind": example.kind,
            "temporal": example.temporal,
            "readable": prediction.readable,
            "score": float(score),
        }
        rows.append({**head, **{name: values[i] for name, values in columns.items()}})
    return rows


def cannot_tell(shares: Sequence[float], right: Sequence[bool]) -> Facts:
    """The threshold below which answers are withheld, set on a split's answers; JSON-able.

    Args:
        shares: the probability of each answer.
        right: whether it was right.
    """
    if not shares:
        return {}
    probability, answered, share = metrics.abstention(np.array(shares), np.array(right, dtype=bool))
    found = {"probability": probability, "answered": answered, "right": share, "samples": len(shares)}
    return {"cannot_tell": found}
