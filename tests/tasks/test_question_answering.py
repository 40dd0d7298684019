"""Questions: the answer vocabulary, the rules for answers outside it, and the baseline that cannot see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from evilm.errors import DataError
from evilm.tasks.predictions import Prediction
from evilm.tasks.question_answering import QuestionAnswering, QuestionAnsweringConfig
from evilm.training import evaluate
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Callable

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.types import Batch


def asked(key: int, answer: str, kind: str | None = None, question: str = "what is the red disc doing") -> Example:
    return Example(str(key), f"v{key}", Clip(Path(f"{key}.mp4")), question=question, answer=answer, kind=kind)


ROWS = [asked(0, "red"), asked(1, "blue"), asked(2, "red"), asked(3, "left"), asked(4, "left"), asked(5, "red")]


@pytest.fixture
def build(model: EViLM, vocabulary: Vocabulary) -> Callable[..., QuestionAnswering]:
    def make(**settings: object) -> QuestionAnswering:
        config = QuestionAnsweringConfig.model_validate({"dropout": 0, **settings})
        torch.manual_seed(1)
        return QuestionAnswering(model, vocabulary, config, QuestionAnswering.learn_facts(config, ROWS))

    return make


def test_answers_are_the_most_frequent_of_training(build: Callable[..., QuestionAnswering]) -> None:
    assert build().answers == ["red", "left", "blue"]
    assert build(num_answers=2).answers == ["red", "left"]
    with pytest.raises(DataError, match=r"data\.train: row .* has no question with an answer"):
        QuestionAnswering.check_rows([replace(ROWS[0], answer=None)], "data.train")


def test_gradients_reach_every_parameter(
    build: Callable[..., QuestionAnswering], random_batch: Callable[..., Batch],
    without_gradient: Callable[..., list[str]],
) -> None:  # fmt: skip
    task = build().train()
    assert without_gradient(task, task.losses(random_batch(ROWS))) == []


def test_an_answer_outside_the_vocabulary_teaches_nothing(
    build: Callable[..., QuestionAnswering], random_batch: Callable[..., Batch]
) -> None:
    task = build().eval()
    outside = [*ROWS[:3], asked(9, "zebra"), asked(10, "quagga")]
    alone = task.losses(random_batch(ROWS[:3])).total.item()
    frames = random_batch(ROWS[:3]).frames
    batch = random_batch(outside)
    batch = replace(batch, frames=torch.cat([frames, batch.frames[3:]]))
    assert task.losses(batch).total.item() == pytest.approx(alone, rel=1e-5)
    assert task.losses(random_batch(outside[3:])).total.item() == 0


def test_the_blind_baseline_sees_no_frames(
    build: Callable[..., QuestionAnswering], random_batch: Callable[..., Batch]
) -> None:
    batch = random_batch(ROWS)
    other = replace(batch, frames=255 - batch.frames)
    blind, sighted = build(text_only=True).eval(), build().eval()
    assert torch.equal(blind._logits(batch), blind._logits(other))
    assert not torch.allclose(sighted._logits(batch), sighted._logits(other), atol=1e-4)
    assert "questions alone" in blind.compute_metrics(blind.predict(batch)).rule


def test_predictions_are_the_likeliest_answers(
    build: Callable[..., QuestionAnswering], random_batch: Callable[..., Batch]
) -> None:
    task = build().eval()
    batch = random_batch(ROWS)
    share = torch.softmax(task._logits(batch), -1)
    for i, p in enumerate(task.predict(batch)):
        assert p.values["answer"] == task.answers[int(share[i].argmax())]
        assert p.values["probability"] == pytest.approx(share[i].max().item(), rel=1e-5)


def test_views_average_logits(build: Callable[..., QuestionAnswering], random_batch: Callable[..., Batch]) -> None:
    task, batch = build().eval(), random_batch(ROWS)
    expected = [p.values for p in task.predict(batch)]
    task.averages = True
    one = task.predict(batch)
    rows = task.compute_metrics(one).rows
    assert [row["predicted"] for row in rows] == [value["answer"] for value in expected]
    # A view that is surer than two others decides.
    weak, strong = np.zeros(len(task.answers), np.float32), np.zeros(len(task.answers), np.float32)
    weak[0], strong[1] = 1.0, 5.0
    mean = evaluate._average(task.averaged, [Prediction(ROWS[0], True, {"logits": v}) for v in (weak, weak, strong)])
    [row] = task.compute_metrics([mean]).rows
    assert row["predicted"] == task.answers[1]
    share = np.exp([2 / 3, 5 / 3])
    others = len(task.answers) - 2
    assert row["probability"] == pytest.approx(share[1] / (share.sum() + others), rel=1e-5)


def told(*rows: tuple[str, str, bool, str | None]) -> list[Prediction]:
    """Predictions of (true answer, answer given, readable, kind)."""
    return [
        Prediction(asked(i, true, kind), readable, {"answer": given, "probability": 0.5})
        for i, (true, given, readable, kind) in enumerate(rows)
    ]


MIXED = (
    ("red", "red", True, "colour"),
    ("left", "red", True, "place"),
    ("zebra", "red", True, "place"),
    ("red", "red", False, "colour"),
    ("zebra", "red", False, "place"),
)


@pytest.mark.parametrize(
    ("oov", "accuracy", "colour", "place", "rows"),
    [
        ("wrong", 100 * 1 / 5, 50, 0, 5),
        ("drop", 100 * 1 / 3, 50, 0, 3),
        ("upper-bound", 100 * 2 / 5, 50, 100 / 3, 5),
    ],
)
def test_rules_for_answers_outside_the_vocabulary(
    build: Callable[..., QuestionAnswering], oov: str, accuracy: float, colour: float, place: float, rows: int
) -> None:
    """An unreadable video is wrong under each of them."""
    summary = build(oov=oov).compute_metrics(told(*MIXED))
    assert summary.metrics["accuracy"] == pytest.approx(accuracy)
    assert summary.metrics["accuracy[colour]"] == pytest.approx(colour)
    assert summary.metrics["accuracy[place]"] == pytest.approx(place)
    assert summary.metrics["known_answers"] == pytest.approx(60)
    assert len(summary.rows) == rows
    assert oov in summary.rule
    assert summary.chance["accuracy"] == pytest.approx(100 / 3)


def test_rows_say_what_was_asked_and_answered(build: Callable[..., QuestionAnswering]) -> None:
    row = build().compute_metrics(told(("red", "left", True, None))).rows[0]
    assert (row["question"], row["answer"], row["predicted"], row["score"]) == (
        "what is the red disc doing", "red", "left", 0.0,
    )  # fmt: skip
