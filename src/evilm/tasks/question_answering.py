"""Open-ended video question answering as classification over an answer vocabulary (paper 4.1, Table 1)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from evilm import metrics
from evilm.losses import IGNORE
from evilm.model.heads import AnswerHead
from evilm.tasks.batches import masked_prediction
from evilm.tasks.predictions import Metrics, Prediction, cannot_tell, rows_by_kind, scored_rows
from evilm.tasks.settings import AnswerTaskConfig, TaskConfig
from evilm.tasks.task import Facts, VideoTextTask
from evilm.types import Losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.types import Batch, Example


class QuestionAnsweringConfig(AnswerTaskConfig):
    """Settings of the answer vocabulary and its classifier."""

    name: Literal["question_answering"] = "question_answering"
    num_answers: int = Field(default=1500, gt=1, description="size of the answer vocabulary: most frequent answers")
    oov: Literal["wrong", "drop", "upper-bound"] = Field(
        default="wrong", description="questions whose answer is not in the vocabulary: wrong, left out, or right"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout of the answer classifier")


class QuestionAnswering(VideoTextTask):
    """Classify a video and a question into one of K answers."""

    name: ClassVar[str] = "question_answering"
    title: ClassVar[str] = "Question answering"
    config_class: ClassVar[type[TaskConfig]] = QuestionAnsweringConfig
    primary_metric: ClassVar[str] = "accuracy"
    measures_exports: ClassVar[bool] = True
    required: ClassVar[str] = "question with an answer"

    def __init__(self, model: EViLM, vocabulary: Vocabulary, config: QuestionAnsweringConfig, facts: Facts) -> None:
        super().__init__(model, vocabulary, facts, config.max_text_len)
        self.config = config
        self.answers: list[str] = list(facts["answers"])
        self.index = {answer: k for k, answer in enumerate(self.answers)}
        self.answer_head = AnswerHead(model.embed_dim, len(self.answers), config.dropout)

    @classmethod
    def learn_facts(cls, config: QuestionAnsweringConfig, examples: Sequence[Example]) -> Facts:
        counts = Counter(example.answer for example in examples if example.answer is not None)
        ranked = sorted(counts, key=lambda answer: (-counts[answer], answer))
        return {"answers": ranked[: config.num_answers]}

    @property
    def averaged(self) -> tuple[str, ...]:
        return ("logits",)

    @staticmethod
    def lacks(example: Example) -> bool:
        return example.question is None or example.answer is None

    def losses(self, batch: Batch) -> Losses:
        targets = [self.index.get(example.answer or "", IGNORE) for example in batch.examples]
        loss = masked_prediction(
            self._logits(batch), torch.tensor(targets, device=batch.frames.device), self.config.focal_gamma
        )
        return Losses(loss, {"answer": loss.detach()})

    def _logits(self, batch: Batch) -> torch.Tensor:
        """(B, K)."""
        text = self.model.encode_text(self.text([example.question or "" for example in batch.examples], batch))
        video = None if self.config.text_only else self.encode(batch)
        return self.answer_head(self.model.fuse_cls(video, text))

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        logits = self._logits(batch).float()
        # The logits of all answers are kept only if they are needed: 72,821 questions have 1,500 each.
        values = [{"logits": row} for row in logits.cpu().numpy()] if self.averages else self._decide(logits)
        return [
            Prediction(example, bool(ok), value)
            for example, ok, value in zip(batch.examples, batch.readable, values, strict=True)
        ]

    def predict_export(self, embedder: Any, examples: Sequence[Example], frames: NDArray[np.uint8]) -> list[Facts]:
        questions = embedder.encode_texts([example.question or "" for example in examples])
        logits, _ = embedder.score_fused("answer", embedder.encode_frames(frames), questions)
        return self._decide(torch.from_numpy(logits).float())

    def _decide(self, logits: torch.Tensor) -> list[Facts]:
        """The best answer of each row (B, K), and its probability."""
        probability, best = torch.softmax(logits, -1).max(-1)
        pairs = zip(best, probability, strict=True)
        return [{"answer": self.answers[int(k)], "probability": float(p)} for k, p in pairs]

    def compute_metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Accuracy over all questions, and by kind."""
        if self.averages:
            decided = self._decide(torch.from_numpy(np.stack([p.values["logits"] for p in predictions])))
            predictions = [Prediction(p.example, p.readable, v) for p, v in zip(predictions, decided, strict=True)]
        known = np.array([p.example.answer in self.index for p in predictions])
        readable = np.array([p.readable for p in predictions])
        right = readable & np.array([p.values["answer"] == p.example.answer for p in predictions])
        if self.config.oov == "drop":
            predictions, right = [p for p, k in zip(predictions, known, strict=True) if k], right[known]
        elif self.config.oov == "upper-bound":
            right = right | (readable & ~known)
        columns = {
            "question": [p.example.question for p in predictions],
            "answer": [p.example.answer for p in predictions],
            "predicted": [p.values["answer"] for p in predictions],
            "probability": [p.values["probability"] for p in predictions],
        }
        by_kind = {
            f"accuracy[{kind}]": metrics.accuracy(right[rows]) for kind, rows in rows_by_kind(predictions).items()
        }
        return Metrics(
            metrics={"accuracy": metrics.accuracy(right), **by_kind, "known_answers": metrics.accuracy(known)},
            chance={"accuracy": 100 / len(self.answers)},
            rule=f"{len(self.answers)} answers from the training split; answers outside it: {self.config.oov}"
            + ("; questions alone" if self.config.text_only else ""),
            rows=scored_rows(predictions, right.astype(float).tolist(), columns),
            details=cannot_tell([p.values["probability"] for p in predictions], right.tolist()),
        )
