"""Multiple choice: one fusion an option, ties at their share, rows of few options beside rows of many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from evilm.errors import ConfigError, DataError
from evilm.tasks.multiple_choice import MultipleChoice, MultipleChoiceConfig
from evilm.tasks.predictions import Prediction
from evilm.training import evaluate
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Callable

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.types import Batch


def row(key: int, choices: tuple[str, ...], label: int | None, question: str | None = None) -> Example:
    clip = Clip(Path(f"{key}.mp4"))
    return Example(str(key), f"v{key}", clip, question=question, choices=choices, label=label, kind="k")


ROWS = [
    row(0, ("a red disc", "a blue disc", "a green star"), 1),
    row(1, ("moves left", "moves right"), 0, "what is the disc doing"),
    row(2, ("a star jumps", "a star grows", "a disc", "a square", "red"), 4),
]


@pytest.fixture
def build(model: EViLM, vocabulary: Vocabulary) -> Callable[..., MultipleChoice]:
    def make(**settings: object) -> MultipleChoice:
        torch.manual_seed(1)
        return MultipleChoice(model, vocabulary, MultipleChoiceConfig.model_validate(settings), {})

    return make


def test_gradients_reach_every_parameter(
    build: Callable[..., MultipleChoice], random_batch: Callable[..., Batch],
    without_gradient: Callable[..., list[str]],
) -> None:  # fmt: skip
    task = build().train()
    assert without_gradient(task, task.losses(random_batch(ROWS))) == []


def test_scores_are_those_of_each_option_by_itself(
    build: Callable[..., MultipleChoice], random_batch: Callable[..., Batch], vocabulary: Vocabulary
) -> None:
    task = build().eval()
    batch = random_batch(ROWS)
    with torch.no_grad():
        scores = task._scores(batch)
        assert scores.shape == (3, 5)
        for i, example in enumerate(ROWS):
            video = task.model.encode_video(task.model.normalise(batch.frames[i : i + 1]))
            for k, option in enumerate(example.choices):
                words = f"{example.question} {option}" if example.question else option
                text = task.model.encode_text(vocabulary.encode([words], 40))
                assert scores[i, k].item() == pytest.approx(
                    task.match(task.model.fuse(video, text).cls).item(), abs=1e-5
                )
            assert torch.isneginf(scores[i, len(example.choices) :]).all()


def test_the_loss_by_hand(build: Callable[..., MultipleChoice], random_batch: Callable[..., Batch]) -> None:
    task = build().eval()
    batch = random_batch(ROWS)
    scores = task._scores(batch).double()
    parts = [torch.logsumexp(scores[i, : len(e.choices)], 0) - scores[i, e.label] for i, e in enumerate(ROWS)]
    assert task.losses(batch).total.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-5)


def test_the_blind_baseline_sees_no_frames(
    build: Callable[..., MultipleChoice], random_batch: Callable[..., Batch]
) -> None:
    batch = random_batch(ROWS)
    other = replace(batch, frames=255 - batch.frames)
    blind, sighted = build(text_only=True).eval(), build().eval()
    assert torch.equal(blind._scores(batch), blind._scores(other))
    assert not torch.equal(sighted._scores(batch), sighted._scores(other))


def told(example: Example, probabilities: list[float], readable: bool = True) -> Prediction:
    return Prediction(example, readable, {"logits": np.log(probabilities)})


def test_accuracy_by_hand(build: Callable[..., MultipleChoice]) -> None:
    summary = build().compute_metrics([
        told(ROWS[0], [0.2, 0.5, 0.3]),
        told(ROWS[1], [0.5, 0.5]),  # a tie of two: half
        told(ROWS[2], [0.2, 0.2, 0.2, 0.2, 0.2]),  # of five: a fifth
        told(ROWS[0], [0.2, 0.5, 0.3], readable=False),
        told(ROWS[0], [0.6, 0.1, 0.3]),
    ])  # fmt: skip
    assert [one["score"] for one in summary.rows] == pytest.approx([1, 0.5, 0.2, 0, 0])
    assert summary.metrics["accuracy"] == pytest.approx(100 * 1.7 / 5)
    assert summary.metrics["accuracy[k]"] == summary.metrics["accuracy"]
    assert summary.chance["accuracy"] == pytest.approx(100 * (1 / 3 + 1 / 2 + 1 / 5 + 1 / 3 + 1 / 3) / 5)


def test_predictions_leave_out_options_that_a_row_has_not(
    build: Callable[..., MultipleChoice], random_batch: Callable[..., Batch]
) -> None:
    found = build().eval().predict(random_batch(ROWS))
    assert [len(p.values["logits"]) for p in found] == [3, 2, 5]
    assert all(np.isfinite(p.values["logits"]).all() for p in found)


def test_views_average_logits(build: Callable[..., MultipleChoice]) -> None:
    """Two views are unsure of the wrong option, the third is sure of the right one: the mean of logits is right."""
    task, right = build(), ROWS[1].label or 0
    wrong, sure = np.zeros(2), np.zeros(2)
    wrong[1 - right], sure[right] = 1.0, 5.0
    views = [Prediction(ROWS[1], True, {"logits": logits}) for logits in (wrong, wrong, sure)]
    assert [task.compute_metrics([view]).metrics["accuracy"] for view in views] == [0, 0, 100]
    mean = evaluate._average(task.averaged, views)
    assert mean.values["logits"][right] == pytest.approx(5 / 3)
    assert task.compute_metrics([mean]).metrics["accuracy"] == 100


@pytest.mark.parametrize("label", [None, 3, -1])
def test_a_row_that_does_not_say_what_is_right(
    build: Callable[..., MultipleChoice], random_batch: Callable[..., Batch], label: int | None
) -> None:
    with pytest.raises(DataError, match=r"row 0: the right option is"):
        build().losses(random_batch([replace(ROWS[0], label=label)]))


def test_nan_scores_count_as_wrong_and_are_reported(build: Callable[..., MultipleChoice]) -> None:
    task = build()
    good, bad = np.zeros(3), np.full(3, np.nan)
    good[ROWS[0].label or 0] = 1.0
    rows = [Prediction(ROWS[0], True, {"logits": good}), Prediction(ROWS[0], True, {"logits": bad})]
    summary = task.compute_metrics(rows)
    assert summary.metrics["accuracy"] == 50.0
    assert summary.rule.endswith("1 rows with NaN scores count as wrong")
    assert [row["score"] for row in summary.rows] == [1.0, 0.0]
    assert np.isfinite(summary.details["cannot_tell"]["probability"])


def test_a_retrieval_model_scores_options_by_its_embeddings(
    model: EViLM, vocabulary: Vocabulary, random_batch: Callable[..., Batch]
) -> None:
    from evilm.tasks.retrieval import Retrieval, RetrievalConfig

    torch.manual_seed(1)
    retrieval = Retrieval(model, vocabulary, RetrievalConfig(embed_dim=16, max_text_len=40), {}).eval()
    settings = {"protocol": "retrieval-tuned", "head": "embed", "embed_dim": 16}
    task = MultipleChoice(model, vocabulary, MultipleChoiceConfig.model_validate(settings), {}).eval()
    task.embed.load_state_dict(retrieval.embed.state_dict())
    batch = random_batch(ROWS)
    with torch.no_grad():
        scores = task._scores(batch)
        for i, example in enumerate(ROWS):
            video = model.encode_video(model.normalise(batch.frames[i : i + 1]))
            for k, option in enumerate(example.choices):
                words = f"{example.question} {option}" if example.question else option
                v, t = retrieval.embed_encoded(video, model.encode_text(vocabulary.encode([words], 40)))
                assert scores[i, k].item() == pytest.approx((v @ t.T / 0.05).item(), abs=1e-4)
    assert (
        task.compute_metrics(task.predict(batch)).rule == "retrieval-tuned: softmax over the cosine of video and option"
    )


def test_protocols_that_train_nothing_refuse_to_train(
    build: Callable[..., MultipleChoice], random_batch: Callable[..., Batch]
) -> None:
    for protocol in ("zero-shot", "retrieval-tuned"):
        with pytest.raises(ConfigError, match=f"task.protocol = '{protocol}' trains nothing"):
            build(protocol=protocol).losses(random_batch(ROWS))
    assert (
        build().compute_metrics(build().predict(random_batch(ROWS))).rule
        == "trained: softmax over one fusion an option"
    )
    with pytest.raises(ConfigError, match=r"task.text_only needs task.head=match"):
        build(head="embed", text_only=True)
