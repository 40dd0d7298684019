"""Recipes and the objects they stand for: presets, starts, restored tasks, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from evilm import checkpoint, recipe, trainer
from evilm.data.labels import LabelStore
from evilm.data.vocabulary import Vocabulary
from evilm.errors import CheckpointError, CodebookError, ConfigError, DataError, GridError
from evilm.model.presets import PRESETS
from evilm.tasks import VideoTextTask
from evilm.tasks.pretrain import Pretrain
from evilm.tasks.question_answering import QuestionAnsweringConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from evilm.model.presets import ModelConfig
    from evilm.recipe import Recipe

MINIMAL = '[task]\nname = "retrieval"\n[data]\ntrain = { reader = "msrvtt_retrieval", annotations = "x" }\n'
SHORT: dict[str, Any] = {"optim": {"epochs": 0.25, "batch_size": 18}}


def loaded(folder: Path, text: str, *overrides: str) -> Recipe:
    path = folder / "r.toml"
    path.write_text(text)
    return recipe.load(path, overrides)


def test_a_preset_with_changes(tmp_path: Path) -> None:
    made = loaded(tmp_path, MINIMAL + '[model]\npreset = "evilm-xx-small"\ndepth = 2\n', "model.frames=8")
    wanted = PRESETS["evilm-xx-small"].model_copy(update={"depth": 2, "frames": 8})
    assert made.model == wanted
    assert loaded(tmp_path, MINIMAL, "model.preset=evilm-tiny").model == PRESETS["evilm-tiny"]


def test_a_written_recipe_reads_back_equal(tmp_path: Path) -> None:
    """What a checkpoint keeps of a recipe is the recipe."""
    made = loaded(tmp_path, MINIMAL, "model.preset=evilm-tiny", "data.cache=here", "optim.lr=3e-4")
    assert recipe.Recipe.model_validate(json.loads(made.model_dump_json())) == made


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ((), "name a model"),
        (("model.preset=evilm-giant",), "unknown preset 'evilm-giant'"),
        (("model.preset=evilm-tiny", "model.width=100"), "heads must divide width"),
        (("model.preset=evilm-tiny", "model.witdh=100"), "did you mean 'width'"),
        (("model.preset=evilm-tiny", "task.protocol=best"), "'dual-encoder', 'pairwise' or 're-rank'"),
        (("model.preset=evilm-tiny", "task.name=pretraining"), "pretraining"),
        (("model.preset=evilm-tiny", "optim.lr=-1"), "greater than 0"),
        (("model.preset=evilm-tiny", "data.train.split=3"), "valid string"),
        (("model.preset=evilm-tiny", "run.device=gpu"), "'auto', 'cpu', 'cuda' or 'mps'"),
    ],
)
def test_what_a_recipe_may_not_say(tmp_path: Path, overrides: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        loaded(tmp_path, MINIMAL, *overrides)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_limit_thins_evenly(make_recipe: Callable[..., Recipe], small_world: Path, tmp_path: Path) -> None:
    source = {"reader": "msrvtt_retrieval", "annotations": str(small_world), "limit": 9}
    made = make_recipe(tmp_path, {"name": "retrieval"}, data={"train": source})
    assert [example.video for example in recipe.examples(made.data.train)] == [f"video{i}" for i in range(0, 72, 8)]


def test_the_same_seed_gives_the_same_task(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    task = {"name": "retrieval", "embedding": 16}
    one, two, other = (make_recipe(tmp_path, task, seed=seed) for seed in (3, 3, 4))
    rows = recipe.examples(one.data.train)
    torch.rand(7)
    first = recipe.new_task(one, rows)[0].state_dict()
    torch.rand(5)
    second = recipe.new_task(two, rows)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    third = recipe.new_task(other, rows)[0].state_dict()
    assert not torch.equal(first["embed.text_out.weight"], third["embed.text_out.weight"])


@pytest.fixture(scope="module")
def base(make_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training run without MVM, of one epoch's quarter."""
    task = {"name": "pretrain", "mvm": 0, "contrastive": 1.0, "words": 24, "embedding": 16}
    return trainer.train(make_recipe(tmp_path_factory.mktemp("runs") / "base", task, **SHORT))


