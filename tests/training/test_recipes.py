"""Every recipe that comes along takes a step: its own settings, on a small world and with a small model."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evilm import config
from evilm.model.presets import PRESETS
from evilm.training import checkpoint, optim, trainer
from evilm.training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from evilm.model.presets import ModelConfig
    from evilm.model.tokenizer import TokenizerConfig

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
PEERS = ("all-in-one", "violet", "paper", "hmdb51", "kinetics400")
SHAPE = ("encoder", "encoder_options", "encoder_weights", "stride", "image_size", "codebook_size", "code_dim",
         "embed_dim", "depth", "num_heads", "mlp_dim", "mean", "std")  # fmt: skip
READERS = {"question_answering": "msrvtt_qa", "multiple_choice": "msrvtt_mc", "linear_probe": "hmdb51"}


@pytest.fixture(scope="module")
def base(make_recipe: Callable[..., Recipe], tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained model with a head of each kind, for texts as long as the paper's model takes."""
    task = {"name": "pretrain", "mvm_weight": 0, "contrastive_weight": 1.0, "matching": "choice"}
    out = tmp_path_factory.mktemp("runs") / "base"
    model = tiny.model_copy(update={"max_text_len": PRESETS["evilm-small"].max_text_len}).model_dump()
    return trainer.train(make_recipe(out, task, optim={"epochs": 0.1, "batch_size": 18}, model=model))


def shrunk(
    table: dict[str, Any], out: Path, world: Path, tiny: ModelConfig, shape: TokenizerConfig, **made: Path
) -> Recipe:
    """A recipe whose data, model and length are small, and whose everything else is its own."""
    task = table["task"]
    source = {"reader": READERS.get(task["name"], "msrvtt_retrieval"), "annotations": str(world)}
    table["data"] |= {"train": source, "workers": 0, "cache": str(made["cache"]), "cached_frames": 4}
    for name in ("validation", "test", "packed", "extra_train"):
        table["data"].pop(name, None)
    table["optim"] |= {"epochs": 0.01, "batch_size": 12, "grad_accum_steps": 1}
    table["run"] |= {"output_dir": str(out), "device": "cpu", "precision": "fp32", "threads": 1}
    table["run"] |= {"compile": False}
    table.pop("vocabulary", None)
    if "model" in table:
        table["model"] = tiny.model_dump()
    if "start" in table:
        table["start"] = str(made["base"])
    if task["name"] in ("tokenizer", "reconstruction"):
        own: dict[str, Any] = task.get("tokenizer", {})
        task["tokenizer"] = own | {name: getattr(shape, name) for name in SHAPE}
        task |= {"num_frames": 2} | ({"min_count": 1} if task["name"] == "tokenizer" else {})
    elif "tokenizer" in task:
        task |= {"tokenizer": str(made["tokenizer"]), "backbone": "own"}
    elif "teacher" in task:
        task["teacher"] = str(made["base"])
    return config.check(Recipe, table, "small")


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=() if p.stem.startswith(PEERS) else pytest.mark.slow, id=p.stem) for p in RECIPES],
)
def test_a_recipe_takes_a_step(
    path: Path, small_world: Path, tiny: ModelConfig, tiny_tokenizer: TokenizerConfig, base: Path, tokenizer_run: Path,
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    cache = tmp_path_factory.getbasetemp() / "recipes-cache"
    made = shrunk(
        table, tmp_path / "run", small_world, tiny, tiny_tokenizer, base=base, tokenizer=tokenizer_run, cache=cache
    )
    out = trainer.train(made)
    (line,) = (out / "metrics.jsonl").read_text().splitlines()
    assert math.isfinite(json.loads(line)["loss"])
    about = checkpoint.read_json(checkpoint.find(out) / "config.json")
    assert about["recipe"]["optim"]["lr"] == made.optim.lr


# What benchmarks of the peers were run with, as they publish it.
FIELD = {
    "all-in-one-msrvtt-qa": {
        "weight_decay": 0.01, "lr": 1e-4, "schedule": "linear", "warmup_ratio": 0.1,
        "head_lr_scale": 10, "batch_size": 512, "epochs": 20,
    },
    "all-in-one-msrvtt-retrieval": {
        "weight_decay": 0.01, "lr": 3e-4, "schedule": "linear", "warmup_ratio": 0.1,
        "head_lr_scale": 10, "epochs": 200,
    },
    "violet-msrvtt-qa": {"lr": 2e-5, "weight_decay": 1e-3, "epochs": 20, "grad_clip": 1.0},
    "violet-tgif-action": {"lr": 2e-5, "weight_decay": 1e-3, "epochs": 60, "grad_clip": 1.0},
    "violet-didemo-retrieval": {"lr": 2e-5, "weight_decay": 1e-3, "epochs": 20, "grad_clip": 1.0},
}  # fmt: skip
WORDS = {"violet-msrvtt-qa": 25, "violet-tgif-action": 100, "violet-didemo-retrieval": 100}


@pytest.mark.parametrize("name", FIELD)
def test_the_recipes_of_the_field_say_what_was_published(name: str) -> None:
    path = next(path for path in RECIPES if path.stem == name)
    made = config.load(Recipe, path, ())
    found = made.optim.model_dump()
    assert {key: found[key] for key in FIELD[name]} == FIELD[name]
    if name in WORDS:
        assert made.task.max_text_len == WORDS[name]
    assert made.data.augment.randaugment_ops == (2 if name.startswith("all-in-one") else 0)
    assert set(optim.PRESETS) >= {"paper", "all-in-one", "violet"}
