"""Tasks, rows and batches of a recipe: seeds, start checkpoints, restored tasks, caches, and errors."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from evilm.data.feature_cache import FeatureCache
from evilm.data.vocabulary import Vocabulary
from evilm.errors import CheckpointError, CodebookError, ConfigError, DataError, GridError
from evilm.tasks import VideoTextTask
from evilm.tasks.pretrain import Pretrain
from evilm.tasks.question_answering import QuestionAnsweringConfig
from evilm.tasks.retrieval import Retrieval
from evilm.training import build, checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from evilm.model.presets import ModelConfig
    from evilm.training.recipe import Recipe


def test_the_same_seed_gives_the_same_task(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    task = {"name": "retrieval", "embed_dim": 16}
    one, two, other = (make_recipe(tmp_path, task, seed=seed) for seed in (3, 3, 4))
    rows = build.examples_of(one.data.train)
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
    task, start = build.new_task(made, build.examples_of(made.data.train))
    theirs = checkpoint.read_tensors(checkpoint.find(pretrained_run) / "model.safetensors")
    own = task.state_dict()
    for name in own:
        if name.startswith("model."):
            assert torch.equal(own[name], theirs[name])
    assert all(name.startswith("answer_head.") for name in start.fresh)
    assert start.fresh
    assert {name.split(".")[0] for name in start.unused} == {"word_head", "match", "embed"}
    said = str(start)
    assert said.startswith("loaded: model.fusion, model.text_encoder, model.video_encoder;")
    assert "random: answer_head;" in said


def test_heads_of_the_same_name_and_shape_come_along(
    make_recipe: Callable[..., Recipe], pretrained_run: Path, tmp_path: Path
) -> None:
    theirs = checkpoint.read_tensors(checkpoint.find(pretrained_run) / "model.safetensors")
    made = make_recipe(tmp_path, {"name": "retrieval", "embed_dim": 16, "vtm_weight": 1.0}, start=str(pretrained_run))
    task, start = build.new_task(made, build.examples_of(made.data.train))
    assert not start.fresh
    assert torch.equal(task.state_dict()["embed.video_out.weight"], theirs["embed.video_out.weight"])
    wider = make_recipe(tmp_path, {"name": "retrieval", "embed_dim": 24}, start=str(pretrained_run))
    _, start = build.new_task(wider, build.examples_of(made.data.train))
    assert {name for name in start.fresh if "out.weight" in name} == {"embed.video_out.weight", "embed.text_out.weight"}


def test_a_start_of_another_shape_is_refused(
    make_recipe: Callable[..., Recipe], pretrained_run: Path, tiny: ModelConfig, tmp_path: Path
) -> None:
    other = tiny.model_copy(update={"embed_dim": 64}).model_dump()
    made = make_recipe(tmp_path, {"name": "retrieval"}, start=str(pretrained_run), model=other)
    with pytest.raises(CheckpointError, match=r"not of this model's shape.*leave the recipe's \[model\] out"):
        build.new_task(made, build.examples_of(made.data.train))
    deeper = make_recipe(
        tmp_path,
        {"name": "retrieval"},
        start=str(pretrained_run),
        model=tiny.model_copy(update={"depth": 3}).model_dump(),
    )
    with pytest.raises(CheckpointError, match="not of this model's shape"):
        build.new_task(deeper, build.examples_of(made.data.train))


def test_a_start_with_another_vocabulary_is_refused(
    make_recipe: Callable[..., Recipe], pretrained_run: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    vocabulary.save(tmp_path / "other.json")
    made = make_recipe(
        tmp_path, {"name": "retrieval"}, start=str(pretrained_run), vocabulary=str(tmp_path / "other.json")
    )
    with pytest.raises(CheckpointError, match="another vocabulary"):
        build.new_task(made, build.examples_of(made.data.train))
    Vocabulary.default().save(tmp_path / "same.json")
    made = make_recipe(
        tmp_path, {"name": "retrieval"}, start=str(pretrained_run), vocabulary=str(tmp_path / "same.json")
    )
    build.new_task(made, build.examples_of(made.data.train))


def test_a_tokenizer_is_no_start_and_a_model_no_tokenizer(
    make_recipe: Callable[..., Recipe], pretrained_run: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    made = make_recipe(tmp_path, {"name": "retrieval"}, start=str(tokenizer_run))
    with pytest.raises(CheckpointError, match="is a tokenizer checkpoint, which holds no E-ViLM"):
        build.new_task(made, build.examples_of(made.data.train))
    made = make_recipe(tmp_path, {"name": "pretrain", "tokenizer": str(pretrained_run)})
    with pytest.raises(CheckpointError, match="is a pretrain checkpoint, not a video tokenizer's"):
        build.new_task(made, build.examples_of(made.data.train))


def test_pre_training_takes_the_trained_tokenizer_frozen(
    make_recipe: Callable[..., Recipe], tokenizer_run: Path, tmp_path: Path
) -> None:
    made = make_recipe(tmp_path, {"name": "pretrain", "tokenizer": str(tokenizer_run)})
    task, _ = build.new_task(made, build.examples_of(made.data.train))
    assert isinstance(task, Pretrain)
    tokenizer = task.target_tokenizer
    assert tokenizer is not None
    assert task.facts == {"codes": 24, "tokenizer": tokenizer.fingerprint()}
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())


def test_a_tokenizer_of_another_grid_is_refused_before_anything_runs(
    make_recipe: Callable[..., Recipe], tokenizer_run: Path, tiny: ModelConfig, tmp_path: Path
) -> None:
    coarse = tiny.model_copy(update={"stride": 32}).model_dump()
    made = make_recipe(tmp_path, {"name": "pretrain", "tokenizer": str(tokenizer_run)}, model=coarse)
    with pytest.raises(GridError, match="4x4 patches a frame and the model has 2x2"):
        build.new_task(made, build.examples_of(made.data.train))


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
        build.new_task(made, build.examples_of(made.data.train))


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
        ({"recipe": {}}, "was written by evilm .* 'task' is missing"),
        ({"recipe": None}, "holds no recipe"),
        ({"model": None}, r"config\.json: model"),
        ({"model": {"embed_dim": 7}}, r"config\.json: model.*must divide"),
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


def test_a_checkpoint_of_an_old_version_is_refused_with_the_new_names(pretrained_run: Path, tmp_path: Path) -> None:
    source = checkpoint.find(pretrained_run)

    def fill(folder: Path) -> None:
        for name in ("model.safetensors", "vocabulary.json"):
            shutil.copy(source / name, folder)
        metadata = checkpoint.read_json(source / "config.json")
        metadata["recipe"]["optim"]["clip"] = metadata["recipe"]["optim"].pop("grad_clip")
        checkpoint.write_json(folder / "config.json", {**metadata, "versions": {"evilm": "0.1.0"}})

    checkpoint.write(tmp_path / "old", fill)
    with pytest.raises(CheckpointError, match=r"written by evilm 0\.1\.0 .*'optim\.clip' is now 'optim\.grad_clip'"):
        build.restore(tmp_path / "old")


@pytest.mark.parametrize(
    ("task", "reader", "missing"),
    [
        ("retrieval", "hmdb51", "caption"),
        ("question_answering", "msrvtt_retrieval", "question with an answer"),
        ("multiple_choice", "msrvtt_qa", "options"),
        ("linear_probe", "msrvtt_qa", "class label"),
        ("paraphrase", "hmdb51", "second caption"),
    ],
)
def test_training_rows_without_what_the_task_needs_are_refused(
    make_recipe: Callable[..., Recipe], tmp_path: Path, task: str, reader: str, missing: str
) -> None:
    made = make_recipe(tmp_path, {"name": task}, reader)
    with pytest.raises(DataError, match=rf"data\.train: row .* has no {missing}, which {task} needs"):
        build.new_task(made, build.examples_of(made.data.train))


def test_a_limit_thins_evenly(make_recipe: Callable[..., Recipe], small_world: Path, tmp_path: Path) -> None:
    source = {"reader": "msrvtt_retrieval", "annotations": str(small_world), "limit": 9}
    made = make_recipe(tmp_path, {"name": "retrieval"}, data={"train": source})
    assert [example.video for example in build.examples_of(made.data.train)] == [f"video{i}" for i in range(0, 72, 8)]


@pytest.mark.parametrize(
    "augment", [{}, {"crop_scale": 0.5, "shift": 2, "hflip": True, "cached_crops": 2}], ids=["", "augmented"]
)
def test_cached_labels_are_those_of_the_frames_that_are_shown(
    make_recipe: Callable[..., Recipe], tokenizer_run: Path, tmp_path: Path, augment: dict[str, Any]
) -> None:
    task = {"name": "pretrain", "tokenizer": str(tokenizer_run), "labels": "cached", "max_text_len": 24}
    made = make_recipe(tmp_path, task, data={"augment": augment})
    rows = build.examples_of(made.data.train)
    built, _ = build.new_task(made, rows)
    assert isinstance(built, Pretrain)
    assert built.target_tokenizer is not None
    loader = build.make_loader(made, built, rows, train=True, caches=True)
    assert isinstance(loader.label_cache, FeatureCache)
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            assert batch.labels is not None
            assert torch.equal(batch.labels, built.target_tokenizer.labels(batch.frames))
    again = build.make_loader(made, built, rows, train=True)
    assert next(iter(again)).labels is None


def test_what_cached_labels_cannot_do(make_recipe: Callable[..., Recipe], tokenizer_run: Path, tmp_path: Path) -> None:
    task = {"name": "pretrain", "tokenizer": str(tokenizer_run), "labels": "cached"}
    for data, complaint in (
        ({"cache": None}, "set data.cache"),
        ({"augment": {"shift": 2}}, "needs a limited number of crops"),
    ):
        made = make_recipe(tmp_path, task, data=data)
        rows = build.examples_of(made.data.train)
        built, _ = build.new_task(made, rows)
        with pytest.raises(ConfigError, match=complaint):
            build.make_loader(made, built, rows, train=True, caches=True)


@pytest.mark.parametrize(
    "augment", [{}, {"crop_scale": 0.5, "shift": 2, "hflip": True, "cached_crops": 2}], ids=["", "augmented"]
)
def test_kept_features_are_those_of_the_frames_that_are_shown(
    make_recipe: Callable[..., Recipe], pretrained_run: Path, tmp_path: Path, augment: dict[str, Any]
) -> None:
    data, optim = {"augment": augment, "features": True}, {"backbone_lr_scale": 0, "batch_size": 4}
    made = make_recipe(tmp_path, {"name": "retrieval"}, start=str(pretrained_run), data=data, optim=optim)
    rows = build.examples_of(made.data.train)
    built, _ = build.new_task(made, rows)
    assert isinstance(built, VideoTextTask)
    loader = build.make_loader(made, built, rows, train=True, caches=True)
    plain = build.make_loader(made, built, rows, train=True)
    built.eval()
    for epoch in (0, 1):
        for batch, with_frames in zip(loader.epoch(epoch), plain.epoch(epoch), strict=True):
            assert batch.features is not None
            assert not batch.frames.numel()  # nobody looks at them
            with torch.no_grad():
                kept, seen = built.encode(batch), built.encode(with_frames)
            assert kept.grid == seen.grid
            # Half precision keeps eleven bits.
            torch.testing.assert_close(kept.tokens, seen.tokens, rtol=2e-3, atol=2e-3)


def test_means_of_features_are_enough_for_embeddings_that_skip_fusion(
    make_recipe: Callable[..., Recipe], tiny: ModelConfig, tmp_path: Path
) -> None:
    model = tiny.model_copy(update={"embedding": "pooled"}).model_dump()
    data, optim = {"features": True}, {"backbone_lr_scale": 0, "batch_size": 4}
    made = make_recipe(tmp_path, {"name": "retrieval"}, model=model, data=data, optim=optim)
    rows = build.examples_of(made.data.train)
    built, _ = build.new_task(made, rows)
    built.eval()
    assert isinstance(built, Retrieval)
    kept = next(build.make_loader(made, built, rows, train=True, caches=True).epoch(0))
    seen = next(build.make_loader(made, built, rows, train=True).epoch(0))
    assert kept.features is not None
    assert kept.features.shape[2:4] == (1, 1)
    with torch.no_grad():
        vectors = [built.embed.video(built.model, built.encode(batch)) for batch in (kept, seen)]
    torch.testing.assert_close(*vectors, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "task", "complaint"),
    [
        (
            {"optim": {"backbone_lr_scale": 1.0}},
            "retrieval",
            r"optim\.backbone_lr_scale = 1 trains it: set optim\.backbone_lr_scale=0",
        ),
        ({"data": {"cache": None}}, "retrieval", r"needs cached frames: set data\.cache"),
        ({"data": {"augment": {"shift": 2}}}, "retrieval", r"data\.features needs a limited number of crops"),
        ({}, "paraphrase", r"data\.features: paraphrase encodes no unchanged frames"),
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
    optim = {"backbone_lr_scale": 0, **change.get("optim", {})}
    made = make_recipe(tmp_path, {"name": task}, start=str(pretrained_run), data=data, optim=optim)
    rows = build.examples_of(made.data.train)
    built, _ = build.new_task(made, rows)
    with pytest.raises(ConfigError, match=complaint):
        build.make_loader(made, built, rows, train=True, caches=True)


def test_a_split_without_rows_is_refused(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    made = make_recipe(tmp_path, {"name": "retrieval"})
    task, _ = build.new_task(made, build.examples_of(made.data.train))
    with pytest.raises(DataError, match="the split is empty"):
        build.make_loader(made, task, [], train=False)
    with pytest.raises(ConfigError, match=r"optim\.batch_size = 12 is larger than the 5"):
        build.make_loader(made, task, build.examples_of(made.data.train)[:5], train=True)
