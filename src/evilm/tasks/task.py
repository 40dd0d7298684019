"""The interface of a task: what it trains and needs, its losses, its predictions and its metrics.

A task is one file. Everything that is special about it is stated there, so that the trainer, the evaluation, the export
and the reports treat all tasks alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, cast

from torch import nn

from evilm.data.teacher_targets import ClipEncoder
from evilm.errors import ConfigError, DataError
from evilm.tasks.batches import caption_of, captions_of
from evilm.tasks.predictions import own_video

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.model.heads import EmbeddingHead
    from evilm.model.tokenizer import VideoTokenizer
    from evilm.tasks.predictions import Metrics, Prediction
    from evilm.tasks.settings import TaskConfig
    from evilm.types import Batch, Encoded, Example, Losses, Text

Facts = dict[str, Any]  # JSON-able facts of the training split that a checkpoint needs, such as the list of answers


class Teacher(ClipEncoder, Protocol):
    """A frozen dual encoder that a student learns from; see ``evilm.training.teacher``."""

    @property
    def temperature(self) -> float:
        """Temperature of its cosines."""
        ...

    @property
    def sees(self) -> bool:
        """Whether it embeds videos."""
        ...

    @property
    def reads(self) -> bool:
        """Whether it embeds texts."""
        ...

    def embed_texts(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """Unit vectors (n, d) of sentences."""
        ...


@dataclass(frozen=True)
class Parts:
    """What a task may be built from.

    Attributes:
        model, vocabulary: an E-ViLM and its word pieces; None for tasks that train a video tokenizer.
        load_tokenizer: reads the trained video tokenizer of a checkpoint, frozen.
        load_teacher: reads a dual encoder by its name or checkpoint, frozen.
    """

    model: EViLM | None
    vocabulary: Vocabulary | None
    load_tokenizer: Callable[[Path], VideoTokenizer]
    load_teacher: Callable[[str], Teacher]


class Task(nn.Module, ABC):
    """A model with the head, the losses and the metrics of one task.

    Args:
        facts: what ``learn_facts`` returned; saved with each checkpoint.

    Class attributes:
        name: as recipes write it in ``task.name``.
        title: a heading for reports.
        config_class: its settings.
        primary_metric: the metric that ranks checkpoints; higher is better.
        is_tokenizer: whether it trains a video tokenizer and has no E-ViLM.
        accepts_features: whether cached features of a frozen backbone can replace the frames.
        frozen_model: whether only the head is trained.
        zero_shot: whether a checkpoint of another task can be evaluated as this one.
        measures_exports: whether ``predict_export`` is implemented; exports of other tasks are measured by retrieval.
        uses_relevance: whether its metrics depend on which videos are relevant for which text.
        required: what each row must have, in words; see ``lacks``.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    config_class: ClassVar[type[TaskConfig]]
    primary_metric: ClassVar[str]
    is_tokenizer: ClassVar[bool] = False
    accepts_features: bool = False
    frozen_model: ClassVar[bool] = False
    zero_shot: ClassVar[bool] = False
    measures_exports: ClassVar[bool] = False
    uses_relevance: ClassVar[bool] = False
    required: ClassVar[str] = ""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.facts = facts
        self.relevance: Callable[[Sequence[Prediction]], NDArray[np.bool_]] = own_video

    # How it is built.

    @classmethod
    @abstractmethod
    def create(cls, config: Any, examples: Sequence[Example], parts: Parts) -> Self:
        """Build the task for training on ``examples``."""

    @classmethod
    @abstractmethod
    def restore(cls, config: Any, facts: Facts, parts: Parts) -> Self:
        """Build the task that a checkpoint holds, ready to load its weights.

        Raises:
            KeyError: ``facts`` are of another task and lack what this one needs.
        """

    @classmethod
    def learn_facts(cls, config: Any, examples: Sequence[Example]) -> Facts:
        """What the task must know about its training split."""
        return {}

    @classmethod
    def zero_shot_settings(cls, source: TaskConfig, facts: Facts) -> dict[str, Any]:
        """Settings for evaluating a checkpoint of another task as this one; for tasks with ``zero_shot``.

        Args:
            source: the settings that the checkpoint was trained with.
            facts: of the checkpoint.
        """
        return {}

    def check_start(self, loaded: Collection[str]) -> None:
        """Check that every head that the task uses is trained or was loaded.

        Args:
            loaded: names of the tensors that came from the start checkpoint.

        Raises:
            ConfigError: a head is random and stays so.
        """

    # What it is fed with.

    @property
    @abstractmethod
    def clip_shape(self) -> tuple[int, int]:
        """Frames of a clip, and their height and width in pixels."""

    @property
    def needs_frames(self) -> bool:
        """Whether its batches hold frames."""
        return True

    @property
    def needs_pooled_only(self) -> bool:
        """Whether the mean of a frame's features is enough: it embeds videos without fusion, and does nothing else."""
        return False

    @property
    def fixed_frames(self) -> bool:
        """Whether a clip must show the same frames in every epoch."""
        return False

    @property
    def caches_labels(self) -> bool:
        """Whether the labels of ``target_tokenizer`` are computed once per cached frame, before training."""
        return False

    averages = False  # whether ``averaged`` values of several views will be averaged; the evaluation sets it

    @property
    def averaged(self) -> tuple[str, ...]:
        """Names of ``Prediction.values`` to average over several views of a video; none if it cannot use views."""
        return ()

    @staticmethod
    def lacks(example: Example) -> bool:  # noqa: ARG004, tasks with requirements override it
        """Whether a row lacks what ``required`` names."""
        return False

    @classmethod
    def check_rows(cls, examples: Sequence[Example], place: str) -> None:
        """Check that every row has what the task needs.

        Args:
            examples: the rows of a split.
            place: where the recipe names them, such as ``data.train``.

        Raises:
            DataError: names the first row that does not.
        """
        row = next((row for row in examples if cls.lacks(row)), None) if cls.required else None
        if row is not None:
            raise DataError(
                f"{place}: row {row.key} has no {cls.required}, which {cls.name} needs: set another {place}.reader"
            )

    def prepare(self, examples: Sequence[Example], cache: Path | None, workers: int) -> None:
        """Compute what the task needs for some rows before their first batch.

        Args:
            examples: rows of a split.
            cache: folder of the recipe for results that are kept; None keeps them in memory.
            workers: decoding processes.
        """

    # What it computes.

    @abstractmethod
    def losses(self, batch: Batch) -> Losses:
        """The losses of a training batch."""

    @abstractmethod
    def predict(self, batch: Batch) -> list[Prediction]:
        """One prediction per row, without gradients."""

    @abstractmethod
    def compute_metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Metrics of a whole split."""

    def predict_export(self, embedder: Any, examples: Sequence[Example], frames: NDArray[np.uint8]) -> list[Facts]:
        """``Prediction.values`` of rows by an exported model; for tasks with ``measures_exports``.

        Args:
            embedder: the model, an ``evilm.inference.Embedder``.
            examples: the rows.
            frames: (n, T, H, W, 3) of their clips.
        """
        raise NotImplementedError

    # What it holds.

    @property
    def model_and_vocabulary(self) -> tuple[EViLM, Vocabulary] | None:
        """The E-ViLM and its word pieces; None for tasks that train a video tokenizer."""
        return None

    @property
    def target_tokenizer(self) -> VideoTokenizer | None:
        """The video tokenizer whose labels the task predicts, if it predicts labels."""
        return None

    @property
    def video_tokenizer(self) -> VideoTokenizer | None:
        """The video tokenizer that the task trains, if it trains one."""
        return None


class VideoTextTask(Task):
    """A task on an E-ViLM.

    Args:
        model: the E-ViLM.
        vocabulary: its word pieces.
        facts: see ``Task``.
        max_text_len: longest text in word pieces.
    """

    accepts_features: bool = True

    def __init__(self, model: EViLM, vocabulary: Vocabulary, facts: Facts, max_text_len: int) -> None:
        super().__init__(facts)
        limit = model.config.max_text_len
        if max_text_len > limit:
            raise ConfigError(f"task.max_text_len = {max_text_len}: this model reads at most {limit} word pieces")
        self.model, self.vocabulary, self.max_text_len = model, vocabulary, max_text_len

    @classmethod
    def create(cls, config: Any, examples: Sequence[Example], parts: Parts) -> Self:
        return cls.restore(config, cls.learn_facts(config, examples), parts)

    @classmethod
    def restore(cls, config: Any, facts: Facts, parts: Parts) -> Self:
        constructor = cast("Callable[..., Self]", cls)  # each task's own: (model, vocabulary, config, facts)
        return constructor(parts.model, parts.vocabulary, config, facts)

    @property
    def clip_shape(self) -> tuple[int, int]:
        """Without frames one patch of one frame, as the loader needs a shape."""
        config = self.model.config
        return (config.num_frames, config.image_size) if self.needs_frames else (1, config.stride)

    def leave_out(self, embed: EmbeddingHead, side: Literal["video", "text"]) -> None:
        """Train nothing of one modality, and remove its half of the embedding head.

        A checkpoint with an untrained half would seem to rank that modality.
        """
        embed.remove(side)
        encoder, kind = {
            "video": (self.model.video_encoder, self.model.fusion.type_video),
            "text": (self.model.text_encoder, self.model.fusion.type_text),
        }[side]
        encoder.requires_grad_(False)
        kind.requires_grad_(False)

    @property
    def model_and_vocabulary(self) -> tuple[EViLM, Vocabulary] | None:
        return self.model, self.vocabulary

    def text(self, texts: Sequence[str], batch: Batch) -> Text:
        """Texts as word pieces on the batch's device."""
        return self.vocabulary.encode(texts, self.max_text_len).to(batch.frames.device)

    def captions(self, batch: Batch) -> list[str]:
        """One caption per row: drawn at random in training, the first one in evaluation."""
        pairs = zip(batch.examples, batch.own_seeds, strict=True)
        return [caption_of(example, seed if self.training else None) for example, seed in pairs]

    def several_captions(self, batch: Batch, count: int) -> list[str]:
        """``count`` consecutive captions per row: drawn at random in training, the first ones in evaluation."""
        pairs = zip(batch.examples, batch.own_seeds, strict=True)
        return [
            text for example, seed in pairs for text in captions_of(example, seed if self.training else None, count)
        ]

    def encode(self, batch: Batch) -> Encoded:
        """e^V of the batch's unmasked frames, or of their cached features."""
        if batch.features is not None:
            return self.model.video_encoder.patches(batch.features)
        return self.model.encode_video(self.model.normalise(batch.frames))