def test_a_start_copies_what_has_a_place_and_says_the_rest(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    made = make_recipe(tmp_path, {"name": "question_answering"}, "msrvtt_qa", start=str(base))
    task, _, start = recipe.new_task(made, recipe.examples(made.data.train))
    theirs = checkpoint.read_tensors(checkpoint.find(base) / "model.safetensors")
    own = task.state_dict()
    for name in own:
        if name.startswith("model."):
            assert torch.equal(own[name], theirs[name])
    assert all(name.startswith("answer_head.") for name in start.fresh)
    assert start.fresh
    assert {name.split(".")[0] for name in start.left} == {"word_head", "match", "embed"}
    said = str(start)
    assert said.startswith("loaded: model.decoder, model.text_encoder, model.video_encoder;")
    assert "at random: answer_head;" in said


def test_heads_of_the_same_name_and_shape_come_along(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    theirs = checkpoint.read_tensors(checkpoint.find(base) / "model.safetensors")
    made = make_recipe(tmp_path, {"name": "retrieval", "embedding": 16, "vtm": 1.0}, start=str(base))
    task, _, start = recipe.new_task(made, recipe.examples(made.data.train))
    assert not start.fresh
    assert torch.equal(task.state_dict()["embed.video_out.weight"], theirs["embed.video_out.weight"])
    wider = make_recipe(tmp_path, {"name": "retrieval", "embedding": 24}, start=str(base))
    _, _, start = recipe.new_task(wider, recipe.examples(made.data.train))
    assert {name for name in start.fresh if "out.weight" in name} == {"embed.video_out.weight", "embed.text_out.weight"}


def test_a_start_of_another_shape_is_refused(
    make_recipe: Callable[..., Recipe], base: Path, tiny: ModelConfig, tmp_path: Path
) -> None:
    other = tiny.model_copy(update={"width": 64}).model_dump()
    made = make_recipe(tmp_path, {"name": "retrieval"}, start=str(base), model=other)
    with pytest.raises(CheckpointError, match=r"not of this model's shape.*leave the recipe's \[model\] out"):
        recipe.new_task(made, recipe.examples(made.data.train))
    deeper = make_recipe(
        tmp_path, {"name": "retrieval"}, start=str(base), model=tiny.model_copy(update={"depth": 3}).model_dump()
    )
    with pytest.raises(CheckpointError, match="not of this model's shape"):
        recipe.new_task(deeper, recipe.examples(made.data.train))


def test_a_start_with_another_vocabulary_is_refused(
    make_recipe: Callable[..., Recipe], base: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    vocabulary.save(tmp_path / "other.json")
    made = make_recipe(tmp_path, {"name": "retrieval"}, start=str(base), vocabulary=str(tmp_path / "other.json"))
    with pytest.raises(CheckpointError, match="another vocabulary"):
        recipe.new_task(made, recipe.examples(made.data.train))
    Vocabulary.default().save(tmp_path / "same.json")
    made = make_recipe(tmp_path, {"name": "retrieval"}, start=str(base), vocabulary=str(tmp_path / "same.json"))
    recipe.new_task(made, recipe.examples(made.data.train))


def test_a_tokenizer_is_no_start_and_a_model_no_tokenizer(
    make_recipe: Callable[..., Recipe], base: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    made = make_recipe(tmp_path, {"name": "retrieval"}, start=str(tokenizer_run))
    with pytest.raises(CheckpointError, match="is a tokenizer checkpoint, which holds no E-ViLM"):
        recipe.new_task(made, recipe.examples(made.data.train))
    made = make_recipe(tmp_path, {"name": "pretrain", "tokenizer": str(base)})
    with pytest.raises(CheckpointError, match="is a pretrain checkpoint, not a video tokenizer's"):
        recipe.new_task(made, recipe.examples(made.data.train))


def test_pre_training_takes_the_trained_tokenizer_frozen(
    make_recipe: Callable[..., Recipe], tokenizer_run: Path, tmp_path: Path
) -> None:
    made = make_recipe(tmp_path, {"name": "pretrain", "tokenizer": str(tokenizer_run)})
    task, facts, _ = recipe.new_task(made, recipe.examples(made.data.train))
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
        recipe.new_task(made, recipe.examples(made.data.train))


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
        recipe.new_task(made, recipe.examples(made.data.train))


@pytest.mark.parametrize("augment", [{}, {"scale": 0.5, "shift": 2, "flip": True, "views": 2}], ids=["", "augmented"])
def test_cached_labels_are_those_of_the_frames_that_are_shown(
    make_recipe: Callable[..., Recipe], tokenizer_run: Path, tmp_path: Path, augment: dict[str, Any]
) -> None:
    task = {"name": "pretrain", "tokenizer": str(tokenizer_run), "labels": "cached", "words": 24}
    made = make_recipe(tmp_path, task, data={"augment": augment})
    rows = recipe.examples(made.data.train)
    built, _, _ = recipe.new_task(made, rows)
    assert isinstance(built, Pretrain)
    assert built.tokenizer is not None
    loader = recipe.loader(made, built, rows, train=True, label=True)
    assert isinstance(loader.labels, LabelStore)
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            assert batch.labels is not None
            assert torch.equal(batch.labels, built.tokenizer.labels(batch.frames))
    again = recipe.loader(made, built, rows, train=True, label=False)
    assert next(iter(again)).labels is None


def test_what_cached_labels_cannot_do(make_recipe: Callable[..., Recipe], tokenizer_run: Path, tmp_path: Path) -> None:
    task = {"name": "pretrain", "tokenizer": str(tokenizer_run), "labels": "cached"}
    for data, complaint in (
        ({"cache": None}, "set data.cache"),
        ({"augment": {"shift": 2}}, "cannot follow random crops"),
    ):
        made = make_recipe(tmp_path, task, data=data)
        rows = recipe.examples(made.data.train)
        built, _, _ = recipe.new_task(made, rows)
        with pytest.raises(ConfigError, match=complaint):
            recipe.loader(made, built, rows, train=True, label=True)


@pytest.mark.parametrize("augment", [{}, {"scale": 0.5, "shift": 2, "flip": True, "views": 2}], ids=["", "augmented"])
def test_kept_features_are_those_of_the_frames_that_are_shown(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, augment: dict[str, Any]
) -> None:
    data, optim = {"augment": augment, "features": True}, {"backbone_lr": 0, "batch_size": 4}
    made = make_recipe(tmp_path, {"name": "retrieval"}, start=str(base), data=data, optim=optim)
    rows = recipe.examples(made.data.train)
    built, _, _ = recipe.new_task(made, rows)
    assert isinstance(built, VideoTextTask)
    loader = recipe.loader(made, built, rows, train=True, label=True)
    built.eval()
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            assert batch.features is not None
            with torch.no_grad():
                kept, seen = built.encode(batch), built.encode(replace(batch, features=None))
            assert kept.grid == seen.grid
            # Half precision keeps eleven bits.
            torch.testing.assert_close(kept.tokens, seen.tokens, rtol=2e-3, atol=2e-3)
    plain = recipe.loader(made, built, rows, train=True)
    assert next(iter(plain)).features is None


@pytest.mark.parametrize(
    ("change", "task", "complaint"),
    [
        ({"optim": {"backbone_lr": 1.0}}, "retrieval", r"optim\.backbone_lr = 1 trains it: set optim\.backbone_lr=0"),
        ({"data": {"cache": None}}, "retrieval", r"needs cached frames: set data\.cache"),
        ({"data": {"augment": {"shift": 2}}}, "retrieval", r"data\.features cannot follow random crops"),
        ({}, "pretrain", r"data\.features cannot serve pretrain, which encodes changed pixels"),
    ],
)
def test_what_kept_features_cannot_do(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, change: dict[str, Any], task: str, complaint: str
) -> None:
    data = {"features": True, **change.get("data", {})}
    settings: dict[str, Any] = {"name": task} if task == "retrieval" else {"name": task, "mvm": 0.0}
    optim = {"backbone_lr": 0, **change.get("optim", {})}
    made = make_recipe(tmp_path, settings, start=str(base), data=data, optim=optim)
    rows = recipe.examples(made.data.train)
    built, _, _ = recipe.new_task(made, rows)
    with pytest.raises(ConfigError, match=complaint):
        recipe.loader(made, built, rows, train=True, label=True)


def test_restore_gives_back_the_very_task(base: Path) -> None:
    task, about = recipe.restore(base)
    assert not task.training
    assert about["task"] == "pretrain"
    theirs = checkpoint.read_tensors(checkpoint.find(base) / "model.safetensors")
    own = task.state_dict()
    assert set(own) == set(theirs)
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_restore_as_another_task_needs_its_heads(base: Path) -> None:
    with pytest.raises((CheckpointError, KeyError), match="answer"):
        recipe.restore(base, QuestionAnsweringConfig())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"recipe": {}}, "not written by this version"),
        ({"recipe": None}, "not written by this version"),
        ({"model": None}, r"config\.json: model"),
        ({"model": {"width": 7}}, r"config\.json: model.*heads must divide width"),
    ],
)
def test_a_checkpoint_whose_facts_are_gone(base: Path, tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    """Its checksums are right, so only its content can tell."""
    source = checkpoint.find(base)

    def fill(folder: Path) -> None:
        for name in ("model.safetensors", "vocabulary.json"):
            shutil.copy(source / name, folder)
        checkpoint.write_json(folder / "config.json", {**checkpoint.read_json(source / "config.json"), **change})

    checkpoint.write(tmp_path / "odd", fill)
    with pytest.raises((CheckpointError, ConfigError), match=complaint):
        recipe.restore(tmp_path / "odd")


def test_a_split_without_rows_is_refused(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    made = make_recipe(tmp_path, {"name": "retrieval"})
    task, _, _ = recipe.new_task(made, recipe.examples(made.data.train))
    with pytest.raises(DataError, match="the split is empty"):
        recipe.loader(made, task, [], train=False)
    with pytest.raises(ConfigError, match=r"optim\.batch_size = 12 is more than the 5"):
        recipe.loader(made, task, recipe.examples(made.data.train)[:5], train=True)
