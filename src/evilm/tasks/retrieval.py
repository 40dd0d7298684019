"""Text-to-video retrieval (paper 4.1, 4.2; Tables 2 and 4): dual encoder, pairwise, and one re-ranking the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from evilm import distributed, losses, metrics
from evilm.errors import ConfigError
from evilm.model.heads import EmbeddingHead, MatchHead
from evilm.tasks import ranking
from evilm.tasks.batches import caption_of, gather_texts, local_rows, same_video
from evilm.tasks.predictions import Metrics, Prediction, own_video, scored_rows
from evilm.tasks.settings import PairTaskConfig, TaskConfig
from evilm.tasks.task import Facts, VideoTextTask
from evilm.types import Encoded, Losses

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.types import Batch, Example


class RetrievalConfig(PairTaskConfig):
    """Settings of retrieval training and ranking."""

    name: Literal["retrieval"] = "retrieval"
    protocol: Literal["dual-encoder", "pairwise", "re-rank"] = Field(
        default="dual-encoder", description="rank by cosine, by fusing every pair, or by fusing the nearest by cosine"
    )
    rerank_top_k: int = Field(default=32, gt=0, description="videos per text that re-rank fuses with the text")
    dual_softmax: float = Field(
        default=0.0, ge=0, description="temperature of a dual softmax over all queries of the evaluation; 0: none"
    )
    captions_per_video: int = Field(default=1, gt=0, description="captions per video and step; it is encoded once")
    scoring_protocol: ClassVar[str] = "retrieval-tuned"

    def scoring_head(self) -> Literal["match", "embed"]:
        return "embed" if self.protocol == "dual-encoder" else "match"


class Retrieval(VideoTextTask):
    """Rank videos for a text."""

    name: ClassVar[str] = "retrieval"
    title: ClassVar[str] = "Text-to-video retrieval"
    config_class: ClassVar[type[TaskConfig]] = RetrievalConfig
    primary_metric: ClassVar[str] = "R@1"
    zero_shot: ClassVar[bool] = True
    measures_exports: ClassVar[bool] = True
    uses_relevance: ClassVar[bool] = True
    required: ClassVar[str] = "caption"

    def __init__(self, model: EViLM, vocabulary: Vocabulary, config: RetrievalConfig, facts: Facts) -> None:
        super().__init__(model, vocabulary, facts, config.max_text_len)
        self.config = config
        # Ranking by pairs needs no dual encoder.
        self.embeds = config.contrastive_weight > 0 or config.protocol != "pairwise"
        if self.embeds:
            self.embed = EmbeddingHead.for_model(model, config.embed_dim, config.temperature)
        if config.vtm_weight or config.protocol != "dual-encoder":
            self.match = MatchHead(model.embed_dim)

    @classmethod
    def zero_shot_settings(cls, source: TaskConfig, facts: Facts) -> dict[str, Any]:
        """Rank by the embeddings of the checkpoint; no other head is needed, as nothing is trained."""
        settings: dict[str, Any] = {"contrastive_weight": 0.0, "vtm_weight": 0.0}
        for name in ("max_text_len", "embed_dim"):
            if (value := facts.get(name) or getattr(source, name, None)) is not None:
                settings[name] = value
        return settings

    @property
    def needs_pooled_only(self) -> bool:
        return self.embeds and not self.embed.fuses and not hasattr(self, "match")

    @property
    def averaged(self) -> tuple[str, ...]:
        """The mean vector of the views gives the mean of their cosines."""
        return ("video",) if self.config.protocol == "dual-encoder" else ()

    @staticmethod
    def lacks(example: Example) -> bool:
        return not example.captions

    def check_start(self, loaded: Collection[str]) -> None:
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
        text = self.model.encode_text(self.text(self.several_captions(batch, count), batch))  # count rows per video
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
            hardest = local_rows(closeness.masked_fill(alike, -2.0), batch).argmax(1)
            right = self.match(self.model.fuse_cls(video, text[::count]))  # the first of its captions
            wrong = self.match(self.model.fuse_cls(video, gather_texts(text)[hardest]))
            parts["vtm"] = losses.binary_matching(torch.stack([right, wrong], 1))
        weights = {"contrastive": self.config.contrastive_weight, "vtm": self.config.vtm_weight}
        total = torch.stack([weights[name] * loss for name, loss in parts.items()]).sum()
        return Losses(total, {name: loss.detach() for name, loss in parts.items()})

    def embed_encoded(self, video: Encoded, text: Encoded) -> tuple[Tensor, Tensor]:
        """(B, 512) each, l2-normalised, from one-modality fusion."""
        return self.embed.video(self.model, video), self.embed.text(self.model, text)

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
                row["patches"] = video.tokens[i].half().cpu().numpy()
                row["grid"] = np.array(video.grid)
                row["pieces"] = text.tokens[i][text.mask[i]].half().cpu().numpy()
        rows = zip(batch.examples, batch.readable, values, strict=True)
        return [Prediction(example, bool(ok), value) for example, ok, value in rows]

    def predict_export(self, embedder: Any, examples: Sequence[Example], frames: NDArray[np.uint8]) -> list[Facts]:
        video, text = embedder.embed_frames(frames), embedder.embed_texts([caption_of(row, None) for row in examples])
        return [{"video": v, "text": t} for v, t in zip(video, text, strict=True)]

    def compute_metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """R@1/5/10 and median rank, both directions, in blocks (see ``ranking``)."""
        readable = np.array([p.readable for p in predictions])
        texts, videos = [caption_of(p.example, None) for p in predictions], [p.example.video for p in predictions]
        names, classes = np.unique(texts, return_inverse=True)
        # Captions that many clips share are class names: each is true of all clips of its class.
        by_class = 1 < len(names) <= len(texts) / 2 and self.relevance is own_video
        if self.relevance is own_video:
            labels = classes if by_class else np.unique(videos, return_inverse=True)[1]
            relevant: ranking.Relevance = ranking.SameLabel(labels, labels)
        else:
            relevant = ranking.Matrix(self.relevance(predictions))
        plain, shape = self._scores(predictions), (len(texts), len(videos))
        by_text = self._with_prior(plain, shape)
        found = ranking.rank(by_text, relevant, shape, readable)
        to_text, rows = found.columns, found.rows
        if self.config.dual_softmax:  # each direction has the prior of its own queries
            turned = self._with_prior(lambda some, others: plain(others, some).T, shape)
            to_text = ranking.rank(
                lambda some, others: turned(others, some).T, relevant, shape, readable, first=0
            ).columns  # fmt: skip
        columns: dict[str, list[Any]] = {
            "text": texts,
            "rank": rows.ranks.tolist(),
            "first": [[videos[j] for j in row if j >= 0] for row in found.first],
        }
        rule = {
            "dual-encoder": "dual encoder",
            "pairwise": "every pair fused",
            "re-rank": f"dual encoder, first {self.config.rerank_top_k} re-ranked by fusion",
        }[self.config.protocol]
        rule += f"; dual softmax at {self.config.dual_softmax:g}" if self.config.dual_softmax else ""
        rule += f"; {len(predictions)} texts x {len(predictions)} videos; ties at chance"
        values = rows.retrieval() | {f"v2t_{name}": value for name, value in to_text.retrieval().items()}
        chance = metrics.chance_counts(found.relevant_columns, shape[1]).retrieval()
        if by_class:
            firsts = np.unique(texts, return_index=True)[1]
            parts = np.array_split(np.arange(shape[1]), -(-shape[1] // 1024))
            values |= dict(zip(("class_accuracy", "balanced_accuracy"), metrics.mean_credit(np.concatenate([
                metrics.class_credit(np.where(readable[part], by_text(firsts, part), -np.inf).T, classes[part])
                for part in parts
            ]), classes), strict=True))  # fmt: skip
            chance |= dict.fromkeys(("class_accuracy", "balanced_accuracy"), 100 / len(names))
            rule += f"; {len(names)} captions are class names: each is true of every clip that has it"
        return Metrics(values, chance, rule, scored_rows(predictions, rows.hits(1).tolist(), columns))

    def _with_prior(self, scores: ranking.Scores, shape: tuple[int, int]) -> ranking.Scores:
        temperature = self.config.dual_softmax
        return ranking.dual_softmax(scores, *shape, temperature) if temperature else scores

    def _scores(self, predictions: Sequence[Prediction]) -> ranking.Scores:
        """(texts, videos)."""
        every = np.arange(len(predictions))
        if self.config.protocol == "pairwise":
            return ranking.of_matrix(np.stack([self._fused(predictions, row, every) for row in every.tolist()]))
        video, text = (np.stack([p.values[name] for p in predictions]) for name in ("video", "text"))
        cosine = ranking.cosines(text, video)
        if self.config.protocol == "dual-encoder":
            return cosine
        top = min(self.config.rerank_top_k, len(predictions))
        nearest = ranking.rank(cosine, ranking.SameLabel(every, every), (len(every), len(every)), first=top).first
        fused = np.stack([self._fused(predictions, row, nearest[row]) for row in every.tolist()])

        def scores(some: ranking.Rows, others: ranking.Rows) -> NDArray[np.float64]:
            """Fused scores above every cosine; below them, the order of the dual encoder."""
            found = cosine(some, others) - 1e6
            place = np.full(len(every), -1)
            place[others] = np.arange(len(others))
            columns = place[nearest[some]]  # (r, top)
            row, rank = np.nonzero(columns >= 0)
            found[row, columns[row, rank]] = fused[some[row], rank]
            return found

        return scores

    @torch.no_grad()
    def _fused(self, predictions: Sequence[Prediction], row: int, columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """The match head's scores of one text with some videos."""
        device = next(self.match.parameters()).device
        pieces = torch.from_numpy(predictions[row].values["pieces"]).float().to(device)
        found: list[NDArray[np.float64]] = []
        for some in np.array_split(columns, max(1, len(columns) // 64)):
            patches: NDArray[np.float16] = np.stack([predictions[int(j)].values["patches"] for j in some])
            video = Encoded(torch.from_numpy(patches).float().to(device))
            cls = self.model.fuse_cls(video, Encoded(pieces.expand(len(some), -1, -1)))
            found.append(self.match(cls).double().cpu().numpy())
        return np.concatenate(found)
