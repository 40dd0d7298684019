"""Recipes as they are written: presets, changes, and what they may not say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from evilm.errors import ConfigError
from evilm.model.presets import PRESETS
from evilm.training import recipe

if TYPE_CHECKING:
    from pathlib import Path

    from evilm.training.recipe import Recipe

MINIMAL = '[task]\nname = "retrieval"\n[data]\ntrain = { reader = "msrvtt_retrieval", annotations = "x" }\n'


def loaded(folder: Path, text: str, *overrides: str) -> Recipe:
    path = folder / "r.toml"
    path.write_text(text)
    return recipe.load(path, overrides)


def test_a_preset_with_changes(tmp_path: Path) -> None:
    made = loaded(tmp_path, MINIMAL + '[model]\npreset = "evilm-xx-small"\ndepth = 2\n', "model.num_frames=8")
    wanted = PRESETS["evilm-xx-small"].model_copy(update={"depth": 2, "num_frames": 8})
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
        (("model.preset=evilm-tiny", "model.embed_dim=100"), "must divide"),
        (("model.preset=evilm-tiny", "model.embed_dmi=100"), "did you mean 'embed_dim'"),
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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.head_lr=10", "'optim.head_lr' is now 'optim.head_lr_scale': rename it"),
        ("run.out=here", "'run.out' is now 'run.output_dir'"),
        ("data.candidates=4", "'data.candidates' is now 'data.cached_frames'"),
        ("data.augment.flip=true", "'data.augment.flip' is now 'data.augment.hflip'"),
        ("model.width=64", "'model.width' is now 'model.embed_dim'"),
        ("task.words=20", "'task.words' is now 'task.max_text_len'"),
        ("task.focus=2", "'task.focus' is now 'task.focal_gamma'"),
        ("optim.power=2", "'optim.power' no longer exists: leave it out"),
        ("optim.fused=false", "'optim.fused' no longer exists"),
    ],
)
def test_an_old_setting_names_the_new_one(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, MINIMAL, "model.preset=evilm-tiny", override)
    assert message in str(caught.value)


def test_an_old_setting_of_the_tokenizer_names_the_new_one(tmp_path: Path) -> None:
    text = MINIMAL.replace("retrieval", "tokenizer", 1)
    with pytest.raises(ConfigError, match=r"'task\.tokenizer\.codes' is now 'task\.tokenizer\.codebook_size'"):
        loaded(tmp_path, text, "task.tokenizer.codes=64")


def test_every_renamed_setting_exists() -> None:
    """A setting that is listed with a new name exists by that name in one of the classes of its table."""
    from evilm.data.config import DataConfig
    from evilm.data.transforms import AugmentConfig
    from evilm.model.presets import ModelConfig
    from evilm.model.tokenizer import TokenizerConfig
    from evilm.tasks import TASKS
    from evilm.training.optim import OptimConfig

    tables = {
        "optim": {*OptimConfig.model_fields}, "run": {*recipe.RunConfig.model_fields},
        "data": {*DataConfig.model_fields}, "data.augment": {*AugmentConfig.model_fields},
        "model": {*ModelConfig.model_fields}, "task.tokenizer": {*TokenizerConfig.model_fields},
        "task": {name for task in TASKS.values() for name in task.config_class.model_fields},
    }  # fmt: skip
    for table, names in recipe.RENAMED.items():
        assert {new for new in names.values() if new is not None} <= tables[table]


def test_changes_since_the_start_of_a_run_are_listed() -> None:
    then = {
        "recipe": {"optim": {"lr": 1.0}, "run": {"output_dir": "a"}},
        "data": {"rows": 3},
        "versions": {"torch": "2.11"},
    }
    now = {
        "recipe": {"optim": {"lr": 2.0}, "run": {"output_dir": "b"}},
        "data": {"rows": 4},
        "versions": {"torch": "2.12"},
    }
    said = recipe.differences(then, now)
    assert said[0] == "optim.lr was 1.0 and is 2.0"
    assert "training rows" in said[1]
    assert said[2] == "torch was 2.11 and is 2.12: the last bits may differ"
    assert recipe.differences(then, then) == []
