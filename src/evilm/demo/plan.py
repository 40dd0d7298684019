"""What one demo is: where it lies, how long it may take, and how its recipes are changed for that."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evilm.training import evaluate, recipe, trainer

if TYPE_CHECKING:
    from pathlib import Path

    from evilm.training.evaluate import Evaluation

BUDGET = 15.0  # minutes that the recipes are made for
FIXED = 2.0  # of these, minutes that do not grow with the work: imports, evaluation, the report
TRAIN, VALIDATION, TEST = 4300, 200, 500  # clips at the full budget
SEED = 0
PIECES = 400  # word pieces: a world of some 150 words needs no more

Results = dict[str, Any]


@dataclass
class Demo:
    """One demo: where it lies, how long it may take, and what its stages found.

    Attributes:
        out: its folder.
        minutes: the budget; clips and epochs each grow with its square root, so their product with it.
        found: what each finished stage found.
    """

    out: Path
    minutes: float
    found: dict[str, Results] = field(default_factory=lambda: {})

    @property
    def growth(self) -> float:
        return math.sqrt((self.minutes - FIXED) / (BUDGET - FIXED))

    @property
    def world(self) -> Path:
        return self.out / "world"

    def recipe(self, stage: str, run: str, *changes: str) -> recipe.Recipe:
        """The recipe ``world-<stage>`` with this demo's paths, length and ``changes``."""
        plain = recipe.load(recipe.find(f"world-{stage}"))
        probe = stage == "linear-probe"
        places = [f"data.{split}.annotations={json.dumps(str(self.world / 'splits' if probe else self.world))}"
                  for split in ("train", "validation", "test") if getattr(plain.data, split) is not None]  # fmt: skip
        if probe:
            places += [f"data.{split}.videos={json.dumps(str(self.world / 'videos'))}" for split in ("train", "test")]
        return recipe.load(
            recipe.find(f"world-{stage}"),
            [
                *places,
                f"data.cache={json.dumps(str(self.out / 'cache'))}",
                f"run.output_dir={json.dumps(str(self.out / run))}",
                f"optim.epochs={plain.optim.epochs * self.growth}",
                f"seed={SEED}",
                *changes,
            ],
        )

    def train(self, stage: str, run: str, *changes: str) -> Path:
        """Carry out a stage's recipe, going on where it was stopped."""
        return trainer.train(self.recipe(stage, run, *changes), resume=True)

    def start(self, run: str = "pretrain") -> str:
        """The override that begins with what another run of this demo learned."""
        return f"start={json.dumps(str(self.out / run))}"

    def blind(self, stage: str) -> tuple[str, str]:
        """The overrides of the twin that cannot see: half as long, for there is little to learn (docs/decisions.md)."""
        epochs = self.recipe(stage, stage).optim.epochs
        return "task.text_only=true", f"optim.epochs={epochs / 2}"

    def evaluate(self, run: str, split: str = "test", *changes: str, **options: Any) -> Evaluation:
        """Evaluate a run and save it in its folder as ``evaluation[-TASK][-shuffled]``."""
        outcome = evaluate.of_checkpoint(self.out / run, split, changes, **options)  # pyright: ignore[reportArgumentType]
        name = "evaluation" + (f"-{options['task']}" if "task" in options else "")
        name += "-shuffled" if options.get("shuffled") else ""
        evaluate.save(self.out / run / name, outcome.result, outcome.summary)
        return outcome
