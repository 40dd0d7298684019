"""Training tokenizers without words: the objective term by term, and what its numbers mean."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from evilm import config, metrics
from evilm import losses as formulas
from evilm.errors import ConfigError
from evilm.tasks.predictions import Prediction
from evilm.tasks.reconstruction import ReconstructionConfig, ReconstructionTask, _spread

if TYPE_CHECKING:
    from collections.abc import Callable

    from evilm.model.tokenizer import TokenizerConfig
    from evilm.types import Batch, Example

SMALL = {"backbone": "edgenext_xx_small", "options": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}}


@pytest.fixture
def build(tiny_tokenizer: TokenizerConfig) -> Callable[..., ReconstructionTask]:
    def make(target: str = "pixels", codebook: str = "gradient", **settings: object) -> ReconstructionTask:
        table = {
            "target": target, "teacher": SMALL if target == "features" else None, "num_frames": 2, **settings,
            "tokenizer": tiny_tokenizer.model_copy(update={"codebook": codebook}),
        }  # fmt: skip
        torch.manual_seed(0)
        return ReconstructionTask(ReconstructionConfig.model_validate(table), {})

    return make


@pytest.mark.parametrize(("target", "codebook"), [("pixels", "gumbel"), ("pixels", "ema"), ("features", "gradient")])
def test_gradients_reach_every_parameter(
    build: Callable[..., ReconstructionTask], random_batch: Callable[..., Batch], captioned: list[Example],
    without_gradient: Callable[..., list[str]], target: str, codebook: str,
) -> None:  # fmt: skip
    task = build(target, codebook).train()
    assert without_gradient(task, task.losses(random_batch(captioned))) == []


def test_the_objective_is_the_weighted_sum_of_its_terms(
    build: Callable[..., ReconstructionTask], random_batch: Callable[..., Batch], captioned: list[Example]
) -> None:
    task = build(codebook_weight=0.5, commitment_weight=0.25).eval()
    batch = random_batch(captioned)
    found = task.losses(batch)
    parts = {name: value.item() for name, value in found.parts.items()}
    total = parts["reconstruction"] + 0.5 * parts["codebook"] + 0.25 * parts["commitment"]
    assert found.total.item() == pytest.approx(total, rel=1e-6)
    told, quantized = task.tokenizer(batch.frames)
    wanted = formulas.reconstruction(told, task.tokenizer.targets(batch.frames)).item()
    assert parts["reconstruction"] == pytest.approx(wanted, rel=1e-6)
    assert parts["codes_in_batch"] == len(quantized.labels.unique())


def test_spread_by_hand() -> None:
    """Two clips of two regions of one number: 1, 3 and 5, 7. Their mean is 4: 9 + 1 and 1 + 9."""
    assert _spread(np.array([[4.0], [12.0]]), np.array([10.0, 74.0]), 2).tolist() == [10.0, 10.0]


def test_explained_by_hand(build: Callable[..., ReconstructionTask], captioned: list[Example]) -> None:
    """As above, with squared errors of 1 and 4: 1 - 5 / 20 over the split, 0.9 and 0.6 by clip; codes 3, 3 and 5, 3."""
    values = [
        {"error": 1.0, "sum": np.array([4.0]), "squares": 10.0, "labels": np.array([3, 3])},
        {"error": 4.0, "sum": np.array([12.0]), "squares": 74.0, "labels": np.array([5, 3])},
    ]
    task = build()
    summary = task.compute_metrics(
        [Prediction(row, True, value) for row, value in zip(captioned, values, strict=False)]
    )
    assert summary.metrics["explained"] == pytest.approx(75)
    assert [row["score"] for row in summary.rows] == pytest.approx([0.9, 0.6])
    assert summary.metrics["voc_rate"] == pytest.approx(100 * 2 / 24)
    perplexity = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert summary.metrics["perplexity"] == pytest.approx(perplexity)
    assert float(task.tokenizer.perplexity) == pytest.approx(perplexity)
    assert summary.details["collapsed"] is True  # below 2
    assert summary.chance == {"explained": 0.0}


@pytest.mark.parametrize("target", ["pixels", "features"])
def test_explained_is_one_less_error_over_variance(
    build: Callable[..., ReconstructionTask], random_batch: Callable[..., Batch], captioned: list[Example], target: str
) -> None:
    task = build(target).eval()
    batches = [random_batch(captioned[i : i + 2], seed=i) for i in range(0, 6, 2)]
    summary = task.compute_metrics([p for batch in batches for p in task.predict(batch)])
    frames = torch.cat([batch.frames for batch in batches])
    with torch.no_grad():
        wanted, (told, quantized) = task.tokenizer.targets(frames).double().flatten(0, 2), task.tokenizer(frames)
    off = (told.double().flatten(0, 2) - wanted).pow(2).sum()
    share = 1 - off / (wanted - wanted.mean(0)).pow(2).sum()
    assert summary.metrics["explained"] == pytest.approx(100 * share.item(), rel=1e-6)
    counts = np.bincount(quantized.labels.flatten().numpy(), minlength=24)
    assert summary.details["counts"] == counts.tolist()
    assert summary.metrics["perplexity"] == pytest.approx(metrics.perplexity(counts))
    assert ("an untrained edgenext_xx_small" in summary.rule) == (target == "features")


def test_unreadable_clips_are_left_out(
    build: Callable[..., ReconstructionTask], random_batch: Callable[..., Batch], captioned: list[Example]
) -> None:
    task = build().eval()
    readable = torch.tensor([True, True, False, True, True, True])
    summary = task.compute_metrics(task.predict(replace(random_batch(captioned), readable=readable)))
    assert len(summary.rows) == 5
    assert "5 clips" in summary.rule


@pytest.mark.parametrize("table", [{"target": "features"}, {"target": "pixels", "teacher": SMALL}])
def test_features_need_a_teacher_and_pixels_take_none(table: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"'features' needs a teacher \(task\.teacher\.backbone\)"):
        config.check(ReconstructionConfig, table, "test")
