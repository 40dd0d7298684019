"""The plan of a demo: its folders, its recipes, and how its stages share the time limit."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilm import files
from evilm.data import synthetic
from evilm.training import checkpoint, evaluate, recipe, trainer

if TYPE_CHECKING:
    from evilm.training.evaluate import Evaluation

BUDGET = 15.0  # minutes that the recipes are made for
RESERVE = 0.03  # fraction of the limit that is not planned
TRAIN, VALIDATION, TEST = 4300, 200, 500  # clips at 15 minutes on a fast CPU
LEAST_TRAIN = 600  # clips for training, however slow the machine
WORLD_SHARE = 0.12  # of the limit, for rendering
SEED = 0
PIECES = 400  # word pieces: the synthetic world has some 150 words

# Seconds that each run trains, and that each stage spends otherwise (decoding, caches, evaluation), on 2 cores with
# AVX-512 bf16. Only the ratios matter: other machines are measured.
TRAINING = {
    "tokenizer": 125.0, "pretrain": 120.0, "retrieval": 65.0, "question_answering": 32.0, "question_only": 10.0,
    "multiple_choice": 36.0, "text_only": 12.0, "linear_probe": 24.0, "untrained_probe": 20.0,
}  # fmt: skip
OTHER = {
    "tokenizer": 25.0, "pretrain": 20.0, "retrieval": 20.0, "question_answering": 12.0, "multiple_choice": 12.0,
    "linear_probe": 12.0, "export": 20.0, "real_clips": 10.0,
}  # fmt: skip
RUNS = {  # the training runs of each stage, in order
    "tokenizer": ("tokenizer",), "pretrain": ("pretrain",), "retrieval": ("retrieval",),
    "question_answering": ("question_answering", "question_only"),
    "multiple_choice": ("multiple_choice", "text_only"), "linear_probe": ("linear_probe", "untrained_probe"),
    "export": (), "real_clips": (),
}  # fmt: skip
LEAST_SECONDS = 3.0  # a run with less time is left out
FIRST_CLIPS = 32  # rendered to measure the machine

Results = dict[str, Any]


class OutOfTimeError(Exception):
    """The time limit leaves too little time for a stage."""


@dataclass
class Demo:
    """One demo.

    Attributes:
        out: its folder.
        minutes: the time limit; clips and epochs grow with the square root of it.
        found: the results of each finished stage.
        began: time at which the current stage began.
    """

    out: Path
    minutes: float
    found: dict[str, Results] = field(default_factory=lambda: {})
    began: float = field(default_factory=time.monotonic)

    @property
    def growth(self) -> float:
        """Factor on clips and epochs."""
        return math.sqrt(self.minutes / BUDGET)

    @property
    def world(self) -> Path:
        return self.out / "world"

    # Time

    def load_plan(self) -> Results:
        """The stored plan: the limit, the number of clips, and the minutes of each run."""
        path = self.out / "plan.json"
        return checkpoint.read_json(path) if path.is_file() else {"minutes": self.minutes, "seed": SEED, "runs": {}}

    def store(self, **values: Any) -> None:
        """Add to the stored plan, so that a resumed demo keeps it."""
        plan = self.load_plan() | values
        files.write_atomic(self.out / "plan.json", json.dumps(plan, indent=2) + "\n")

    def choose_clips(self) -> int:
        """The number of clips that can be rendered in the time for it, measured on a few clips."""
        plan = self.load_plan()
        if "clips" not in plan:
            wanted = round(TRAIN * self.growth)
            with tempfile.TemporaryDirectory() as folder:
                start = time.monotonic()
                synthetic.build(Path(folder) / "world", FIRST_CLIPS, SEED, val=2, test=2, workers=1)
                rate = FIRST_CLIPS / (time.monotonic() - start) * (os.cpu_count() or 1)
            fitting = round(rate * WORLD_SHARE * 60 * self.minutes) - VALIDATION - TEST
            self.store(clips=min(wanted, max(LEAST_TRAIN, fitting)) + VALIDATION + TEST)
        return int(self.load_plan()["clips"])

    def limit(self, stage: str, run: str) -> float:
        """Minutes that a run may train: its share of what the limit leaves for all runs that are still to come.

        Raises:
            OutOfTimeError: less than a few seconds are left for it.
        """
        planned: dict[str, float] = self.load_plan()["runs"]
        if run not in planned:
            stages = list(RUNS)
            to_come = stages[stages.index(stage) :]
            runs = [each for name in to_come for each in RUNS[name]]
            runs = runs[runs.index(run) :]
            spent = sum(entry["seconds"] for entry in self.found.values()) + time.monotonic() - self.began
            # The other work of the stages that are done shows how fast this machine is.
            done = [name for name in stages if name in self.found and name in OTHER]
            expected = sum(OTHER[name] + sum(TRAINING[each] for each in RUNS[name]) for name in done)
            trained = {each: 60 * planned[each] for name in done for each in RUNS[name] if each in planned}
            other = sum(self.found[name]["seconds"] for name in done) - sum(
                min(seconds, self.trained_seconds(each)) for each, seconds in trained.items()
            )
            slowness = max(1.0, other / sum(OTHER[name] for name in done)) if expected else 1.0
            left = (1 - RESERVE) * 60 * self.minutes - spent - slowness * sum(OTHER[name] for name in to_come)
            seconds = left * TRAINING[run] / sum(TRAINING[each] for each in runs)
            if seconds < LEAST_SECONDS:
                raise OutOfTimeError(f"{run}: {max(0.0, seconds):.0f} s are left for it")
            planned[run] = round(seconds / 60, 3)
            self.store(runs=planned)
        return planned[run]

    def trained_seconds(self, run: str) -> float:
        """Seconds of training in a run's newest checkpoint."""
        newest, _ = checkpoint.newest(self.out / run)
        return 0.0 if newest is None else float(checkpoint.read_json(newest / "training" / "state.json")["seconds"])

    # Runs

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
        """Carry out a stage's recipe within its share of the time; continues an interrupted run.

        Raises:
            OutOfTimeError: see ``limit``.
        """
        minutes = self.limit(stage.replace("-", "_"), run)
        return trainer.train(self.recipe(stage, run, *changes, f"optim.max_minutes={minutes}"), resume=True)

    def start(self, run: str = "pretrain") -> str:
        """The override that starts from the weights of another run of this demo."""
        return f"start={json.dumps(str(self.out / run))}"

    def blind(self, stage: str) -> tuple[str, str]:
        """Overrides of the same model without video, trained half as long: it has little to learn."""
        epochs = self.recipe(stage, stage).optim.epochs
        return "task.text_only=true", f"optim.epochs={epochs / 2}"

    def evaluate(self, run: str, split: str = "test", *changes: str, **options: Any) -> Evaluation:
        """Evaluate a run and save it in its folder as ``evaluation[-TASK][-shuffled]``."""
        outcome = evaluate.of_checkpoint(self.out / run, split, changes, **options)  # pyright: ignore[reportArgumentType]
        name = "evaluation" + (f"-{options['task']}" if "task" in options else "")
        name += "-shuffled" if options.get("shuffled") else ""
        evaluate.save(self.out / run / name, outcome.result, outcome.summary)
        return outcome
