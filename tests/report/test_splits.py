"""The mean of the three splits of an action data set."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from evilm.errors import ConfigError
from evilm.report import splits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from evilm.training.recipe import Recipe


def test_the_mean_of_three_splits(
    make_recipe: Callable[..., Recipe], small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_world / "splits", tmp_path / "splits")
    for path in sorted((tmp_path / "splits").glob("*_test_split1.txt")):
        for number in (2, 3):  # the same videos in other roles: split 2 tests on the training videos of split 1
            text = path.read_text() if number == 3 else path.read_text().translate(str.maketrans("12", "21"))
            path.with_name(path.name.replace("split1", f"split{number}")).write_text(text)
    source = {"reader": "hmdb51", "annotations": str(tmp_path / "splits"), "videos": str(small_world / "videos")}
    made = make_recipe(
        tmp_path / "probe", {"name": "linear_probe"}, "hmdb51", optim={"epochs": 1, "batch_size": 2},
        data={"train": source, "validation": None, "test": {**source, "split": "test"}},
    )  # fmt: skip
    table = tmp_path / "recipe.toml"
    monkeypatch.setattr(splits.recipe, "load", _loads(made))
    said: list[str] = []
    result = splits.run_splits(table, (), said.append)
    assert said[2] == f"split 3 of 3: {tmp_path / 'probe' / 'split-3'}"
    assert result == json.loads((tmp_path / "probe" / "splits.json").read_text())
    values = [split["metrics"]["accuracy"] for split in result["splits"].values()]
    assert result["mean"]["accuracy"] == pytest.approx(sum(values) / 3)
    assert result["range"]["accuracy"] == [min(values), max(values)]
    assert result["splits"]["1"]["rows"] == result["splits"]["3"]["rows"] != result["splits"]["2"]["rows"]
    assert "mean, and lowest to highest: accuracy" in splits.as_text(result)
    # Nothing is done again.
    monkeypatch.setattr(splits.evaluate, "of_checkpoint", None)
    assert splits.run_splits(table, (), said.append) == result
    other = make_recipe(tmp_path / "other", {"name": "retrieval"})
    monkeypatch.setattr(splits.recipe, "load", lambda *_: other)
    with pytest.raises(ConfigError, match="reader hmdb51 or ucf101"):
        splits.run_splits(table)


def _loads(made: Recipe) -> Callable[..., Recipe]:
    """Stands for ``recipe.load`` of a file with the settings of ``made``."""
    from evilm import config
    from evilm.training.recipe import check

    def load(_path: Path, changes: list[str]) -> Recipe:
        return check(config.override(json.loads(made.model_dump_json()), changes), "test")

    return load
