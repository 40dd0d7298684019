"""The files in a demo run's folder: loss curves, predictions, details, clips. A missing file gives an empty result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from evilm.data.synthetic.truth import relevance
from evilm.data.video import read_clip
from evilm.errors import DataError, EvilmError
from evilm.report.results import as_dict, as_list, as_number
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

Row = dict[str, Any]
Curve = list[tuple[float, float]]  # (step, loss)

# Numbers in a line of metrics.jsonl that are not losses.
_NOT_LOSSES = frozenset({"step", "epoch", "seconds", "lr", "gradient", "skipped", "codes_in_batch"})


@dataclass(frozen=True)
class DemoRun:
    """A demo run, finished or not.

    Attributes:
        folder: what ``evilm demo --out`` names.
        results: ``results.json``; empty before it is written.
    """

    folder: Path
    results: Row

    @classmethod
    def open(cls, folder: Path) -> DemoRun:
        """Read ``results.json``.

        Raises:
            DataError: the folder is missing, or the file is not a JSON object.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; create a run with `evilm demo --out {folder}`")
        results = _read_json(folder / "results.json", {})
        if not isinstance(results, dict):
            raise DataError(f"{folder / 'results.json'}: not a JSON object; delete it and run the demo again")
        return cls(folder, cast("Row", results))

    def curves(self, stage: str) -> dict[str, Curve]:
        """Training losses of a stage by name, ``loss`` (the total) first."""
        curves: dict[str, Curve] = {"loss": []}
        for row in _read_lines(self.folder / stage / "metrics.jsonl"):
            step = as_number(row.get("step"))
            for name, value in row.items():
                loss = as_number(value)
                if name not in _NOT_LOSSES and step is not None and loss is not None:
                    curves.setdefault(name, []).append((step, loss))
        return {name: curve for name, curve in curves.items() if len(curve) > 1}

    def predictions(self, stage: str, *columns: str) -> list[Row]:
        """A stage's predictions on held-out clips that have all ``columns``, in the order of the test file."""
        rows = read_predictions(self.folder / stage / "evaluation")
        return [row for row in rows if row.keys() >= set(columns)]

    def details(self, stage: str) -> Row:
        """Further results of a stage's evaluation: ``classes`` and ``confusion``, or ``counts``."""
        return as_dict(_read_json(self.folder / stage / "evaluation" / "details.json"))

    def rule(self, stage: str) -> str:
        """How a stage's metrics are computed, in words."""
        return str(as_dict(_read_json(self.folder / stage / "evaluation" / "metrics.json")).get("rule") or "")

    @cached_property
    def masked(self) -> list[Row]:
        """Clips with their hidden patches, the tokenizer's labels and the model's guesses."""
        return [as_dict(case) for case in as_list(_read_json(self.folder / "pretrain" / "masked.json"))]

    def world(self) -> Row:
        """The description of the synthetic world: numbers of clips by split, and the seed."""
        return as_dict(_read_json(self.folder / "world" / "world.json"))

    def frames(self, video: str, size: int = 96) -> NDArray[np.uint8] | None:
        """(T, size, size, 3) RGB frames of a clip, T as many as the model sees; None for an unreadable file."""
        count = self.masked[0]["grid"][0] if self.masked else 4
        try:
            return read_clip(Clip(self.folder / "world" / "videos" / f"{video}.mp4"), count, size)
        except EvilmError:
            return None

    def relevant(self, text: str, videos: Sequence[str], own: str) -> list[bool]:
        """For each video, whether the caption is true of it; without the world's facts only ``own`` is relevant."""
        try:
            found = relevance(self.folder / "world" / "world.jsonl", [text], list(videos))[0]
        except EvilmError:
            return [video == own for video in videos]
        return [bool(true) or video == own for true, video in zip(found, videos, strict=True)]


def read_predictions(evaluation: Path) -> list[Row]:
    """The per-sample predictions of an evaluation's folder, in the order of the data.

    Raises:
        DataError: the file is damaged.
    """
    return _read_lines(evaluation / "predictions.jsonl")


def evenly_spaced(rows: Sequence[Row], count: int) -> list[Row]:
    """The rows at the middles of ``count`` equal parts of the list: examples that are not chosen by hand."""
    count = min(count, len(rows))
    return [rows[(2 * i + 1) * len(rows) // (2 * count)] for i in range(count)]


def _read_json(path: Path, missing: object = None) -> object:
    """The contents of a file, NaN and infinities as None; ``missing`` if there is no file.

    Raises:
        DataError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except FileNotFoundError:
        return missing
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); delete it and run that stage again") from None


def _read_lines(path: Path) -> list[Row]:
    """The objects of a JSON-lines file, without a last line that an interruption cut off.

    Raises:
        DataError: another line is not JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and run that stage again") from None
    rows: list[object] = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line, parse_constant=lambda _: None))
        except ValueError:
            if number < len(lines):
                raise DataError(f"{path}:{number}: not JSON; delete the file and run that stage again") from None
    return [cast("Row", row) for row in rows if isinstance(row, dict)]
