"""The words of the house: the dimension legend and the values that flow.

Dimension legend, used in every shape comment and docstring:

    B  clips in a batch            N  regions of a clip, N = T * h * w
    T  frames of a clip            L  word pieces of a text
    H  frame height, pixels        D  width of the fusion decoder
    W  frame width, pixels         d  width of a code
    h  cells per column            M  codes in the codebook
    w  cells per row               K  words, answers or choices

The values, in the order in which they flow:

    Clip      where the pixels are              (data.readers)
    Example   one row of an annotation file     (data.readers -> data.loader)
    Batch     pixels and rows, collated         (data.loader -> tasks)
    Text      word pieces, padded               (data.vocabulary -> model)
    Grid      how many regions a clip has       (model, masking)
    Encoded   e^V or e^L of Eq. 1               (model.encode_* -> model.fuse)
    Fused     h^CLS, h^L, h^V of Eq. 2          (model.fuse -> heads)
    Quantized codes of Eq. 4                    (model.tokenizer)
    Losses    named scalars                     (tasks -> trainer)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Clip:
    """Where the pixels of a sample are: a video file, a part of one, or still frames.

    Attributes:
        path: a video file; a folder of frames; or a tar file of frames or videos.
        start, end: seconds within the file; ``end`` None means to its end.
        frames: names of still images within ``path`` (a folder or a tar), in order of time; of one video within a tar;
            empty for a video file.
    """

    path: Path
    start: float = 0.0
    end: float | None = None
    frames: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """A string equal for equal clips: the key of every cache of frames or labels."""
        part = f"#{self.start:g}-{'' if self.end is None else format(self.end, 'g')}" if self.start or self.end else ""
        members = f"!{self.frames[0]}+{len(self.frames)}" if self.frames else ""
        return f"{self.path.as_posix()}{part}{members}"


@dataclass(frozen=True, slots=True)
class Example:
    """One row of an annotation file, whatever the file's format was.

    Attributes:
        key: identifies the row within its split (question id, video id, line).
        video: the id of the video in its data set; several rows may share one.
        clip: where its pixels are.
        captions: sentences that describe the clip; training draws one of them, evaluation takes the first.
        question: the question of a QA or choice row, else None.
        answer: the answer of an open-ended question, else None.
        choices: the options of a choice row, else empty.
        label: the index of the right choice, or of the class, else None.
        kind: a group to report separately (question type, class name), else None.
        temporal: whether the answer hangs on the order of the frames; None where the annotations do not say.
    """

    key: str
    video: str
    clip: Clip
    captions: tuple[str, ...] = ()
    question: str | None = None
    answer: str | None = None
    choices: tuple[str, ...] = ()
    label: int | None = None
    kind: str | None = None
    temporal: bool | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """Padded word pieces.

    Attributes:
        ids: (B, L) int64.
        mask: (B, L) bool, True where there is a word piece, False in the padding.
        starts: (B, L) bool, True on the first piece of each whole word (never on special tokens or padding).
    """

    ids: Tensor
    mask: Tensor
    starts: Tensor

    def to(self, device: torch.device) -> Text:
        return Text(self.ids.to(device), self.mask.to(device), self.starts.to(device))

    def __len__(self) -> int:
        return self.ids.shape[0]


@dataclass(frozen=True, slots=True)
class Batch:
    """What a task sees.

    Attributes:
        examples: the rows, for their keys, answers and choices.
        frames: (B, T, 3, H, W) uint8.
        seeds: (B,) int64, one a sample, derived from (seed, epoch, sample): the root of every random choice about it.
        readable: (B,) bool, False where the video gave no frames: evaluation counts those as wrong, and in training
            there are none.
        labels: (B, T, h, w) int64 cached labels of the video tokenizer, or None.
        features: (B, T, h, w, C) what the frozen backbone sees in ``frames``, or None.
    """

    examples: tuple[Example, ...]
    frames: Tensor
    seeds: Tensor
    readable: Tensor
    labels: Tensor | None = None
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def own_seeds(self) -> list[int]:
        """``seeds`` as plain numbers."""
        return [int(seed) for seed in self.seeds]

    def pinned(self) -> Batch:
        """The batch in page-locked memory, from which copies to a GPU need not be waited for."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on ``device``; seeds stay on the CPU, where they are used."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pieces(self, count: int) -> list[Batch]:
        """The batch in ``count`` consecutive pieces of one size."""
        if count == 1:
            return [self]
        size = len(self) // count
        return [self._rows(slice(start, start + size)) for start in range(0, size * count, size)]

    def _rows(self, rows: slice) -> Batch:
        piece = self._each(lambda tensor: tensor[rows])
        return replace(piece, examples=self.examples[rows], seeds=self.seeds[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with all tensors but the seeds changed."""
        return replace(
            self,
            frames=change(self.frames),
            readable=change(self.readable),
            labels=None if self.labels is None else change(self.labels),
            features=None if self.features is None else change(self.features),
        )


class Grid(NamedTuple):
    """The regions of a clip: T frames of h x w cells."""

    frames: int
    height: int
    width: int

    @property
    def patches(self) -> int:
        """N = T * h * w."""
        return self.frames * self.height * self.width

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True, slots=True)
class Encoded:
    """One modality as the fusion transformer takes it (Eq. 1).

    Attributes:
        tokens: (B, N, D) patches or (B, L, D) word pieces.
        mask: (B, L) bool, True where there is a token; None when there is no padding.
        grid: how the N patches lie; None for text.
        pooled: (B, C) mean backbone feature of a video, or (B, 2 d) pooled word pieces of a text, for embeddings; None
            unless the model has ``pooled_skip``.
    """

    tokens: Tensor
    mask: Tensor | None = None
    grid: Grid | None = None
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Encoded:
        """The given rows of the batch: encode once, fuse with other partners."""
        mask, pooled = (None if each is None else each[rows] for each in (self.mask, self.pooled))
        return Encoded(self.tokens[rows], mask, self.grid, pooled)


@dataclass(frozen=True, slots=True)
class Fused:
    """The fusion decoder's answer (Eq. 2).

    Attributes:
        cls: (B, D).
        text: (B, L, D), or None when no text went in.
        video: (B, N, D), or None when no video went in.
    """

    cls: Tensor
    text: Tensor | None
    video: Tensor | None


@dataclass(frozen=True, slots=True)
class Quantized:
    """The quantizer's answer (Eq. 4).

    Attributes:
        codes: (..., d) the chosen codes; the gradient passes straight through to the encoder.
        labels: (...) int64 index of each chosen code.
        loss_codebook: scalar, second term of Eq. 7 (zero where an EMA moves the codes instead, and the divergence from
            even use where codes are drawn).
        loss_commitment: scalar, third term of Eq. 7.
    """

    codes: Tensor
    labels: Tensor
    loss_codebook: Tensor
    loss_commitment: Tensor


@dataclass(slots=True)
class Losses:
    """Named scalars; ``total`` is the one that is minimised.

    Attributes:
        total: the scalar to call ``backward`` on.
        parts: what it is made of, and anything else worth logging, detached.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=lambda: {})
