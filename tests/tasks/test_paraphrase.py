"""Paraphrase: two captions of a row find each other, and no video is asked for anything."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from evilm import losses
from evilm.errors import DataError
from evilm.tasks.paraphrase import Paraphrase, ParaphraseConfig
from evilm.tasks.predictions import Prediction

if TYPE_CHECKING:
    from collections.abc import Callable

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.types import Batch, Example


@pytest.fixture
def task(model: EViLM, vocabulary: Vocabulary) -> Paraphrase:
    torch.manual_seed(1)
    return Paraphrase(model, vocabulary, ParaphraseConfig(embed_dim=16), {})


def test_gradients_reach_every_parameter_of_the_text_side_and_no_other(
    task: Paraphrase, random_batch: Callable[..., Batch], captioned: list[Example],
    without_gradient: Callable[..., list[str]],
) -> None:  # fmt: skip
    found = task.train().losses(random_batch(captioned))
    assert set(found.parts) == {"paraphrase"}
    assert without_gradient(task, found) == []
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert not any("video" in name for name in trained)
    assert {"embed.text_out.weight", "model.fusion.cls", "model.text_encoder.project.weight"} <= trained


def test_the_loss_is_the_contrast_of_first_and_second_captions(
    task: Paraphrase, random_batch: Callable[..., Batch], captioned: list[Example]
) -> None:
    batch, task = random_batch(captioned[:3]), task.eval()
    with torch.no_grad():
        each = [
            task.embed.text(task.model, task.model.encode_text(task.text(texts, batch)))
            for texts in ([row.captions[which] for row in captioned[:3]] for which in (0, 1))
        ]
        wanted = losses.contrastive(each[0], each[1], 0.07).item()
        assert task.losses(batch).total.item() == pytest.approx(wanted, rel=1e-4)
        unseen = replace(batch, frames=255 - batch.frames)
        assert task.losses(unseen).total.item() == task.losses(batch).total.item()


def test_metrics_by_hand(task: Paraphrase, captioned: list[Example]) -> None:
    first = np.eye(3)
    second = np.array([[1.0, 0, 0], [0.9, 0.1, 0], [0, 0.2, 0.8]])  # text 1 finds that of row 2 first: rank 2
    rows = [Prediction(captioned[i], True, {"first": first[i], "second": second[i]}) for i in range(3)]
    summary = task.compute_metrics(rows)
    assert [row["rank"] for row in summary.rows] == [1, 2, 1]
    assert summary.metrics["R@1"] == pytest.approx(200 / 3)
    assert summary.chance["R@1"] == pytest.approx(100 / 3)


def test_rows_of_one_caption_are_refused(captioned: list[Example]) -> None:
    rows = [captioned[0], replace(captioned[1], captions=("alone",))]
    with pytest.raises(DataError, match=r"data\.train: row row1 has no second caption, which paraphrase needs"):
        Paraphrase.check_rows(rows, "data.train")
