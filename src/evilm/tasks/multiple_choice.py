"""Multiple choice: one fusion per option and a softmax over them (paper 4.1, Tables 1 and 4).

MSRVTT-MC is reported under three protocols, which differ in the training: ``trained`` on such options, as TGIF-QA is;
``zero-shot`` after pre-training; ``retrieval-tuned``, where a fine-tuned retrieval model scores the options. The last
two train nothing; ``evilm evaluate --task multiple_choice`` uses them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from evilm import losses
from evilm.errors import ConfigError, DataError
from evilm.model.heads import EmbeddingHead, MatchHead
from evilm.tasks.predictions import Metrics, Prediction, cannot_tell, rows_by_kind, scored_rows
from evilm.tasks.settings import AnswerTaskConfig, EmbeddingTaskConfig, TaskConfig
from evilm.tasks.task import Facts, VideoTextTask
from evilm.types import Losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.types import Batch, Example


class MultipleChoiceConfig(EmbeddingTaskConfig, AnswerTaskConfig):
    """Settings of how options are scored."""

    name: Literal["multiple_choice"] = "multiple_choice"
    protocol: Literal["trained", "zero-shot", "retrieval-tuned"] = Field(
        default="trained", description="training that the scores come from; evaluate --task sets it"
    )
    head: Literal["match", "embed"] = Field(default="match", description="score by fusion, or by cosine of embeddings")
    max_text_len: int = Field(default=40, gt=2, description="longest question with option, in word pieces")


class MultipleChoice(VideoTextTask):
    """Choose one of K options for a video by the match head that VTM pre-trained."""

    name: ClassVar[str] = "multiple_choice"
    title: ClassVar[str] = "Multiple choice"
    config_class: ClassVar[type[TaskConfig]] = MultipleChoiceConfig
    primary_metric: ClassVar[str] = "accuracy"
    zero_shot: ClassVar[bool] = True
    measures_exports: ClassVar[bool] = True
    required: ClassVar[str] = "options"

    def __init__(self, model: EViLM, vocabulary: Vocabulary, config: MultipleChoiceConfig, facts: Facts) -> None:
        super().__init__(model, vocabulary, facts, config.max_text_len)
        self.config = config
        if config.head == "match":
            self.match = MatchHead(model.embed_dim)
        elif config.text_only:
            raise ConfigError("task.text_only needs task.head=match: embeddings compare a video with a text")
        else:
            self.embed = EmbeddingHead.for_model(model, config.embed_dim, config.temperature)

    @classmethod
    def zero_shot_settings(cls, source: TaskConfig, facts: Facts) -> dict[str, Any]:
        """Score by the head that the checkpoint has: its fusion, or its embeddings if it never learned matching."""
        width = facts.get("embed_dim") or getattr(source, "embed_dim", None)
        by_embeddings = {"head": "embed", "embed_dim": width} if source.scoring_head() == "embed" else {}
        return {"protocol": source.scoring_protocol, **by_embeddings}

    @property
    def averaged(self) -> tuple[str, ...]:
        return ("logits",)

    @staticmethod
    def lacks(example: Example) -> bool:
        return not example.choices

    def losses(self, batch: Batch) -> Losses:
        if self.config.protocol != "trained":
            raise ConfigError(
                f"task.protocol = {self.config.protocol!r} trains nothing: set task.protocol=trained, or run "
                "`evilm evaluate CHECKPOINT --task multiple_choice`"
            )
        scores = self._scores(batch)
        right = torch.tensor([_right(example) for example in batch.examples], device=scores.device)
        loss = losses.matching(scores, right, self.config.focal_gamma)
        return Losses(loss, {"choice": loss.detach()})

    def _scores(self, batch: Batch) -> Tensor:
        """(B, K) scores, with K the largest number of options of a row; -inf for options that a row lacks."""
        options = [example.choices for example in batch.examples]
        count = max(len(group) for group in options)
        texts = [_joined(example.question, option) for example in batch.examples for option in example.choices]
        text = self.model.encode_text(self.text(texts, batch))
        device = batch.frames.device
        rows = torch.tensor([i for i, group in enumerate(options) for _ in group], device=device)
        columns = torch.tensor([k for group in options for k in range(len(group))], device=device)
        if self.config.head == "embed":
            v = self.embed.video(self.model, self.encode(batch))[rows]
            found = (v * self.embed.text(self.model, text)).sum(-1) / self.embed.temperature
        else:
            video = None if self.config.text_only else self.encode(batch)[rows]
            found = self.match(self.model.fuse_cls(video, text)).float()
        scores = found.new_full((len(options), count), float("-inf"))
        return scores.index_put((rows, columns), found)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        scores = self._scores(batch).float().cpu().numpy()
        return [
            Prediction(example, bool(ok), {"logits": scores[i][: len(example.choices)]})
            for i, (example, ok) in enumerate(zip(batch.examples, batch.readable, strict=True))
        ]

    def predict_export(self, embedder: Any, examples: Sequence[Example], frames: NDArray[np.uint8]) -> list[Facts]:
        videos = embedder.encode_frames(frames)
        return [
            {"logits": embedder.score_choices(videos[i : i + 1], row.choices, row.question)[0].astype(np.float32)}
            for i, row in enumerate(examples)
        ]

    def compute_metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Accuracy, also by kind; a tie for the first place counts in part, a row with NaN scores counts as wrong."""
        scores = np.array([_credit(p) for p in predictions])
        undefined = np.array([bool(np.isnan(p.values["logits"]).any()) for p in predictions])
        confidence = [
            0.0 if bad else float(torch.softmax(torch.from_numpy(p.values["logits"]), -1).max())
            for p, bad in zip(predictions, undefined, strict=True)
        ]
        columns = {
            "options": [list(p.example.choices) for p in predictions],
            "answer": [_right(p.example) for p in predictions],
            "predicted": [int(p.values["logits"].argmax()) for p in predictions],
        }
        by_kind = {
            f"accuracy[{kind}]": 100 * float(scores[rows].mean()) for kind, rows in rows_by_kind(predictions).items()
        }
        return Metrics(
            metrics={"accuracy": 100 * float(scores.mean()), **by_kind},
            chance={"accuracy": 100 * float(np.mean([1 / len(p.example.choices) for p in predictions]))},
            rule=self._rule() + (f"; {undefined.sum()} rows with NaN scores count as wrong" if undefined.any() else ""),
            rows=scored_rows(predictions, scores.tolist(), columns),
            details=cannot_tell(confidence, (scores == 1).tolist()),
        )

    def _rule(self) -> str:
        """How the accuracy was computed."""
        scored = "one fusion an option" if self.config.head == "match" else "the cosine of video and option"
        return f"{self.config.protocol}: softmax over {scored}" + ("; options alone" if self.config.text_only else "")


def _right(example: Example) -> int:
    """The index of the right option.

    Raises:
        DataError: the row does not give one.
    """
    if example.label is None or not 0 <= example.label < len(example.choices):
        raise DataError(f"row {example.key}: the right option is {example.label!r}, of {len(example.choices)} options")
    return example.label


def _credit(prediction: Prediction) -> float:
    """1 for the right option, 1/n in a tie of n for first place, 0 otherwise, without frames, or with a NaN score."""
    scores = prediction.values["logits"]
    best = scores == scores.max()  # all False if there is a NaN
    return float(prediction.readable and best[_right(prediction.example)]) / max(1, best.sum())


def _joined(question: str | None, option: str) -> str:
    """One text: the question, if there is one, then the option."""
    return f"{question} {option}" if question else option
