"""Shared dataclasses, and the letters for dimensions.

Dimensions in shape comments and docstrings:

    B  clips in a batch            N  patches of a clip, N = T * h * w
    T  frames of a clip            L  word pieces of a text
    H  frame height, pixels        D  width of the fusion transformer
    W  frame width, pixels         d  width of a code
    h  patches per column          M  codes in the codebook
    w  patches per row             K  words, answers or choices

The dataclasses, in the order of use:

    Clip      location of a sample's pixels     (data.readers)
    Example   one row of an annotation file     (data.readers -> data.loader)
    Batch     frames and rows                   (data.loader -> tasks)
    Text      word pieces, padded               (data.vocabulary -> model)
    Grid      numbers of patches of a clip      (model, masking)
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
    """Location of a sample's pixels: a video file, a part of one, or still frames.

    Attributes:
        path: a video file, a folder of frames, or a tar file of frames or videos.
        start, end: seconds within the file; None for ``end`` is the end of the file.
        frames: names of still images within ``path`` in order of time, or of one video within a tar; empty for a video
            file.
    """

    path: Path
    start: float = 0.0
    end: float | None = None
    frames: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """A string that is equal for equal clips, the key of all caches."""
        part = f"#{self.start:g}-{'' if self.end is None else format(self.end, 'g')}" if self.start or self.end else ""
        members = f"!{self.frames[0]}+{len(self.frames)}" if self.frames else ""
        return f"{self.path.as_posix()}{part}{members}"


@dataclass(frozen=True, slots=True)
class Example:
    """One row of an annotation file of any format.

    Attributes:
        key: identifies the row within its split (question id, video id, line).
        video: id of the video in its data set; several rows may share it.
        clip: location of the pixels.
        captions: sentences that describe the clip; training draws one of them, evaluation takes the first.
        question: of a question-answering or multiple-choice row, else None.
        answer: of an open-ended question, else None.
        choices: options of a multiple-choice row, else empty.
        label: index of the right choice, or of the class, else None.
        kind: group for separate metrics (question type, class name), else None.
        temporal: whether the answer depends on the order of the frames; None if unknown.
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
        starts: (B, L) bool, True on the first piece of each word, False on special tokens and padding.
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
    """Input of a task.

    Attributes:
        examples: the rows, with their texts and labels.
        frames: (B, T, 3, H, W) uint8.
        seeds: (B,) int64, one per sample, derived from (seed, epoch, sample); all random choices about it use it.
        readable: (B,) bool, False without frames: evaluation counts the row as wrong, training replaces it.
        labels: (B, T, h, w) int64 cached labels of the video tokenizer, or None.
        features: (B, T, h, w, C) cached features of the frozen backbone on ``frames``, or None.
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
        """``seeds`` as integers."""
        return [int(seed) for seed in self.seeds]

    def pinned(self) -> Batch:
        """The batch in page-locked memory, which allows asynchronous copies to a GPU."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on ``device``; seeds stay on the CPU, where they are used."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pieces(self, count: int) -> list[Batch]:
        """The batch in ``count`` consecutive pieces of equal size."""
        if count == 1:
            return [self]
        size = len(self) // count
        return [self._rows(slice(start, start + size)) for start in range(0, size * count, size)]

    def _rows(self, rows: slice) -> Batch:
        piece = self._each(lambda tensor: tensor[rows])
        return replace(piece, examples=self.examples[rows], seeds=self.seeds[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with ``change`` applied to all tensors but the seeds."""
        return replace(
            self,
            frames=change(self.frames),
            readable=change(self.readable),
            labels=None if self.labels is None else change(self.labels),
            features=None if self.features is None else change(self.features),
        )


class Grid(NamedTuple):
    """Numbers of patches of a clip: T frames of h x w patches."""

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
            unless embeddings use them (``ModelConfig.embedding``).
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
    """Output of the fusion transformer (Eq. 2).

    Attributes:
        cls: h^CLS (B, D).
        text: h^L (B, L, D), or None without a text.
        video: h^V (B, N, D), or None without a video.
    """

    cls: Tensor
    text: Tensor | None
    video: Tensor | None


@dataclass(frozen=True, slots=True)
class Quantized:
    """Output of the quantizer (Eq. 4).

    Attributes:
        codes: (..., d) the chosen codes; their gradient is passed to the encoder unchanged.
        labels: (...) int64 index of each chosen code.
        loss_codebook: scalar, second term of Eq. 7 (zero if an EMA updates the codes; the divergence from uniform use
            if codes are drawn).
        loss_commitment: scalar, third term of Eq. 7.
    """

    codes: Tensor
    labels: Tensor
    loss_codebook: Tensor
    loss_commitment: Tensor


@dataclass(slots=True)
class Losses:
    """Losses of a batch.

    Attributes:
        total: the scalar that is minimised.
        parts: its terms by name, and other scalars to log, detached.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=lambda: {})
