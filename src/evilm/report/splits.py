"""Train and evaluate a recipe on each of the three official splits of an action data set; the mean of the three."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm import files
from evilm.errors import ConfigError, OutputError
from evilm.training import checkpoint, evaluate, recipe, trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

READERS = ("hmdb51", "ucf101")
NUMBERS = (1, 2, 3)


def run_splits(path: Path, changes: Sequence[str] = (), say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train and evaluate a recipe on splits 1, 2 and 3; finished parts are not repeated.

    The runs are ``split-1`` to ``split-3`` below ``run.output_dir``, each with its evaluation; ``splits.json`` beside
    them holds the result.

    Args:
        path: the recipe; its data must be those of HMDB51 or UCF101.
        changes: ``a.b=c`` changes to it.
        say: prints progress.

    Returns:
        ``splits``: metrics, interval and number of samples of each; ``mean`` of each metric, and its ``range`` from
        the lowest to the highest split; ``rule``. The splits share videos, so no interval of the mean is given.

    Raises:
        ConfigError: the recipe has no test data, or they are not of a data set with three splits.
        OutputError: the result cannot be written.
    """
    plain = recipe.load(path, changes)
    if plain.data.test is None or {plain.data.train.reader, plain.data.test.reader} - set(READERS):
        raise ConfigError(
            f"{path}: three splits need data.train and data.test with the reader {' or '.join(READERS)}; other data "
            "sets have one split"
        )
    out, splits = plain.run.output_dir, dict[str, dict[str, Any]]()
    for number in NUMBERS:
        folder = out / f"split-{number}"
        parts = (f"data.train.split=train.{number}", f"data.test.split=test.{number}", f"run.output_dir={folder}")
        say(f"split {number} of {len(NUMBERS)}: {folder}")
        trainer.train(recipe.load(path, [*changes, *parts]), resume=True)
        splits[str(number)] = _evaluated(folder)
    names = list(splits["1"]["metrics"])
    values = {name: [split["metrics"][name] for split in splits.values()] for name in names}
    kept = ("metrics", "interval", "samples", "rule", "weights", "rows")
    result = {
        "splits": {number: {name: split[name] for name in kept} for number, split in splits.items()},
        "mean": {name: float(np.mean(each)) for name, each in values.items()},
        "range": {name: [min(each), max(each)] for name, each in values.items()},
        "rule": f"mean of {len(NUMBERS)} splits; {splits['1']['rule']}",
    }
    try:
        files.write_atomic(out / "splits.json", json.dumps(result, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise OutputError(f"{out / 'splits.json'}: cannot be written: {error.strerror}") from None
    return result


def _evaluated(run: Path) -> dict[str, Any]:
    """The evaluation of a run on its test split, computed unless that of the same weights is there."""
    saved = run / "evaluation-test" / "metrics.json"
    if saved.is_file():
        found: dict[str, Any] = json.loads(saved.read_text(encoding="utf-8"))
        if found.get("weights") == evaluate.fingerprint(checkpoint.find(run)):
            return found
    done = evaluate.of_checkpoint(run, "test")
    evaluate.save(done.folder, done.result, done.summary)
    return done.result


def as_text(result: dict[str, Any]) -> str:
    """One line for each split, and the mean."""
    lines: list[str] = []
    for number, split in result["splits"].items():
        low, high = split["interval"]
        shown = ", ".join(f"{name} {value:.1f}" for name, value in split["metrics"].items())
        lines.append(f"split {number}: {shown} ({split['samples']:,} videos, 95 % interval {low:.1f} to {high:.1f})")
    shown = ", ".join(
        "{} {:.1f} ({:.1f} to {:.1f})".format(name, mean, *result["range"][name])
        for name, mean in result["mean"].items()
    )
    return "\n".join([*lines, f"mean, and lowest to highest: {shown}", f"rule: {result['rule']}"])
