"""A retrieval checkpoint with random weights: as fast and as large as a trained one, and of no other use.

    python benchmarks/untrained.py evilm-small FOLDER

Layer scales are 0.5: at 1e-6, where training starts, most of the backbone would change nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from evilm import config
from evilm.data.vocabulary import Vocabulary
from evilm.model.evilm import EViLM
from evilm.model.presets import preset
from evilm.tasks.retrieval import Retrieval
from evilm.training import checkpoint
from evilm.training.recipe import Recipe


def write(folder: Path, name: str) -> Path:
    """Make ``folder`` a checkpoint of the preset ``name`` with a dual encoder and a match head."""
    shape = preset(name).model_copy(update={"backbone_weights": "none"})
    source = {"reader": "captions", "annotations": "none.csv"}
    recipe = config.check(
        Recipe,
        {
            "task": {"name": "retrieval", "protocol": "re-rank"}, "data": {"train": source}, "optim": {"epochs": 1},
            "model": {"preset": name, "backbone_weights": "none"}, "run": {"output_dir": str(folder)},
        },
        "untrained",
    )  # fmt: skip
    vocabulary = Vocabulary.default()
    torch.manual_seed(0)
    task = Retrieval(EViLM(shape, vocabulary.size), vocabulary, recipe.task, {})
    with torch.no_grad():
        for place, parameter in task.named_parameters():
            if "gamma" in place:
                parameter.fill_(0.5)
    about = {
        "task": "retrieval", "recipe": json.loads(recipe.model_dump_json()), "facts": {}, "step": 0,
        "model": json.loads(shape.model_dump_json()),
    }  # fmt: skip

    def fill(place: Path) -> None:
        checkpoint.write_tensors(place / "model.safetensors", task.state_dict())
        checkpoint.write_json(place / "config.json", about)
        vocabulary.save(place / "vocabulary.json")

    if not (folder / checkpoint.MANIFEST).is_file():
        checkpoint.write(folder, fill)
    return folder


if __name__ == "__main__":
    write(Path(sys.argv[2]), sys.argv[1])
