"""Distillation: match a teacher's embeddings of videos that need no captions, and of texts where there are some.

Beyond the paper. The teacher is any dual encoder: an E-ViLM checkpoint with an embedding head, or CLIP and its kin
(see ``evilm.encoders``). Two terms, after CLIP-KD (Yang et al., CVPR 2024):

    cosine      each embedding to the teacher's of the same video (there the squared distance of unit vectors, which
                is two minus twice the cosine)
    relation    how alike videos of a batch are to one another, or to its texts, to how alike the teacher finds
                them, as a divergence of softmaxes

The teacher looks at its own frames of the whole clip, T middles at its own size; the student at what training shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import Field

from evilm import distributed, losses, metrics
from evilm.data.teacher_targets import FrameEncoder
from evilm.errors import CheckpointError, ConfigError
from evilm.model.heads import EmbeddingHead
from evilm.tasks.task import (
    Facts,
    Metrics,
    Prediction,
    TaskConfig,
    VideoTextTask,
    caption_of,
    own_video,
    scored_rows,
)
from evilm.types import Losses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evilm.data.teacher_targets import TeacherTargets
    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.types import Batch, Example


class Teacher(FrameEncoder, Protocol):
    """A frozen dual encoder; see ``evilm.training.teacher``."""

    @property
    def temperature(self) -> float:
        """Of its cosines."""
        ...

    @property
    def reads(self) -> bool:
        """Whether it embeds texts, too."""
        ...

    def embed_texts(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """Sentences to unit vectors (n, d)."""
        ...


class DistillConfig(TaskConfig):
    """Who teaches, and how closely it is followed."""

    name: Literal["distill"] = "distill"
    teacher: str = Field(description="a run or checkpoint with an embedding head, or a name as evilm.encoders takes it")
    cosine_weight: float = Field(default=1.0, ge=0, description="weight of following each embedding")
    relation_weight: float = Field(default=1.0, ge=0, description="weight of following likenesses within a batch")
    text_weight: float = Field(
        default=1.0, ge=0, description="weight of the same for texts, where captions and teacher have them"
    )
    temperature: float = Field(default=0.05, gt=0, description="of the likenesses")
    targets: str | None = Field(
        default=None, description="folder for the teacher's vectors; none takes data.cache, and without one memory"
    )
    max_text_len: int = Field(default=30, gt=2)


class Distill(VideoTextTask):
    """A student of a teacher's embeddings."""

    name: ClassVar[str] = "distill"
    primary_metric: ClassVar[str] = "cosine"

    def __init__(
        self, model: EViLM, vocabulary: Vocabulary, config: DistillConfig, facts: Facts, teacher: Teacher | None
    ) -> None:
        super().__init__(model, vocabulary, config.max_text_len)
        if not config.cosine_weight and not config.relation_weight:
            raise ConfigError("task.cosine_weight and task.relation_weight are both 0: nothing would be learned")
        self.config, self.texts = config, bool(facts["texts"])
        self.embed = EmbeddingHead.for_model(model, int(facts["width"]), float(facts["temperature"]))
        self.embed.log_temperature.requires_grad_(False)  # the teacher's, as the space is
        if not self.texts:  # nothing would train these
            self.embed.remove("text")
            model.text_encoder.requires_grad_(False)
            model.fusion.type_text.requires_grad_(False)
        # No modules of ours, so neither trained nor kept in checkpoints.
        self.teacher = teacher
        self.targets: TeacherTargets | None = None
        self.relevance: Callable[[Sequence[Prediction]], NDArray[np.bool_]] = own_video
        self._heard: dict[str, NDArray[np.float32]] = {}

    @staticmethod
    def facts(config: DistillConfig, examples: Sequence[Example], teacher: Teacher) -> Facts:
        """What a checkpoint remembers of its teacher, and whether texts were matched."""
        texts = config.text_weight > 0 and teacher.reads and any(example.captions for example in examples)
        return {
            "teacher": teacher.fingerprint,
            "width": teacher.embed_dim,
            "temperature": teacher.temperature,
            "texts": texts,
        }

    def losses(self, batch: Batch) -> Losses:
        config = self.config
        wanted, known = self._seen(batch)
        video, wanted, known = (distributed.all_gather(each) for each in (self._video(batch), wanted, known))
        parts = {"cosine": losses.following(video, wanted, known)}
        if not self.texts:
            parts["relation"] = losses.relation(video, wanted, None, config.temperature, known)
            weights = {"cosine": config.cosine_weight, "relation": config.relation_weight}
        else:
            captions = self.captions(batch)
            own = torch.tensor([bool(text) for text in captions], device=batch.frames.device)
            text, said, told = (
                distributed.all_gather(each) for each in (self._text(captions, batch), self._said(captions, batch), own)
            )
            parts["text"] = losses.following(text, said, told)
            parts["relation"] = losses.relation(video, wanted, (text, said), config.temperature, known & told)
            weights = {
                "cosine": config.cosine_weight,
                "text": config.text_weight * config.cosine_weight,
                "relation": config.relation_weight,
            }
        total = torch.stack([weights[name] * loss for name, loss in parts.items()]).sum()
        return Losses(total, {name: loss.detach() for name, loss in parts.items()})

    def _video(self, batch: Batch) -> Tensor:
        """(B, d) the student's embeddings."""
        video = self.encode(batch)
        return self.embed.video(self.model.fuse_cls(video=video), video.pooled)

    def _text(self, captions: Sequence[str], batch: Batch) -> Tensor:
        """(B, d) the student's embeddings of captions; those of rows without one are of no use."""
        text = self.model.encode_text(self.text(captions, batch))
        return self.embed.text(self.model.fuse_cls(text=text), text.pooled)

    def _seen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's embeddings (B, d), and for which rows there are some (B,)."""
        if self.targets is None:
            raise CheckpointError(f"{self.config.teacher}: the teacher is not at hand: name its place in task.teacher")
        vectors, known = self.targets.read([example.clip for example in batch.examples])
        device = batch.frames.device
        return torch.from_numpy(vectors).to(device), torch.from_numpy(known).to(device)

    def _said(self, captions: Sequence[str], batch: Batch) -> Tensor:
        """(B, d) the teacher's embeddings of captions, each text computed once; zeros where there is none."""
        assert self.teacher is not None
        new = [text for text in dict.fromkeys(captions) if text and text not in self._heard]
        if new:
            self._heard |= dict(zip(new, self.teacher.embed_texts(new), strict=True))
        nothing = np.zeros(self.teacher.embed_dim, dtype=np.float32)
        rows = np.stack([self._heard.get(text, nothing) for text in captions])
        return torch.from_numpy(rows).to(batch.frames.device)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        assert self.teacher is not None or self.targets is None
        wanted, known = (each.cpu().numpy() for each in self._seen(batch))
        values: dict[str, NDArray[np.float32]] = {"video": self._video(batch).cpu().numpy(), "wanted": wanted}
        captions = [caption_of(example, None) for example in batch.examples]
        if self.teacher is not None and self.teacher.reads:
            values["said"] = self._said(captions, batch).cpu().numpy()
        if self.texts:
            values["text"] = self._text(captions, batch).float().cpu().numpy()
        return [
            Prediction(example, bool(ok and there), {name: rows[i] for name, rows in values.items()})
            for i, (example, ok, there) in enumerate(zip(batch.examples, batch.readable, known, strict=True))
        ]

    def compute_metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """How near the student is to its teacher, and how well it finds what the teacher means.

        ``R@k`` takes each of the student's videos to the teacher's of the whole split. ``text_R@k``, where every row
        has a caption, takes texts to the student's videos: its own embeddings of them where it was taught texts, else
        the teacher's. ``details`` has the teacher's own text-to-video numbers on the same rows.
        """
        readable = np.array([p.readable for p in predictions])
        video, wanted = (_stacked(predictions, name) for name in ("video", "wanted"))
        cosines = np.where(readable, (video * wanted).sum(1), 0.0)
        own = np.eye(len(predictions), dtype=bool) & readable[:, None]
        scores = np.where(readable[None], video @ wanted.T, -1e9)
        found = {"cosine": 100 * float(cosines.mean())} | metrics.retrieval(scores, own)
        chance = {"cosine": 0.0} | metrics.chance_retrieval(own)
        details: dict[str, Any] = {}
        rule = f"{len(predictions)} videos; cosine times 100; R@k: own embedding to the teacher's, own video"
        if predictions and "said" in predictions[0].values and all(p.example.captions for p in predictions):
            relevant = self.relevance(predictions) & readable[None]
            texts = _stacked(predictions, "text" if self.texts else "said")
            for name, queries, videos in (("text", texts, video), ("teacher", _stacked(predictions, "said"), wanted)):
                among = np.where(readable[None], queries @ videos.T, -np.inf)
                there = {f"text_{key}": value for key, value in metrics.retrieval(among, relevant).items()}
                if name == "text":
                    found |= there
                    chance |= {f"text_{key}": value for key, value in metrics.chance_retrieval(relevant).items()}
                else:
                    details["teacher"] = there
            rule += f"; text_R@k: the {'student' if self.texts else 'teacher'}'s texts to the student's videos"
        rows = scored_rows(predictions, np.clip(cosines, 0, 1).tolist(), {"cosine": cosines.tolist()})
        return Metrics(found, chance, rule, rows, details)


def _stacked(predictions: Sequence[Prediction], name: str) -> NDArray[np.float64]:
    """(n, d) one of the values of all rows."""
    return np.stack([p.values[name] for p in predictions]).astype(np.float64)
