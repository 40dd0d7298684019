"""Text-to-video retrieval (paper 4.1, 4.2; Tables 2 and 4): dual encoder, pairwise, and one re-ranking the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from evilm import distributed, losses, metrics
from evilm.errors import ConfigError
from evilm.model.heads import EmbeddingHead, MatchHead
from evilm.tasks.task import (
    Facts,
    Metrics,
    Prediction,
    TaskConfig,
    VideoTextTask,
    caption_of,
    everyone,
    own_rows,
    own_video,
    same_video,
    scored_rows,
)
from evilm.types import Encoded, Losses

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.types import Batch


class RetrievalConfig(TaskConfig):
    """How retrieval is tuned and ranked."""

    name: Literal["retrieval"] = "retrieval"
    contrastive_weight: float = Field(
        default=1.0, ge=0, description="weight of the dual encoder's loss; 0 has none, where every pair is fused"
    )
    vtm_weight: float = Field(
        default=0.0, ge=0, description="weight of matching against the hardest other texts, for re-ranking"
    )
    protocol: Literal["dual-encoder", "pairwise", "re-rank"] = "dual-encoder"
    rerank_top_k: int = Field(
        default=32, gt=0, description="candidates of the dual encoder that re-rank fuses with the text"
    )
    captions_per_video: int = Field(
        default=1, gt=0, description="captions of each video in a step: the video is encoded once for all of them"
    )
    focal_gamma: float = Field(default=0.0, ge=0, description="gamma of a focal loss: easy rows count less")
    max_text_len: int = Field(default=30, gt=2)
    embed_dim: int = Field(default=512, gt=0)
    temperature: float = Field(default=0.05, gt=0, description="start of the learned temperature")


class Retrieval(VideoTextTask):
    """Rank videos for a text."""

    name: ClassVar[str] = "retrieval"
    primary_metric: ClassVar[str] = "R@1"

    def __init__(self, model: EViLM, vocabulary: Vocabulary, config: RetrievalConfig, facts: Facts) -> None:
        super().__init__(model, vocabulary, config.max_text_len)
        self.config = config
        # A model that was only taught to match has no dual encoder, and ranking by pairs asks for none.
        self.embeds = config.contrastive_weight > 0 or config.protocol != "pairwise"
        if self.embeds:
            self.embed = EmbeddingHead.for_model(model, config.embed_dim, config.temperature)
        if config.vtm_weight or config.protocol != "dual-encoder":
            self.match = MatchHead(model.embed_dim)
        # Which candidates are right for which query; a row's own video, until someone knows better.
        self.relevance: Callable[[Sequence[Prediction]], NDArray[np.bool_]] = own_video

    def check_start(self, loaded: Collection[str]) -> None:
        """Refuse to rank by a head that nothing has trained and nothing will.

        Args:
            loaded: names of the tensors that came from the checkpoint that the run starts from.

        Raises:
            ConfigError: naming the head and what would train it.
        """
        for head, weight, used in (
            ("match", self.config.vtm_weight, self.config.protocol != "dual-encoder"),
            ("embed", self.config.contrastive_weight, self.config.protocol != "pairwise"),
        ):
            if used and not weight and not any(name.startswith(f"{head}.") for name in loaded):
                setting = "vtm_weight" if head == "match" else "contrastive_weight"
                raise ConfigError(
                    f"task.protocol = {self.config.protocol!r} ranks by the {head!r} head, which is random: `start` "
                    f"has none and task.{setting} = 0 does not train it; set task.{setting}=1, or start from a model "
                    f"pre-trained with {setting}"
                )
        if not (self.config.vtm_weight or self.config.contrastive_weight):
            raise ConfigError("task.vtm_weight and task.contrastive_weight are both 0: nothing would be learned")

    def losses(self, batch: Batch) -> Losses:
        count = self.config.captions_per_video
        video = self.encode(batch)
        text = self.model.encode_text(self.text(self.several_captions(batch, count), batch))  # count rows a video
        parts: dict[str, Tensor] = {}
        same = same_video(batch)
        alike = same.repeat_interleave(count, 1)  # (videos, texts) of the global batch
        if self.embeds:
            v, t = self.embed_encoded(video, text)
            v, t = distributed.all_gather(v), distributed.all_gather(t)
            parts["contrastive"] = losses.contrastive(v, t, self.embed.temperature, same, self.config.focal_gamma)
            closeness = (v @ t.T).detach()
        else:  # nothing can tell which texts are hard: any
            closeness = distributed.broadcast(torch.rand(alike.shape, device=same.device))
        if self.config.vtm_weight:
            hardest = own_rows(closeness.masked_fill(alike, -2.0), batch).argmax(1)
            right = self.match(self.model.fuse_cls(video, text[::count]))  # the first of its captions
            wrong = self.match(self.model.fuse_cls(video, everyone(text)[hardest]))
            parts["vtm"] = losses.binary_matching(torch.stack([right, wrong], 1))
        weights = {"contrastive": self.config.contrastive_weight, "vtm": self.config.vtm_weight}
        total = torch.stack([weights[name] * loss for name, loss in parts.items()]).sum()
        return Losses(total, {name: loss.detach() for name, loss in parts.items()})

    def embed_encoded(self, video: Encoded, text: Encoded) -> tuple[Tensor, Tensor]:
        """(B, 512) each, l2-normalised, from one-modality fusion."""
        return (
            self.embed.video(self.model.fuse_cls(video=video), video.pooled),
            self.embed.text(self.model.fuse_cls(text=text), text.pooled),
        )

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        video, text = self.encode(batch), self.model.encode_text(self.text(self.captions(batch), batch))
        values: list[dict[str, Any]] = [{} for _ in range(len(batch))]
        if self.config.protocol != "pairwise":
            v, t = self.embed_encoded(video, text)
            values = [{"video": v[i].cpu().numpy(), "text": t[i].cpu().numpy()} for i in range(len(batch))]
        if self.config.protocol != "dual-encoder":
            assert video.grid is not None
            assert text.mask is not None
            for i, row in enumerate(values):
                row["regions"] = video.tokens[i].half().cpu().numpy()
                row["grid"] = np.array(video.grid)
                row["pieces"] = text.tokens[i][text.mask[i]].half().cpu().numpy()
        rows = zip(batch.examples, batch.readable, values, strict=True)
        return [Prediction(example, bool(ok), value) for example, ok, value in rows]

    def compute_metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """R@1/5/10 and median rank, both directions."""
        scores = self._scores(predictions)
        unreadable = np.array([not p.readable for p in predictions])
        scores[:, unreadable] = -np.inf  # a video without frames is found by nobody
        relevant = self.relevance(predictions)
        found = metrics.retrieval(scores, relevant & ~unreadable[None])
        back = metrics.retrieval(np.where(np.isfinite(scores.T), scores.T, -1e9), relevant.T & ~unreadable[:, None])
        ranks = metrics.ranks(scores, relevant & ~unreadable[None])
        first = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        videos = [p.example.video for p in predictions]
        texts = [caption_of(p.example, None) for p in predictions]
        columns: dict[str, list[Any]] = {
            "text": texts,
            "rank": ranks.tolist(),
            "first": [[videos[j] for j in row] for row in first],
        }
        rule = {
            "dual-encoder": "dual encoder",
            "pairwise": "every pair fused",
            "re-rank": f"dual encoder, first {self.config.rerank_top_k} re-ranked by fusion",
        }[self.config.protocol]
        return Metrics(
            metrics=found | {f"v2t_{name}": value for name, value in back.items()},
            chance=metrics.chance_retrieval(relevant),
            rule=f"{rule}; {len(predictions)} texts x {len(predictions)} videos; ties at chance",
            rows=scored_rows(predictions, metrics.hits(scores, relevant & ~unreadable[None], 1).tolist(), columns),
        )

    def _scores(self, predictions: Sequence[Prediction]) -> NDArray[np.float64]:
        """(texts, videos)."""
        if self.config.protocol == "pairwise":
            every = np.arange(len(predictions))
            return np.stack([self._fused(predictions, row, every) for row in range(len(predictions))])
        video, text = (np.stack([p.values[name] for p in predictions]) for name in ("video", "text"))
        cosine = (text @ video.T).astype(np.float64)
        if self.config.protocol == "dual-encoder":
            return cosine
        top = min(self.config.rerank_top_k, len(predictions))
        # Fused scores go above every cosine; below them, the order of the dual encoder stays.
        scores = cosine - 1e6
        for row, columns in enumerate(np.argsort(-cosine, axis=1, kind="stable")[:, :top]):
            scores[row, columns] = self._fused(predictions, row, columns)
        return scores

    @torch.no_grad()
    def _fused(self, predictions: Sequence[Prediction], row: int, columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """The match head's scores of one text with some videos."""
        device = next(self.match.parameters()).device
        pieces = torch.from_numpy(predictions[row].values["pieces"]).float().to(device)
        found: list[NDArray[np.float64]] = []
        for some in np.array_split(columns, max(1, len(columns) // 64)):
            regions: NDArray[np.float16] = np.stack([predictions[int(j)].values["regions"] for j in some])
            video = Encoded(torch.from_numpy(regions).float().to(device))
            cls = self.model.fuse_cls(video, Encoded(pieces.expand(len(some), -1, -1)))
            found.append(self.match(cls).double().cpu().numpy())
        return np.concatenate(found)
