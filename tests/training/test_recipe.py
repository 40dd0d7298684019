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
        (("model.preset=evilm-tiny", "model.embed_dim=100"), "heads must divide width"),
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
