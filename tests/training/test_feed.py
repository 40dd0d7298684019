"""Rows of a split and their batches: thinned, labelled, with kept features, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from evilm.data.feature_cache import FeatureCache
from evilm.errors import ConfigError, DataError
from evilm.tasks import VideoTextTask
from evilm.tasks.pretrain import Pretrain
from evilm.training import build, feed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from evilm.training.recipe import Recipe


def test_a_limit_thins_evenly(make_recipe: Callable[..., Recipe], small_world: Path, tmp_path: Path) -> None:
    source = {"reader": "msrvtt_retrieval", "annotations": str(small_world), "limit": 9}
    made = make_recipe(tmp_path, {"name": "retrieval"}, data={"train": source})
    assert [example.video for example in feed.examples(made.data.train)] == [f"video{i}" for i in range(0, 72, 8)]


@pytest.mark.parametrize(
    "augment", [{}, {"crop_scale": 0.5, "shift": 2, "hflip": True, "cached_crops": 2}], ids=["", "augmented"]
)
def test_cached_labels_are_those_of_the_frames_that_are_shown(
    make_recipe: Callable[..., Recipe], tokenizer_run: Path, tmp_path: Path, augment: dict[str, Any]
) -> None:
    task = {"name": "pretrain", "tokenizer": str(tokenizer_run), "labels": "cached", "max_text_len": 24}
    made = make_recipe(tmp_path, task, data={"augment": augment})
    rows = feed.examples(made.data.train)
    built, _, _ = build.new_task(made, rows)
    assert isinstance(built, Pretrain)
    assert built.tokenizer is not None
    loader = feed.loader(made, built, rows, train=True, label=True)
    assert isinstance(loader.label_cache, FeatureCache)
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            assert batch.labels is not None
            assert torch.equal(batch.labels, built.tokenizer.labels(batch.frames))
    again = feed.loader(made, built, rows, train=True, label=False)
    assert next(iter(again)).labels is None


def test_what_cached_labels_cannot_do(make_recipe: Callable[..., Recipe], tokenizer_run: Path, tmp_path: Path) -> None:
    task = {"name": "pretrain", "tokenizer": str(tokenizer_run), "labels": "cached"}
    for data, complaint in (
        ({"cache": None}, "set data.cache"),
        ({"augment": {"shift": 2}}, "cannot follow random crops"),
    ):
        made = make_recipe(tmp_path, task, data=data)
        rows = feed.examples(made.data.train)
        built, _, _ = build.new_task(made, rows)
        with pytest.raises(ConfigError, match=complaint):
            feed.loader(made, built, rows, train=True, label=True)


@pytest.mark.parametrize(
    "augment", [{}, {"crop_scale": 0.5, "shift": 2, "hflip": True, "cached_crops": 2}], ids=["", "augmented"]
)
def test_kept_features_are_those_of_the_frames_that_are_shown(
    make_recipe: Callable[..., Recipe], pretrained_run: Path, tmp_path: Path, augment: dict[str, Any]
) -> None:
    data, optim = {"augment": augment, "features": True}, {"backbone_lr_scale": 0, "batch_size": 4}
    made = make_recipe(tmp_path, {"name": "retrieval"}, start=str(pretrained_run), data=data, optim=optim)
    rows = feed.examples(made.data.train)
    built, _, _ = build.new_task(made, rows)
    assert isinstance(built, VideoTextTask)
    loader = feed.loader(made, built, rows, train=True, label=True)
    built.eval()
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            assert batch.features is not None
            with torch.no_grad():
                kept, seen = built.encode(batch), built.encode(replace(batch, features=None))
            assert kept.grid == seen.grid
            # Half precision keeps eleven bits.
            torch.testing.assert_close(kept.tokens, seen.tokens, rtol=2e-3, atol=2e-3)
    plain = feed.loader(made, built, rows, train=True)
    assert next(iter(plain)).features is None


@pytest.mark.parametrize(
    ("change", "task", "complaint"),
    [
        (
            {"optim": {"backbone_lr_scale": 1.0}},
            "retrieval",
            r"optim\.backbone_lr = 1 trains it: set optim\.backbone_lr=0",
        ),
        ({"data": {"cache": None}}, "retrieval", r"needs cached frames: set data\.cache"),
        ({"data": {"augment": {"shift": 2}}}, "retrieval", r"data\.features cannot follow random crops"),
        ({}, "pretrain", r"data\.features cannot serve pretrain, which encodes changed pixels"),
    ],
)
def test_what_kept_features_cannot_do(
    make_recipe: Callable[..., Recipe],
    pretrained_run: Path,
    tmp_path: Path,
    change: dict[str, Any],
    task: str,
    complaint: str,
) -> None:
    data = {"features": True, **change.get("data", {})}
    settings: dict[str, Any] = {"name": task} if task == "retrieval" else {"name": task, "mvm": 0.0}
    optim = {"backbone_lr_scale": 0, **change.get("optim", {})}
    made = make_recipe(tmp_path, settings, start=str(pretrained_run), data=data, optim=optim)
    rows = feed.examples(made.data.train)
    built, _, _ = build.new_task(made, rows)
    with pytest.raises(ConfigError, match=complaint):
        feed.loader(made, built, rows, train=True, label=True)


def test_a_split_without_rows_is_refused(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    made = make_recipe(tmp_path, {"name": "retrieval"})
    task, _, _ = build.new_task(made, feed.examples(made.data.train))
    with pytest.raises(DataError, match="the split is empty"):
        feed.loader(made, task, [], train=False)
    with pytest.raises(ConfigError, match=r"optim\.batch_size = 12 is more than the 5"):
        feed.loader(made, task, feed.examples(made.data.train)[:5], train=True)
