"""One evaluator for every task: predictions of a split, metrics with their rule, and everything written down."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import torch

from evilm import checkpoint, metrics
from evilm.distributed import computes_in_bf16
from evilm.progress import Meter

if TYPE_CHECKING:
    from pathlib import Path

    from evilm.data.loader import Loader
    from evilm.distributed import Precision
    from evilm.tasks import Prediction, Summary, Task


def evaluate(
    task: Task, loader: Loader, device: torch.device, precision: Precision = "auto", label: str = "evaluating"
) -> Summary:
    """Predict every row of a split once, in file order, and summarise.

    Args:
        task: put on ``device`` and into evaluation mode.
        loader: of a split that is not shuffled for training.
        device, precision: where and in which format.
        label: for the progress line.
    """
    task.to(device).eval()
    predictions: list[Prediction] = []
    with Meter(label, len(loader), "batches") as meter, torch.inference_mode():
        for done, batch in enumerate(loader, 1):
            with torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bf16(precision, device)):
                predictions += task.predict(batch.to(device))
            meter.update(done)
    return task.summarise(predictions)


def report(summary: Summary, loader: Loader, about: dict[str, Any]) -> dict[str, Any]:
    """The JSON of an evaluation: metrics, interval, chance, rule, unreadable videos, and what was evaluated."""
    low, high = metrics.interval([row["score"] for row in summary.rows])
    return {
        "metrics": summary.metrics,
        "interval": [100 * low, 100 * high],
        "chance": summary.chance,
        "rule": summary.rule,
        "samples": len(summary.rows),
        "unreadable": dict(sorted(loader.bad.items())),
        **about,
    }


def save(folder: Path, result: dict[str, Any], summary: Summary) -> None:
    """Write ``metrics.json``, ``predictions.jsonl`` and ``details.json``, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in summary.rows)
    for name, text in (
        ("predictions.jsonl", lines),
        ("details.json", json.dumps(summary.details)),
        ("metrics.json", json.dumps(result, indent=2, sort_keys=True, default=str) + "\n"),
    ):
        temporary = folder / (name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, folder / name)


def fingerprint(folder: Path) -> str:
    """The sha256 of a checkpoint's weights, from its manifest."""
    return str(checkpoint.read_json(folder / checkpoint.MANIFEST)["sha256"]["model.safetensors"])
