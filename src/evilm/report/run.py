"""The files in a demo run's folder: loss curves, predictions, details, clips. A missing file gives an empty result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evilm.data.synthetic.language import relevance
from evilm.data.video import read_clip
from evilm.errors import DataError, EvilmError
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        results = _read(folder / "results.json", {})
        if not isinstance(results, dict):
            raise DataError(f"{folder / 'results.json'}: not a JSON object; delete it and run the demo again")
        return cls(folder, cast("Row", results))

    def curves(self, stage: str) -> dict[str, Curve]:
        """Training losses of a stage by name, ``loss`` (the total) first."""
        curves: dict[str, Curve] = {"loss": []}
        for row in _read(self.folder / stage / "metrics.jsonl", []):
            for name, value in row.items():
                if name not in _NOT_LOSSES and isinstance(value, (int, float)):
                    curves.setdefault(name, []).append((row["step"], value))
        return {name: curve for name, curve in curves.items() if len(curve) > 1}

    def predictions(self, stage: str) -> list[Row]:
        """A stage's predictions on held-out clips, in the order of the test file."""
        return read_predictions(self.folder / stage / "evaluation")

    def details(self, stage: str) -> Row:
        """Further results of a stage's evaluation: ``classes`` and ``confusion``, or ``counts``."""
        return _read(self.folder / stage / "evaluation" / "details.json", {})

    def rule(self, stage: str) -> str:
        """How a stage's metrics are computed, in words."""
        return _read(self.folder / stage / "evaluation" / "metrics.json", {}).get("rule", "")

    @cached_property
    def masked(self) -> list[Row]:
        """Clips with their hidden patches, the tokenizer's labels and the model's guesses."""
        return _read(self.folder / "pretrain" / "masked.json", [])

    @cached_property
    def real_clips(self) -> Row:
        """Searches of the bundled clips: their ``folder``, and ``searches`` with ``video, text, rank, first``."""
        return _read(self.folder / "real_clips.json", {"folder": ".", "searches": []})

    @property
    def world(self) -> Row:
        """The description of the synthetic world: numbers of clips by split, and the seed."""
        return _read(self.folder / "world" / "world.json", {})

    def frames(self, video: str, size: int = 96) -> NDArray[np.uint8] | None:
        """(T, size, size, 3) RGB frames of a clip, T as many as the model sees; None for an unreadable file.

        ``video`` is a name in the world, or a path in the folder of the bundled clips.
        """
        path = self.folder / "world" / "videos" / f"{video}.mp4"
        if video.endswith(".mp4"):
            path = Path(self.real_clips["folder"]) / video
        count = self.masked[0]["grid"][0] if self.masked else 4
        try:
            return read_clip(Clip(path), count, size)
        except EvilmError:
            return None

    def relevant(self, text: str, videos: Sequence[str], own: str) -> list[bool]:
        """For each video, whether the caption is true of it; without the world's facts only ``own`` is relevant."""
        try:
            found = relevance(self.folder / "world" / "world.jsonl", [text], list(videos))[0]
        except EvilmError:
            return [video == own for video in videos]
        return [bool(true) or video == own for true, video in zip(found, videos, strict=True)]


def evenly_spaced(rows: Sequence[Row], count: int) -> list[Row]:
    """The rows at the middles of ``count`` equal parts of the list: examples that are not chosen by hand."""
    count = min(count, len(rows))
    return [rows[(2 * i + 1) * len(rows) // (2 * count)] for i in range(count)]


def read_predictions(evaluation: Path) -> list[Row]:
    """The per-sample predictions in the folder of an evaluation, in the order of the data.

    Raises:
        DataError: the file is damaged.
    """
    return _read(evaluation / "predictions.jsonl", [])


def _read(path: Path, missing: Any) -> Any:
    """The contents of a JSON or JSON-lines file, NaN and infinities as None; ``missing`` if there is no file.

    A last line that an interruption cut off is left out.

    Raises:
        DataError: it is not JSON.
    """
    rows: list[Row] = []
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return json.loads(text, parse_constant=lambda _: None)
        for line in text.split("\n")[:-1]:
            rows.append(json.loads(line, parse_constant=lambda _: None))  # noqa: PERF401, its length is in the error
    except FileNotFoundError:
        return missing
    except (OSError, ValueError) as error:
        where = f"{path}:{len(rows) + 1}" if path.suffix == ".jsonl" else str(path)
        raise DataError(f"{where}: cannot be read as JSON ({error}); delete it and run that stage again") from None
    return rows
