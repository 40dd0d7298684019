"""Distillation: match a teacher's embeddings of videos, with or without captions, and of texts if there are captions.

Not in the paper. The teacher is any dual encoder, an E-ViLM checkpoint with an embedding head or a CLIP-like model, or
a sentence encoder, which teaches texts alone (see ``evilm.encoders``). The loss is one minus the cosine of each
embedding with the teacher's of the same video or text, as the feature distillation of CLIP-KD (Yang et al., CVPR 2024),
which takes the squared distance of unit vectors, two minus twice the cosine. A relational term among videos made a
student worse (R@10 94.6 to 85.0, mean of 5 seeds, a small perceptron on cached features).

The teacher sees T frames from the whole clip at its own size; the student sees the frames that training samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field

from evilm import distributed, losses, metrics
from evilm.data.teacher_targets import TeacherTargets
from evilm.errors import CheckpointError, ConfigError, DependencyError
from evilm.model.heads import EmbeddingHead
from evilm.progress import Meter
from evilm.tasks.batches import caption_of
from evilm.tasks.predictions import Metrics, Prediction, scored_rows
from evilm.tasks.settings import TaskConfig, TextTaskConfig
from evilm.tasks.task import Facts, Parts, Teacher, VideoTextTask
from evilm.types import Losses

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.types import Batch, Example


class DistillConfig(TextTaskConfig):
    """Settings of the teacher and of the distillation losses."""

    name: Literal["distill"] = "distill"
    teacher: str = Field(description="run or checkpoint with embeddings, or a name such as open_clip:ViT-B-32:openai")
    text_weight: float = Field(default=1.0, ge=0, description="factor on the loss of texts; 0 ignores captions")

    def scoring_head(self) -> Literal["match", "embed"]:
        return "embed"


class Distill(VideoTextTask):
    """Train a student to give the embeddings of a teacher.

    Args:
        model, vocabulary, facts: see ``VideoTextTask``.
        config: the settings.
        teacher: None for a restored checkpoint whose teacher no longer exists.
    """

    name: ClassVar[str] = "distill"
    title: ClassVar[str] = "Distillation"
    config_class: ClassVar[type[TaskConfig]] = DistillConfig
    primary_metric: ClassVar[str] = "cosine"
    uses_relevance: ClassVar[bool] = True

    def __init__(
        self, model: EViLM, vocabulary: Vocabulary, config: DistillConfig, facts: Facts, teacher: Teacher | None
    ) -> None:
        super().__init__(model, vocabulary, facts, config.max_text_len)
        self.config, self.texts = config, bool(facts["texts"])
        self.videos = bool(facts.get("videos", True))
        self.embed = EmbeddingHead.for_model(model, int(facts["embed_dim"]), float(facts["temperature"]))
        self.embed.log_temperature.requires_grad_(False)  # the temperature of the teacher's space
        if not self.texts:
            self.leave_out(self.embed, "text")
        if not self.videos:
            self.leave_out(self.embed, "video")
        # The teacher is no module, so that its weights are neither trained nor saved.
        self.teacher = teacher
        self.targets: TeacherTargets | None = None
        self._text_targets: dict[str, NDArray[np.float32]] = {}

    @classmethod
    def create(cls, config: DistillConfig, examples: Sequence[Example], parts: Parts) -> Self:
        teacher = parts.load_teacher(config.teacher)
        texts = config.text_weight > 0 and teacher.reads and any(example.captions for example in examples)
        if not (teacher.sees or texts):
            raise ConfigError(
                f"{config.teacher}: teaches texts alone, and there are none: use rows with captions and set "
                "task.text_weight above 0"
            )
        facts = {
            "teacher": teacher.fingerprint, "embed_dim": teacher.embed_dim, "temperature": teacher.temperature,
            "texts": texts, "videos": teacher.sees,
        }  # fmt: skip
        assert parts.model is not None
        assert parts.vocabulary is not None
        return cls(parts.model, parts.vocabulary, config, facts, teacher)

    @classmethod
    def restore(cls, config: DistillConfig, facts: Facts, parts: Parts) -> Self:
        """The teacher is loaded if it still exists; it must be the one of the training."""
        try:
            teacher = parts.load_teacher(config.teacher)
        except (CheckpointError, DependencyError):
            teacher = None
        if teacher is not None and teacher.fingerprint != facts["teacher"]:
            raise CheckpointError(
                f"{config.teacher}: is not the teacher that this model learned from: name that one in task.teacher"
            )
        assert parts.model is not None
        assert parts.vocabulary is not None
        return cls(parts.model, parts.vocabulary, config, facts, teacher)

    @property
    def needs_frames(self) -> bool:
        return self.videos

    def prepare(self, examples: Sequence[Example], cache: Path | None, workers: int) -> None:
        """Embed the clips of some rows by the teacher; vectors are stored in ``cache``, else in memory."""
        if self.teacher is None or not self.videos:
            return
        if self.targets is None:
            self.targets = TeacherTargets(self.teacher, cache)
        clips = [example.clip for example in examples]
        with Meter("embedding by the teacher", len(self.targets.missing(clips)), "clips") as meter:
            for problem in self.targets.fill(clips, workers, meter.update)[:5]:
                meter.console.print(f"unreadable: {problem}", highlight=False, markup=False, soft_wrap=True)

    def losses(self, batch: Batch) -> Losses:
        parts: dict[str, Tensor] = {}
        if self.videos:
            targets, known = self._video_targets(batch)
            video, targets, known = (distributed.all_gather(each) for each in (self._video(batch), targets, known))
            parts["cosine"] = losses.feature_distillation(video, targets, known)
        if self.texts:
            captions = self.captions(batch)
            has_text = torch.tensor([bool(text) for text in captions], device=batch.frames.device)
            text, text_targets, has_text = (
                distributed.all_gather(each)
                for each in (self._text(captions, batch), self._targets_of_texts(captions, batch), has_text)
            )
            parts["text"] = losses.feature_distillation(text, text_targets, has_text)
        weights = {"text": self.config.text_weight}
        total = torch.stack([weights.get(name, 1.0) * loss for name, loss in parts.items()]).sum()
        return Losses(total, {name: loss.detach() for name, loss in parts.items()})

    def _video(self, batch: Batch) -> Tensor:
        """(B, d) the student's embeddings of the videos."""
        return self.embed.video(self.model, self.encode(batch))

    def _text(self, captions: Sequence[str], batch: Batch) -> Tensor:
        """(B, d) the student's embeddings of captions; rows without a caption are not used."""
        return self.embed.text(self.model, self.model.encode_text(self.text(captions, batch)))

    def _video_targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's embeddings (B, d), and the rows that have one (B,)."""
        if self.targets is None:
            raise CheckpointError(f"{self.config.teacher}: the teacher cannot be loaded: set task.teacher to its place")
        vectors, known = self.targets.read([example.clip for example in batch.examples])
        device = batch.frames.device
        return torch.from_numpy(vectors).to(device), torch.from_numpy(known).to(device)

    def _targets_of_texts(self, captions: Sequence[str], batch: Batch) -> Tensor:
        """(B, d) the teacher's embeddings of captions, each text embedded once; zeros for rows without a caption."""
        assert self.teacher is not None
        new = [text for text in dict.fromkeys(captions) if text and text not in self._text_targets]
        if new:
            self._text_targets |= dict(zip(new, self.teacher.embed_texts(new), strict=True))
        missing = np.zeros(self.teacher.embed_dim, dtype=np.float32)
        rows = np.stack([self._text_targets.get(text, missing) for text in captions])
        return torch.from_numpy(rows).to(batch.frames.device)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        if not self.videos:
            return self._predict_texts(batch)
        assert self.teacher is not None or self.targets is None
        targets, known = (each.cpu().numpy() for each in self._video_targets(batch))
        values: dict[str, NDArray[np.float32]] = {"video": self._video(batch).cpu().numpy(), "target": targets}
        captions = [caption_of(example, None) for example in batch.examples]
        if self.teacher is not None and self.teacher.reads:
            values["text_target"] = self._targets_of_texts(captions, batch).cpu().numpy()
        if self.texts:
            values["text"] = self._text(captions, batch).float().cpu().numpy()
        return [
            Prediction(example, bool(ok and has_target), {name: rows[i] for name, rows in values.items()})
            for i, (example, ok, has_target) in enumerate(zip(batch.examples, batch.readable, known, strict=True))
        ]

    def _predict_texts(self, batch: Batch) -> list[Prediction]:
        """The embeddings of each row's first caption, by the student and by a teacher of texts."""
        captions = [caption_of(example, None) for example in batch.examples]
        text, target = (
            each.float().cpu().numpy()
            for each in (self._text(captions, batch), self._targets_of_texts(captions, batch))
        )
        rows = zip(batch.examples, text, target, strict=True)
        return [Prediction(example, True, {"video": own, "target": wanted}) for example, own, wanted in rows]

    def compute_metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Cosine to the teacher, and retrieval by the student's embeddings (of texts, by a teacher of texts).

        ``R@k`` retrieves the teacher's video by the student's, over the whole split. ``text_R@k``, if every row has a
        caption, retrieves the student's video by a text: embedded by the student if it learned texts, else by the
        teacher. ``details`` holds the teacher's own text-to-video metrics on the same rows.
        """
        readable = np.array([p.readable for p in predictions])
        video, targets = (_stacked(predictions, name) for name in ("video", "target"))
        cosines = np.where(readable, (video * targets).sum(1), 0.0)
        own = np.eye(len(predictions), dtype=bool) & readable[:, None]
        scores = np.where(readable[None], video @ targets.T, -1e9)
        found = {"cosine": 100 * float(cosines.mean())} | metrics.retrieval(scores, own)
        chance = {"cosine": 0.0} | metrics.chance_retrieval(own)
        details: dict[str, Any] = {}
        of = "videos" if self.videos else "texts"
        rule = f"{len(predictions)} {of}; cosine times 100; R@k: own embedding to the teacher's"
        if predictions and "text_target" in predictions[0].values and all(p.example.captions for p in predictions):
            relevant = self.relevance(predictions) & readable[None]
            texts = _stacked(predictions, "text" if self.texts else "text_target")
            for name, queries, videos in (
                ("text", texts, video),
                ("teacher", _stacked(predictions, "text_target"), targets),
            ):
                scores = np.where(readable[None], queries @ videos.T, -np.inf)
                values = {f"text_{key}": value for key, value in metrics.retrieval(scores, relevant).items()}
                if name == "text":
                    found |= values
                    chance |= {f"text_{key}": value for key, value in metrics.chance_retrieval(relevant).items()}
                else:
                    details["teacher"] = values
            rule += f"; text_R@k: the {'student' if self.texts else 'teacher'}'s texts to the student's videos"
        rows = scored_rows(predictions, np.clip(cosines, 0, 1).tolist(), {"cosine": cosines.tolist()})
        return Metrics(found, chance, rule, rows, details)


def _stacked(predictions: Sequence[Prediction], name: str) -> NDArray[np.float64]:
    """(n, d) the value called ``name`` of all rows."""
    return np.stack([p.values[name] for p in predictions]).astype(np.float64)
