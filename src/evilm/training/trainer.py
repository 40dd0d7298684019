"""``train``: a recipe from its annotation files to its last checkpoint, with any task, on any number of processes.

What happens in between is ``Run``'s (``run.py``), one step of it ``Stepper``'s (``step.py``).
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import torch

from evilm import __version__, distributed, files
from evilm.errors import ConfigError, EvilmError, OutputError
from evilm.progress import say
from evilm.tasks import VideoTextTask
from evilm.training import build, checkpoint, feed, logger
from evilm.training.run import Interrupted, Run
from evilm.training.signals import Signals

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from evilm.tasks import Task
    from evilm.training.recipe import Recipe
    from evilm.types import Example

__all__ = ["Interrupted", "Run", "describe", "train"]

KIND = "run of evilm"  # what the mark of a run's folder says


def train(recipe: Recipe, *, resume: bool = False) -> Path:
    """Carry out a recipe from its annotation files to its last checkpoint.

    Under torchrun all processes call this with the same recipe, and share the work.

    Args:
        recipe: what to do.
        resume: go on from the newest valid checkpoint of ``run.output_dir``; without one, begin.

    Returns:
        the run's folder.

    Raises:
        OutputError: ``run.output_dir`` holds a run already, or something else, or another process is writing there.
        Interrupted: after saving, when Ctrl-C or SIGTERM came.
        KeyboardInterrupt: the same before the first step, when there was nothing to save.
    """
    out = recipe.run.output_dir
    with Signals() as signals, distributed.process_group(recipe.run.device), contextlib.ExitStack() as held:

        def take() -> None:
            files.check_output_dir(out, KIND)
            if checkpoint.steps(out) and not resume:
                raise OutputError(
                    f"{out}: holds a run already; go on with --resume, or name another folder in run.output_dir"
                )
            files.acquire_dir(out, KIND)
            held.enter_context(files.lock_dir(out))

        distributed.run_on_rank0(take)
        try:
            run, rows = _prepare(recipe)
            run.about["data"] = {"rows": len(rows), "fingerprint": logger.fingerprint(rows)}
            run.fit(resume, signals)
        except EvilmError:
            if distributed.rank() == 0:
                files.release_dir(out, logger.BEGINNINGS)  # of a run that never took a step
            raise
    return out


def _prepare(recipe: Recipe) -> tuple[Run, Sequence[Example]]:
    """The run of a recipe, and the rows that it learns from."""
    device = distributed.device(recipe.run.device)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    share, pieces = recipe.optim.batch_size // distributed.world_size(), recipe.optim.grad_accum_steps
    if share % pieces:
        raise ConfigError(
            f"optim.grad_accum_steps = {pieces} does not divide the {share} samples of optim.batch_size = "
            f"{recipe.optim.batch_size} that each of {distributed.world_size()} processes has"
        )
    rows = feed.training_rows(recipe.data)
    task, facts, start = build.new_task(recipe, rows)
    if start.loaded:
        say(f"start from {recipe.start}: {start}")
    for line in start.published:
        say(line)
    with distributed.rank0_first():
        loader = feed.loader(recipe, task, rows, train=True, label=True)
    return Run(recipe, task, loader, device, describe(recipe, task, facts, start)), rows


def describe(recipe: Recipe, task: Task, facts: dict[str, Any], start: build.Start) -> dict[str, Any]:
    """What ``config.json`` of a checkpoint holds: enough to build the task again, and how it came about."""
    return {
        "task": task.name,
        "recipe": json.loads(recipe.model_dump_json()),
        "facts": facts,
        "model": json.loads(task.model.config.model_dump_json()) if isinstance(task, VideoTextTask) else None,
        "start": {
            "from": str(recipe.start) if recipe.start else None,
            "parts": str(start),
            "published": start.published,
        },
        "versions": logger.packages() | {"evilm": __version__},
    }
