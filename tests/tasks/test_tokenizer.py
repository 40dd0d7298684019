"""Training the video tokenizer: Eq. 7 term by term, its targets, and the measures of its codebook."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from evilm import losses as formulas
from evilm import metrics
from evilm.errors import VocabularyError
from evilm.tasks.tokenizer import TokenizerTask, TokenizerTaskConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from evilm.model.tokenizer import TokenizerConfig
    from evilm.types import Batch, Example


@pytest.fixture
def build(tiny_tokenizer: TokenizerConfig, captioned: list[Example]) -> Callable[..., TokenizerTask]:
    def make(**settings: object) -> TokenizerTask:
        config = TokenizerTaskConfig.model_validate(
            {"tokenizer": tiny_tokenizer, "num_frames": 2, "min_count": 1, **settings}
        )
        torch.manual_seed(0)
        return TokenizerTask(config, TokenizerTask.learn_facts(config, captioned))

    return make


@pytest.mark.parametrize("word_loss", ["focal", "bce"])
def test_gradients_reach_every_parameter(
    build: Callable[..., TokenizerTask], random_batch: Callable[..., Batch], captioned: list[Example], word_loss: str,
    without_gradient: Callable[..., list[str]],
) -> None:  # fmt: skip
    task = build(word_loss=word_loss).train()
    assert without_gradient(task, task.losses(random_batch(captioned))) == []


def test_eq_7_is_the_weighted_sum_of_its_terms(
    build: Callable[..., TokenizerTask], random_batch: Callable[..., Batch], captioned: list[Example]
) -> None:
    task = build(word_weight=3.0, codebook_weight=0.5, commitment_weight=0.25).eval()
    batch = random_batch(captioned)
    found = task.losses(batch)
    parts = {name: value.item() for name, value in found.parts.items()}
    total = 3 * parts["words"] + 0.5 * parts["codebook"] + 0.25 * parts["commitment"]
    assert found.total.item() == pytest.approx(total, rel=1e-6)
    logits, quantized = task.tokenizer(batch.frames)
    targets = torch.from_numpy(task.caption_words.targets([[example.captions[0]] for example in captioned]))
    assert parts["words"] == pytest.approx(formulas.focal_words(logits, targets).item(), rel=1e-6)
    assert parts["codes_in_batch"] == len(quantized.labels.unique())


def test_words_are_counted_on_the_training_captions(build: Callable[..., TokenizerTask]) -> None:
    task = build()
    # Each of 6 clips has two captions; "a" and "the" and "red" occur most.
    assert set(task.caption_words.words) == set(
        "a the red blue green disc square star moves grows jumps left right up".split()
    )
    few = build(min_count=3, max_words=4)
    assert len(few.caption_words.words) == 4
    assert few.caption_words.words[0] == "a"
    with pytest.raises(VocabularyError, match=r"lower task\.min_count"):
        build(min_count=50)


def test_drawn_or_all_captions(
    build: Callable[..., TokenizerTask], random_batch: Callable[..., Batch], captioned: list[Example]
) -> None:
    two = replace(captioned[0], captions=("a red disc", "the blue square"))
    index = {word: k for k, word in enumerate(build().caption_words.words)}
    every = build(captions="all")._targets(random_batch([two]))[0]
    assert every[[index["red"], index["square"]]].tolist() == [1, 1]
    task = build().eval()
    first = task._targets(random_batch([two]))[0]
    assert first[[index["red"], index["square"]]].tolist() == [1, 0]
    task.train()
    seen = {tuple(task._targets(random_batch([two], seed=seed))[0].tolist()) for seed in range(20)}
    assert len(seen) == 2  # one caption or the other, never both


def test_summary_counts_codes_over_the_whole_split(
    build: Callable[..., TokenizerTask], random_batch: Callable[..., Batch], captioned: list[Example]
) -> None:
    task = build().eval()
    predictions = [p for i in range(0, 6, 2) for p in task.predict(random_batch(captioned[i : i + 2], seed=i))]
    summary = task.compute_metrics(predictions)
    counts = np.bincount(np.concatenate([p.values["labels"] for p in predictions]), minlength=24)
    assert counts.sum() == 6 * 2 * 16
    assert summary.details["counts"] == counts.tolist()
    assert summary.metrics["voc_rate"] == pytest.approx(100 * (counts > 0).mean())
    assert summary.metrics["perplexity"] == pytest.approx(metrics.perplexity(counts))
    assert float(task.tokenizer.perplexity) == pytest.approx(summary.metrics["perplexity"], rel=1e-6)
    assert summary.details["collapsed"] is False
    assert 0 < summary.chance["word_mAP"] < 100


def test_a_collapsed_codebook_is_said(
    build: Callable[..., TokenizerTask], random_batch: Callable[..., Batch], captioned: list[Example]
) -> None:
    task = build().eval()
    predictions = task.predict(random_batch(captioned))
    for prediction in predictions:
        prediction.values["labels"][:] = 3
    summary = task.compute_metrics(predictions)
    assert summary.metrics["perplexity"] == pytest.approx(1)
    assert summary.details["collapsed"] is True
    assert task.tokenizer.collapsed


def test_unreadable_clips_are_left_out_and_the_rule_says_how_many_remain(
    build: Callable[..., TokenizerTask], random_batch: Callable[..., Batch], captioned: list[Example]
) -> None:
    task = build().eval()
    readable = torch.tensor([True, True, False, True, True, True])
    summary = task.compute_metrics(task.predict(replace(random_batch(captioned), readable=readable)))
    assert len(summary.rows) == 5
    assert "5 clips" in summary.rule
