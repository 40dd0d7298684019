"""Training runs as JSON for the page: curves, evaluations, samples; read from the files that a run writes."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pathlib import Path

MAX_RUNS, MAX_DEPTH, MAX_BYTES = 500, 4, 32 << 20
MAX_POINTS = 2000  # of a curve; longer ones are thinned
RECENT = 30.0  # seconds since the last line, within which a run counts as running


class Runs:
    """Run folders below some roots.

    Args:
        roots: folders that are searched for ``run.json``.
    """

    def __init__(self, roots: tuple[Path, ...]) -> None:
        self.roots = roots
        self._folders: dict[str, Path] = {}

    def list(self) -> list[dict[str, Any]]:
        """All runs, the one that changed last first."""
        found: dict[str, Path] = {}
        for root in self.roots:
            for depth in range(MAX_DEPTH):
                for file in sorted(root.glob("/".join(["*"] * depth + ["run.json"]))):
                    if len(found) < MAX_RUNS and file.is_file():
                        found[hashlib.sha256(str(file.parent.resolve()).encode()).hexdigest()[:16]] = file.parent
        self._folders = found
        rows = [self._row(name, folder) for name, folder in found.items()]
        return sorted(rows, key=lambda row: row["updated"], reverse=True)

    def stamps(self) -> dict[str, float]:
        """Time of the last change of each listed run."""
        return {name: _changed(folder) for name, folder in self._folders.items()}

    def get(self, name: str) -> dict[str, Any] | None:
        """Everything about one run; None if there is no such run."""
        if name not in self._folders:
            self.list()
        folder = self._folders.get(name)
        if folder is None:
            return None
        about = _json(folder / "run.json")
        evaluation = next((_json(path) for path in sorted(folder.glob("evaluation*/metrics.json"))), None)
        samples = [line for path in sorted(folder.glob("evaluation*/predictions.jsonl"))[:1] for line in _lines(path)]
        return {
            **self._row(name, folder),
            "recipe": json.dumps(about.get("recipe", {}), indent=2),
            "machine": (about.get("starts") or [{}])[-1].get("machine", {}),
            "metrics": _thinned(_lines(folder / "metrics.jsonl")),
            "validation": _thinned(_lines(folder / "validation.jsonl")),
            "evaluation": evaluation,
            "masked": _masked(folder / "masked.json"),
            "retrieved": [
                {"text": row["text"], "rank": row["rank"], "video": row.get("video"), "first": row.get("first", [])[:5]}
                for row in samples
                if "rank" in row and "text" in row
            ][:24],
            "codes": _codes(folder / "evaluation"),
        }

    def _name(self, folder: Path) -> str:
        """The path of a run below its root."""
        for root in self.roots:
            if folder != root and folder.is_relative_to(root):
                return folder.relative_to(root).as_posix()
        return folder.name

    def _row(self, name: str, folder: Path) -> dict[str, Any]:
        about, lines = _json(folder / "run.json"), _lines(folder / "metrics.jsonl")
        changed = _changed(folder)
        evaluation = next((_json(path) for path in sorted(folder.glob("evaluation*/metrics.json"))), None)
        task = str(about.get("task", "?"))
        total = about.get("total")
        return {
            "run": name,
            "name": self._name(folder),
            "task": task,
            "step": int(lines[-1].get("step", 0)) if lines else 0,
            "total": int(total) if isinstance(total, int | float) else None,
            "updated": dt.datetime.fromtimestamp(changed, dt.UTC).isoformat(),
            "running": dt.datetime.now(dt.UTC).timestamp() - changed < RECENT,
            "metric": _metric(evaluation),
        }


def _metric(evaluation: dict[str, Any] | None) -> dict[str, Any] | None:
    """The first metric of an evaluation, with its interval if it has one."""
    metrics: Any = (evaluation or {}).get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        return None
    values = cast("dict[str, float]", metrics)
    name = str((evaluation or {}).get("primary_metric"))
    name = name if name in values else next(iter(values))
    return {"name": name, "value": float(values[name]), "interval": (evaluation or {}).get("interval")}


def _changed(folder: Path) -> float:
    times = [0.0]
    for name in ("metrics.jsonl", "validation.jsonl", "run.json"):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            return {}
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        if path.stat().st_size > MAX_BYTES:
            return []
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    rows: list[dict[str, Any]] = []
    for line in text.splitlines():
        try:
            row: Any = json.loads(line)
        except ValueError:
            continue  # the last line of a run that is writing
        if isinstance(row, dict):
            rows.append(cast("dict[str, Any]", row))
    return rows


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    step = -(-len(rows) // MAX_POINTS) if rows else 1
    return [*rows[:-1:step], rows[-1]] if rows else []


def _masked(path: Path) -> list[dict[str, Any]] | None:
    """Clips with hidden patches (see ``report.codes.masked_examples``): for each patch, whether the guess was right."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
        rows = [_masked_row(row) for row in value[:16]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return rows or None


def _masked_row(row: dict[str, Any]) -> dict[str, Any]:
    hidden, words = [bool(one) for one in row["hidden"]], row["code_words"]
    pairs = list(zip(row["labels"], row["guesses"], strict=True))
    at = [i for i, one in enumerate(hidden) if one]

    def named(codes: list[int]) -> list[str]:
        return list(dict.fromkeys(str(word) for code in codes for word in words.get(str(code), [])[:2]))[:5]

    return {
        "text": str(row["caption"]), "grid": [int(side) for side in row["grid"]], "hidden": hidden,
        "right": [label == guess for label, guess in pairs], "wanted": named([pairs[i][0] for i in at]),
        "guessed": named([pairs[i][1] for i in at]),
    }  # fmt: skip


def _codes(folder: Path) -> list[int] | None:
    """How often each code of a tokenizer was used, in falling order."""
    counts = _json(folder / "details.json").get("counts")
    if not isinstance(counts, list):
        return None
    return sorted((n for n in cast("list[Any]", counts) if isinstance(n, int)), reverse=True)
