"""The whole system in minutes: a world, the tokenizer, pre-training, four tasks, their baselines, an export.

Each stage is a recipe that anyone can run alone, with its paths and its length changed. A stage that is done leaves
``<stage>.json`` beside the runs, so a demo that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console

from evilm import files
from evilm.demo.plan import BUDGET, SEED, Demo
from evilm.demo.results import gather
from evilm.demo.stages import STAGES
from evilm.errors import OutputError
from evilm.progress import Meter, clock
from evilm.report import page
from evilm.report.results import terminal_table
from evilm.training import checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from evilm.demo.plan import Results

__all__ = ["BUDGET", "KIND", "Demo", "demo", "gather"]

KIND = "demo of evilm"  # what the mark of a demo's folder says


def demo(out: Path, minutes: float = BUDGET) -> Path:
    """Run what is not done yet, print the table, write ``results.json`` and ``report.html``.

    Args:
        out: its folder, new or a demo's.
        minutes: the budget, 3 to 120.

    Returns:
        the report.

    Raises:
        OutputError: ``out`` holds something else, or a demo of another length.
        trainer.Interrupted: after saving, when Ctrl-C or SIGTERM came.
    """
    files.acquire_dir(out, KIND)
    plan = out / "plan.json"
    if plan.is_file() and checkpoint.read_json(plan)["minutes"] != minutes:
        had = checkpoint.read_json(plan)["minutes"]
        raise OutputError(
            f"{out}: holds a demo of {had:g} minutes; go on with --minutes {had:g}, or name another folder"
        )
    _write(plan, {"minutes": minutes, "seed": SEED})
    run = Demo(out, minutes)
    console = Meter("", 1).console
    for number, (name, (title, stage)) in enumerate(STAGES.items(), 1):
        file = out / f"{name}.json"
        if file.is_file():
            run.found[name] = checkpoint.read_json(file)
            continue
        console.print(f"[{number}/{len(STAGES)}] {title}", markup=False, highlight=False)
        began = time.monotonic()
        before = _seconds_before(out, name)
        found = stage(run)
        run.found[name] = {**found, "seconds": round(time.monotonic() - began + before, 1)}
        _write(file, run.found[name])
    results = gather(run)
    _write(out / "results.json", results)
    report = page.write_page(out)
    # A file or a pipe has no width of its own, and rich would take 80 columns for it.
    Console(width=None if sys.stdout.isatty() else 140).print(terminal_table(results))
    console.print(f"{clock(results['seconds']['value'])} in all; the report is {report}", markup=False, highlight=False)
    return report


def _seconds_before(out: Path, stage: str) -> float:
    """What an interrupted stage had spent on training until its last checkpoint."""
    folder, _ = checkpoint.newest(out / stage)
    return 0.0 if folder is None else float(checkpoint.read_json(folder / "training" / "state.json")["seconds"])


def _write(path: Path, value: Results) -> None:
    """As JSON in the order of the run, in which the page shows it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)
