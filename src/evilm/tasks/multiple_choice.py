"""Multiple choice: as many joint fusions as there are options, softmax over them (paper 4.1, Tables 1 and 4).

What is reported as MSRVTT-MC goes by three protocols, which differ in what was trained: ``trained`` on options of that
kind, as TGIF-QA is; ``zero-shot``, by what pre-training learned; ``retrieval-tuned``, by a fine-tuned retrieval model
that scores the options. The last two have nothing to train, and are for ``evaluate --task multiple_choice``.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from evilm import losses
from evilm.errors import ConfigError, DataError
from evilm.model.heads import EmbeddingHead, MatchHead
from evilm.tasks.task import Facts, Metrics, Prediction, TaskConfig, VideoTextTask, cannot_tell, scored_rows
from evilm.types import Losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.types import Batch, Example


class MultipleChoiceConfig(TaskConfig):
    """How options are scored."""

    name: Literal["multiple_choice"] = "multiple_choice"
    protocol: Literal["trained", "zero-shot", "retrieval-tuned"] = Field(
        default="trained", description="what the scores come from; evaluation sets it by the checkpoint it is given"
    )
    head: Literal["match", "embed"] = Field(default="match", description="score by fusion, or by cosine of embeddings")
    embed_dim: int = Field(default=512, gt=0, description="width of the embeddings, where they score")
    text_only: bool = Field(default=False, description="the baseline that cannot see: options alone")
    focal_gamma: float = Field(default=0.0, ge=0, description="gamma of a focal loss: easy rows count less")
    max_text_len: int = Field(default=40, gt=2, description="longest question and option together, in word pieces")


class MultipleChoice(VideoTextTask):
    """A video and K options to the right one, scored by the match head that VTM pre-trained."""

    name: ClassVar[str] = "multiple_choice"
    primary_metric: ClassVar[str] = "accuracy"

    def __init__(self, model: EViLM, vocabulary: Vocabulary, config: MultipleChoiceConfig, facts: Facts) -> None:
        super().__init__(model, vocabulary, config.max_text_len)
        self.config = config
        if config.head == "match":
            self.match = MatchHead(model.embed_dim)
        elif config.text_only:
            raise ConfigError("task.text_only needs task.head=match: a cosine is of a video and a text")
        else:
            self.embed = EmbeddingHead.for_model(model, config.embed_dim)

    @classmethod
    def learn_facts(cls, config: MultipleChoiceConfig, examples: Sequence[Example]) -> Facts:
        if not examples[0].choices:
            raise DataError("the training split has no options: is data.train.reader one of multiple choice?")
        return {}

    def losses(self, batch: Batch) -> Losses:
        if self.config.protocol != "trained":
            raise ConfigError(
                f"task.protocol = {self.config.protocol!r} trains nothing: set task.protocol=trained, or take "
                "`evilm evaluate CHECKPOINT --task multiple_choice`"
            )
        scores = self._scores(batch)
        right = torch.tensor([_right(example) for example in batch.examples], device=scores.device)
        loss = losses.matching(scores, right, self.config.focal_gamma)
        return Losses(loss, {"choice": loss.detach()})

    def _scores(self, batch: Batch) -> Tensor:
        """(B, K), K the most options of a row; -inf where a row has fewer."""
        options = [example.choices for example in batch.examples]
        count = max(len(group) for group in options)
        texts = [_joined(example.question, option) for example in batch.examples for option in example.choices]
        text = self.model.encode_text(self.text(texts, batch))
        device = batch.frames.device
        rows = torch.tensor([i for i, group in enumerate(options) for _ in group], device=device)
        columns = torch.tensor([k for group in options for k in range(len(group))], device=device)
        if self.config.head == "embed":
            video = self.encode(batch)
            v = self.embed.video(self.model.fuse_cls(video=video), video.pooled)[rows]
            t = self.embed.text(self.model.fuse_cls(text=text), text.pooled)
            found = (v * t).sum(-1) / self.embed.temperature
        else:
            video = None if self.config.text_only else self.encode(batch)[rows]
            found = self.match(self.model.fuse_cls(video, text)).float()
        scores = found.new_full((len(options), count), float("-inf"))
        return scores.index_put((rows, columns), found)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        scores = torch.softmax(self._scores(batch), -1).cpu().numpy()
        return [
            Prediction(example, bool(ok), {"probabilities": scores[i][: len(example.choices)]})
            for i, (example, ok) in enumerate(zip(batch.examples, batch.readable, strict=True))
        ]

    def compute_metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Accuracy, a tie counting its share, and by kind."""
        scores = np.array([_credit(p) for p in predictions])
        kinds: dict[str, list[int]] = defaultdict(list)
        for i, p in enumerate(predictions):
            kinds[p.example.kind or "all"].append(i)
        columns = {
            "options": [list(p.example.choices) for p in predictions],
            "answer": [_right(p.example) for p in predictions],
            "predicted": [int(p.values["probabilities"].argmax()) for p in predictions],
        }
        by_kind = {f"accuracy[{kind}]": 100 * float(scores[rows].mean()) for kind, rows in sorted(kinds.items())}
        return Metrics(
            metrics={"accuracy": 100 * float(scores.mean()), **by_kind},
            chance={"accuracy": 100 * float(np.mean([1 / len(p.example.choices) for p in predictions]))},
            rule=self._rule(),
            rows=scored_rows(predictions, scores.tolist(), columns),
            details=cannot_tell([float(p.values["probabilities"].max()) for p in predictions], (scores == 1).tolist()),
        )

    def _rule(self) -> str:
        """What stands beside the number."""
        scored = "one fusion an option" if self.config.head == "match" else "the cosine of video and option"
        return f"{self.config.protocol}: softmax over {scored}" + ("; options alone" if self.config.text_only else "")


def _right(example: Example) -> int:
    """The index of the right option.

    Raises:
        DataError: the row does not say.
    """
    if example.label is None or not 0 <= example.label < len(example.choices):
        raise DataError(f"row {example.key}: the right option is {example.label!r}, of {len(example.choices)} options")
    return example.label


def _credit(prediction: Prediction) -> float:
    """1 for the right option, its share of a tie for first place, 0 otherwise or without frames."""
    scores = prediction.values["probabilities"]
    best = scores == scores.max()
    return float(prediction.readable and best[_right(prediction.example)]) / best.sum()


def _joined(question: str | None, option: str) -> str:
    """One text: the question, where there is one, then the option."""
    return f"{question} {option}" if question else option
