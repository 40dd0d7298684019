"""Tasks as a recipe makes them: seeds, starts, tokenizers, restored ones, and what is refused."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from evilm.data.vocabulary import Vocabulary
from evilm.errors import CheckpointError, CodebookError, ConfigError, GridError
from evilm.tasks.pretrain import Pretrain
from evilm.tasks.question_answering import QuestionAnsweringConfig
from evilm.training import build, checkpoint, feed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from evilm.model.presets import ModelConfig
    from evilm.training.recipe import Recipe


def test_the_same_seed_gives_the_same_task(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    task = {"name": "retrieval", "embed_dim": 16}
    one, two, other = (make_recipe(tmp_path, task, seed=seed) for seed in (3, 3, 4))
    rows = feed.examples(one.data.train)
    torch.rand(7)
    first = build.new_task(one, rows)[0].state_dict()
    torch.rand(5)
    second = build.new_task(two, rows)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    third = build.new_task(other, rows)[0].state_dict()
    assert not torch.equal(first["embed.text_out.weight"], third["embed.text_out.weight"])


def test_a_start_copies_what_has_a_place_and_says_the_rest(
    make_recipe: Callable[..., Recipe], pretrained_run: Path, tmp_path: Path
) -> None:
    made = make_recipe(tmp_path, {"name": "question_answering"}, "msrvtt_qa", start=str(pretrained_run))
    task, _, start = build.new_task(made, feed.examples(made.data.train))
    theirs = checkpoint.read_tensors(checkpoint.find(pretrained_run) / "model.safetensors")
    own = task.state_dict()
    for name in own:
        if name.startswith("model."):
            assert torch.equal(own[name], theirs[name])
    assert all(name.startswith("answer_head.") for name in start.fresh)
    assert start.fresh
    assert {name.split(".")[0] for name in start.left} == {"word_head", "match", "embed"}
    said = str(start)
    assert said.startswith("loaded: model.fusion, model.text_encoder, model.video_encoder;")
    assert "at random: answer_head;" in said


def test_heads_of_the_same_name_and_shape_come_along(
    make_recipe: Callable[..., Recipe], pretrained_run: Path, tmp_path: Path
) -> None:
    theirs = checkpoint.read_tensors(checkpoint.find(pretrained_run) / "model.safetensors")
    made = make_recipe(tmp_path, {"name": "retrieval", "embed_dim": 16, "vtm_weight": 1.0}, start=str(pretrained_run))
    task, _, start = build.new_task(made, feed.examples(made.data.train))
    assert not start.fresh
    assert torch.equal(task.state_dict()["embed.video_out.weight"], theirs["embed.video_out.weight"])
    wider = make_recipe(tmp_path, {"name": "retrieval", "embed_dim": 24}, start=str(pretrained_run))
    _, _, start = build.new_task(wider, feed.examples(made.data.train))
    assert {name for name in start.fresh if "out.weight" in name} == {"embed.video_out.weight", "embed.text_out.weight"}


def test_a_start_of_another_shape_is_refused(
    make_recipe: Callable[..., Recipe], pretrained_run: Path, tiny: ModelConfig, tmp_path: Path
) -> None:
    other = tiny.model_copy(update={"width": 64}).model_dump()
    made = make_recipe(tmp_path, {"name": "retrieval"}, start=str(pretrained_run), model=other)
    with pytest.raises(CheckpointError, match=r"not of this model's shape.*leave the recipe's \[model\] out"):
        build.new_task(made, feed.examples(made.data.train))
    deeper = make_recipe(
        tmp_path,
        {"name": "retrieval"},
        start=str(pretrained_run),
        model=tiny.model_copy(update={"depth": 3}).model_dump(),
    )
    with pytest.raises(CheckpointError, match="not of this model's shape"):
        build.new_task(deeper, feed.examples(made.data.train))


def test_a_start_with_another_vocabulary_is_refused(
    make_recipe: Callable[..., Recipe], pretrained_run: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    vocabulary.save(tmp_path / "other.json")
    made = make_recipe(
        tmp_path, {"name": "retrieval"}, start=str(pretrained_run), vocabulary=str(tmp_path / "other.json")
    )
    with pytest.raises(CheckpointError, match="another vocabulary"):
        build.new_task(made, feed.examples(made.data.train))
    Vocabulary.default().save(tmp_path / "same.json")
    made = make_recipe(
        tmp_path, {"name": "retrieval"}, start=str(pretrained_run), vocabulary=str(tmp_path / "same.json")
    )
    build.new_task(made, feed.examples(made.data.train))


def test_a_tokenizer_is_no_start_and_a_model_no_tokenizer(
    make_recipe: Callable[..., Recipe], pretrained_run: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    made = make_recipe(tmp_path, {"name": "retrieval"}, start=str(tokenizer_run))
    with pytest.raises(CheckpointError, match="is a tokenizer checkpoint, which holds no E-ViLM"):
        build.new_task(made, feed.examples(made.data.train))
    made = make_recipe(tmp_path, {"name": "pretrain", "tokenizer": str(pretrained_run)})
    with pytest.raises(CheckpointError, match="is a pretrain checkpoint, not a video tokenizer's"):
        build.new_task(made, feed.examples(made.data.train))


def test_pre_training_takes_the_trained_tokenizer_frozen(
    make_recipe: Callable[..., Recipe], tokenizer_run: Path, tmp_path: Path
) -> None:
    made = make_recipe(tmp_path, {"name": "pretrain", "tokenizer": str(tokenizer_run)})
    task, facts, _ = build.new_task(made, feed.examples(made.data.train))
    assert isinstance(task, Pretrain)
    assert task.tokenizer is not None
    assert facts == {"codes": 24, "tokenizer": task.tokenizer.fingerprint()}
    assert not any(parameter.requires_grad for parameter in task.tokenizer.parameters())


def test_a_tokenizer_of_another_grid_is_refused_before_anything_runs(
    make_recipe: Callable[..., Recipe], tokenizer_run: Path, tiny: ModelConfig, tmp_path: Path
) -> None:
    coarse = tiny.model_copy(update={"stride": 32}).model_dump()
    made = make_recipe(tmp_path, {"name": "pretrain", "tokenizer": str(tokenizer_run)}, model=coarse)
    with pytest.raises(GridError, match="4x4 cells a frame and the model has 2x2"):
        build.new_task(made, feed.examples(made.data.train))


def test_a_collapsed_tokenizer_is_refused(
    make_recipe: Callable[..., Recipe], tokenizer_run: Path, tmp_path: Path
) -> None:
    source = checkpoint.find(tokenizer_run)
    tensors = checkpoint.read_tensors(source / "model.safetensors")

    def fill(folder: Path) -> None:
        shutil.copy(source / "config.json", folder)
        checkpoint.write_tensors(folder / "model.safetensors", {**tensors, "tokenizer.perplexity": torch.tensor(1.1)})

    checkpoint.write(tmp_path / "collapsed", fill)
    made = make_recipe(tmp_path / "run", {"name": "pretrain", "tokenizer": str(tmp_path / "collapsed")})
    with pytest.raises(CodebookError, match="has collapsed"):
        build.new_task(made, feed.examples(made.data.train))


def test_restore_gives_back_the_very_task(pretrained_run: Path) -> None:
    task, about = build.restore(pretrained_run)
    assert not task.training
    assert about["task"] == "pretrain"
    theirs = checkpoint.read_tensors(checkpoint.find(pretrained_run) / "model.safetensors")
    own = task.state_dict()
    assert set(own) == set(theirs)
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_restore_as_another_task_needs_its_heads(pretrained_run: Path) -> None:
    with pytest.raises((CheckpointError, KeyError), match="answer"):
        build.restore(pretrained_run, QuestionAnsweringConfig())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"recipe": {}}, "not written by this version"),
        ({"recipe": None}, "not written by this version"),
        ({"model": None}, r"config\.json: model"),
        ({"model": {"embed_dim": 7}}, r"config\.json: model.*heads must divide width"),
    ],
)
def test_a_checkpoint_whose_facts_are_gone(
    pretrained_run: Path, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    """Its checksums are right, so only its content can tell."""
    source = checkpoint.find(pretrained_run)

    def fill(folder: Path) -> None:
        for name in ("model.safetensors", "vocabulary.json"):
            shutil.copy(source / name, folder)
        checkpoint.write_json(folder / "config.json", {**checkpoint.read_json(source / "config.json"), **change})

    checkpoint.write(tmp_path / "odd", fill)
    with pytest.raises((CheckpointError, ConfigError), match=complaint):
        build.restore(tmp_path / "odd")
