"""What the stages of a run left behind: curves, predictions, details, clips. Absent parts are simply empty."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from evilm.data.synthetic.truth import relevance
from evilm.data.video import read_clip
from evilm.errors import DataError, EvilmError
from evilm.report.results import list_of, number, table_of
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

STAGES = ("tokenizer", "pretrain", "retrieval", "question_answering", "multiple_choice", "linear_probe")
Row = dict[str, Any]
Curve = list[tuple[float, float]]  # (step, loss)

# What a line of metrics.jsonl holds beside losses.
_NO_LOSS = frozenset({"step", "epoch", "seconds", "lr", "gradient", "skipped", "codes_in_batch"})


@dataclass(frozen=True, slots=True)
class Evidence:
    """A run's folder, read on demand.

    Attributes:
        run: the folder.
        results: its ``results.json``; empty for a run that has not come so far.
        frames: how many frames of a clip are shown, T: as many as the model sees.
    """

    run: Path
    results: Row
    frames: int = 4

    @classmethod
    def of(cls, run: Path) -> Evidence:
        """Read ``results.json``.

        Raises:
            DataError: the folder is missing, or the file is not what it should be.
        """
        if not run.is_dir():
            raise DataError(f"{run}: no such folder; `evilm demo --out {run}` makes a run to report on")
        results = _json(run / "results.json")
        if not isinstance(results, dict | None):
            raise DataError(f"{run / 'results.json'}: not an object; run `evilm demo --out {run}` to make it anew")
        found = cls(run, table_of(cast("object", results)))
        grids = [case["grid"] for case in found.masked()]
        return cls(run, found.results, int(grids[0][0])) if grids else found

    def curves(self, stage: str) -> dict[str, Curve]:
        """Losses of a stage's training by name, ``loss`` (the total) first."""
        found: dict[str, Curve] = {"loss": []}
        for row in _lines(self.run / stage / "metrics.jsonl"):
            step = number(row.get("step"))
            for name, value in row.items():
                loss = number(value)
                if name not in _NO_LOSS and step is not None and loss is not None:
                    found.setdefault(name, []).append((step, loss))
        return {name: curve for name, curve in found.items() if len(curve) > 1}

    def rows(self, stage: str) -> list[Row]:
        """A stage's predictions on held-out clips, in the order of the test file."""
        return _lines(self.run / stage / "evaluation" / "predictions.jsonl")

    def details(self, stage: str) -> Row:
        """What else a stage's evaluation kept: ``classes`` and ``confusion``, ``counts``."""
        return table_of(_json(self.run / stage / "evaluation" / "details.json"))

    def rule(self, stage: str) -> str | None:
        """The rule behind a stage's numbers."""
        rule = table_of(_json(self.run / stage / "evaluation" / "metrics.json")).get("rule")
        return None if rule is None else str(rule)

    def masked(self) -> list[Row]:
        """Clips with what was hidden of them, what was there, and what was guessed."""
        cases = [table_of(case) for case in list_of(_json(self.run / "pretrain" / "masked.json"))]
        return [case for case in cases if _whole(case)]

    def plan(self) -> Row:
        """The card of the world: how many clips of which split, from which seed."""
        return table_of(_json(self.run / "world" / "world.json"))

    def clip(self, video: str, size: int = 96) -> NDArray[np.uint8] | None:
        """(T, size, size, 3) frames, those that an evaluation sees; None where the file gives none."""
        try:
            return read_clip(Clip(self.run / "world" / "videos" / f"{video}.mp4"), self.frames, size)
        except EvilmError:
            return None

    def true_of(self, text: str, videos: Sequence[str], own: str) -> list[bool]:
        """Of which clips a caption is true; of its own alone, where the world's facts are not at hand."""
        try:
            found = relevance(self.run / "world" / "world.jsonl", [text], list(videos))[0]
        except EvilmError:
            return [video == own for video in videos]
        return [bool(true) or video == own for true, video in zip(found, videos, strict=True)]


def spaced(rows: Sequence[Row], count: int) -> list[Row]:
    """``count`` rows at the middles of equal parts of the list: a choice that nobody makes."""
    count = min(count, len(rows))
    return [rows[(2 * i + 1) * len(rows) // (2 * count)] for i in range(count)]


def _whole(case: Row) -> bool:
    """Whether the parts of a masked case fit together."""
    grid = [side for side in list_of(case.get("grid")) if isinstance(side, int) and side > 0]
    return len(grid) == 3 and all(len(list_of(case.get(n))) == math.prod(grid) for n in ("hidden", "labels", "guesses"))


def _json(path: Path) -> object:
    """The contents of a file; None where there is none.

    Raises:
        DataError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); run that stage again") from None


def _lines(path: Path) -> list[Row]:
    """The objects of a JSON-lines file; a last line cut off by an interruption is passed over.

    Raises:
        DataError: another line is not JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run that stage again") from None
    found: list[Row] = []
    for place, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if place == len(lines):
                break
            raise DataError(f"{path}:{place}: not JSON; run that stage again") from None
        if isinstance(row, dict):
            found.append(cast("Row", row))
    return found
