"""A task trained on frozen encoders keeps the embeddings of pooled features: one model embeds, and does the task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import evilm
from evilm import cli
from evilm.export import writer
from evilm.training import build, trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from evilm.model.presets import ModelConfig
    from evilm.training.recipe import Recipe

FROZEN = {"backbone_lr_scale": 0, "text_lr_scale": 0}
TEXTS = ["a red ball bounces", "what moves to the left"]


def test_a_model_that_learns_answers_still_finds_videos(
    make_recipe: Callable[..., Recipe], tiny: ModelConfig, small_world: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = tiny.model_copy(update={"embedding": "pooled"}).model_dump()
    task = {"name": "retrieval", "max_text_len": 24, "embed_dim": 16}
    first = trainer.train(make_recipe(tmp_path / "first", task, model=model, optim={"epochs": 1}))
    matching = {"name": "pretrain", "mvm_weight": 0, "max_text_len": 24}
    middle = trainer.train(
        make_recipe(tmp_path / "middle", matching, start=str(first), optim={"epochs": 0.5, **FROZEN})
    )
    questions = {"name": "question_answering", "max_text_len": 24}
    recipe = make_recipe(
        tmp_path / "second", questions, "msrvtt_qa", start=str(middle), optim={"epochs": 0.5, **FROZEN}
    )
    second = trainer.train(recipe)
    before, after = evilm.load(first), evilm.load(second)
    assert set(after.runtime.metadata.heads) == {"embed_video", "embed_text", "answer"}
    clips = sorted((small_world / "videos").glob("*.mp4"))[:4]
    np.testing.assert_array_equal(after.embed_videos(clips).vectors, before.embed_videos(clips).vectors)
    np.testing.assert_array_equal(after.embed_texts(TEXTS), before.embed_texts(TEXTS))
    answer = after.answer(clips[0], "what color is the ball?")
    assert answer.candidates
    assert len(answer.attended_frames()) == tiny.num_frames  # the answer depends on the decoder

    writer.export(second, tmp_path / "export")
    exported = evilm.load(tmp_path / "export")
    np.testing.assert_allclose(exported.embed_texts(TEXTS), before.embed_texts(TEXTS), atol=1e-5)
    assert exported.answer(clips[0], "what color is the ball?").answer == answer.answer

    third = trainer.train(make_recipe(tmp_path / "third", task, start=str(second), optim={"epochs": 0.5, **FROZEN}))
    adapted = evilm.load(third)  # new embeddings, and the answers of the start
    assert adapted.answer(clips[0], "what color is the ball?").candidates == answer.candidates
    assert not np.array_equal(adapted.embed_texts(TEXTS), before.embed_texts(TEXTS))

    change = "data.test.reader=msrvtt_retrieval"
    assert cli.run(["evaluate", str(second), "--task", "retrieval", "--split", "test", change]) == 0
    assert "R@1" in capsys.readouterr().out


def test_embeddings_are_not_kept_where_an_encoder_changes(
    make_recipe: Callable[..., Recipe], tiny: ModelConfig, tmp_path: Path
) -> None:
    model: dict[str, Any] = tiny.model_copy(update={"embedding": "pooled"}).model_dump()
    task = {"name": "retrieval", "max_text_len": 24, "embed_dim": 16}
    first = trainer.train(make_recipe(tmp_path / "first", task, model=model, optim={"epochs": 0.25}))
    for changed in FROZEN:
        optim = {**FROZEN, changed: 1.0}
        made = make_recipe(tmp_path, {"name": "question_answering"}, "msrvtt_qa", start=str(first), optim=optim)
        built, _ = build.new_task(made, build.examples_of(made.data.train))
        assert not hasattr(built, "embed")
