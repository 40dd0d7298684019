"""Evaluation of any task: predictions of a split, metrics with their rule, and the files they are written to."""

from __future__ import annotations

import importlib
import io
import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from evilm import config, distributed, files, metrics
from evilm.data import synthetic
from evilm.data.pixels import StoredPixels
from evilm.errors import CheckpointError, ConfigError, DependencyError, OutputError
from evilm.progress import Meter
from evilm.tasks import TASKS
from evilm.tasks.batches import caption_of
from evilm.tasks.predictions import Prediction
from evilm.training import build, checkpoint, logger
from evilm.training import recipe as recipes
from evilm.training.overlap import trained_videos

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.data.loader import Loader
    from evilm.distributed import Precision
    from evilm.tasks import Metrics, Task
    from evilm.training.recipe import Recipe
    from evilm.types import Example

Split = Literal["train", "validation", "test"]
KIND = "evaluation of evilm"  # content of the mark in an evaluation's folder


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of ``of_checkpoint``.

    Attributes:
        task: the name of the task.
        split: the evaluated split.
        summary: metrics, chance, rule, rows.
        result: the JSON of it, see ``report``.
        folder: the default folder for ``save``.
    """

    task: str
    split: Split
    summary: Metrics
    result: dict[str, Any]
    folder: Path


class StoppedError(Exception):
    """An evaluation was asked to stop."""


def evaluate(
    task: Task,
    loader: Loader,
    device: torch.device,
    precision: Precision = "auto",
    label: str = "evaluating",
    stop: Callable[[], bool] = bool,
    views: int = 1,
) -> Metrics:
    """Predict every row of a split once, in file order, and compute the metrics.

    Several processes share the batches, and each gets the metrics of all rows.

    Args:
        task: put on ``device`` and into evaluation mode.
        loader: batches of the split, not in training mode.
        device, precision: of the computation.
        label: for the progress line.
        stop: called before every batch.
        views: clips of different frames per video, whose scores are averaged (``Task.averaged``).

    Raises:
        StoppedError: ``stop`` returned True in one of the processes.
    """
    task.to(device).eval()
    task.averages = views > 1
    bf16, ranks = distributed.uses_bf16(precision, device), distributed.world_size()
    own: list[list[Prediction]] = []
    with Meter(label, views * len(loader), "batches") as meter, torch.inference_mode():
        for view in range(views):
            loader.view, done = (view, views), view * len(loader)
            batches = iter(loader)
            for first in range(0, len(loader), ranks):
                if distributed.all_reduce_max(int(stop())):
                    raise StoppedError
                batch = next(batches, None)
                if batch is not None:
                    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                        own.append(task.predict(batch.to(device)))
                meter.update(done + min(first + ranks, len(loader)))
    if views > 1:
        count = len(own) // views
        own = [[_average(task.averaged, rows) for rows in zip(*own[i::count], strict=True)] for i in range(count)]
    gathered = distributed.all_gather_objects(own)
    for bad in distributed.all_gather_objects(loader.unreadable):
        loader.unreadable.update(bad)
    return task.compute_metrics([row for n in range(len(loader)) for row in gathered[n % ranks][n // ranks]])


def _average(names: Sequence[str], views: Sequence[Prediction]) -> Prediction:
    """One prediction of a row from those of several views of its video."""
    means = {name: np.mean([view.values[name] for view in views], axis=0) for name in names}
    return Prediction(views[0].example, all(view.readable for view in views), views[0].values | means)


def of_checkpoint(
    path: Path,
    split: Split = "validation",
    assignments: Iterable[str] = (),
    *,
    task: str | None = None,
    shuffled: bool = False,
    views: int = 1,
    truth: Path | None = None,
    out: Path | None = None,
) -> Evaluation:
    """Evaluate a checkpoint on a split of its own recipe.

    Args:
        path: a checkpoint or a run.
        split: a split of the recipe's data.
        assignments: ``a.b=c`` changes to the recipe, such as other annotations.
        task: evaluate as this task instead (zero-shot).
        shuffled: shuffle the frames of each clip, as a control for the use of time.
        views: clips of different frames per video, whose scores are averaged.
        truth: ``world.jsonl`` of synthetic data: a video is relevant if the text is true of it. A file of this name
            beside the annotations is used by default.
        out: folder of the result, checked now; nothing is written here.

    Raises:
        CheckpointError, ConfigError, DataError, DeviceError, OutputError: what does not fit, before any work.
    """
    checkpoint_folder = checkpoint.find(path)
    assignments = list(assignments)
    recipe = _recipe(checkpoint_folder, assignments, task)
    name = f"evaluation-{split}" + (f"-{task}" if task else "") + ("-shuffled" if shuffled else "")
    name += f"-{views}-views" if views > 1 else ""
    in_run = (checkpoint_folder.parent / checkpoint.POINTER).is_file()
    folder = out or (checkpoint_folder.parent if in_run else checkpoint_folder) / name
    files.check_output_dir(folder, KIND)
    device = distributed.device(recipe.run.device)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    source = getattr(recipe.data, split)
    if source is None:
        raise ConfigError(
            f"{checkpoint_folder}: its recipe has no data.{split}: name one with data.{split}.reader=... "
            f"data.{split}.annotations=..."
        )
    rows = build.examples_of(source)
    TASKS[recipe.task.name].check_rows(rows, f"data.{split}")
    restored, metadata = build.restore(checkpoint_folder, recipe.task)
    scored_by_truth = _use_truth(restored, rows, truth, source.annotations)
    with distributed.rank0_first():
        loader = build.make_loader(recipe, restored, rows, train=False)
    loader.order = "shuffled" if shuffled else "true"
    _check_views(restored, loader, views)
    summary = evaluate(restored, loader, device, recipe.run.precision, f"evaluating {split}", views=views)
    if scored_by_truth:
        summary.rule += "; a video is right when the text is true of it"
    if views > 1:
        summary.rule += f"; mean score of {views} clips a video, each of other frames"
    overlap = None if split == "train" else trained_videos(rows, source, checkpoint_folder)
    if overlap is not None and overlap["trained"]:
        summary.rule += f"; {overlap['trained']:,} of {overlap['videos']:,} videos were trained on"
    trained: dict[str, Any] = metadata["recipe"]
    if source.is_test:
        summary.details.pop("cannot_tell", None)  # a threshold is never chosen on a test split
        if recipes.selects_on_test(recipes.of_checkpoint(checkpoint_folder, metadata).data):
            summary.rule += "; the run was selected on a test split"
    described = {
        "task": recipe.task.name, "title": restored.title, "primary_metric": restored.primary_metric, "split": split,
        "data": json.loads(source.model_dump_json()),
        "changes": assignments,
        "order": loader.order,
        "checkpoint": str(checkpoint_folder),
        "step": metadata.get("step"),
        "weights": fingerprint(checkpoint_folder),
        "views": views, "seed": trained.get("seed"),
        "trained_on": metadata.get("data"),
        "trained_videos": overlap,
        "rows": {"count": len(rows), "fingerprint": logger.fingerprint(rows)},
        "versions": logger.packages(),
        "machine": logger.hardware() | {"device": str(device), "precision": recipe.run.precision},
        "git": logger.git_state(),
        "command": sys.argv,
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }  # fmt: skip
    return Evaluation(recipe.task.name, split, summary, report(summary, loader, described), folder)


def in_processes(*arguments: Any, **named: Any) -> Evaluation:
    """``of_checkpoint`` in the processes that torchrun or Ray Train started; alone without them."""
    with distributed.process_group("auto"):
        return of_checkpoint(*arguments, **named)


def _recipe(folder: Path, assignments: Sequence[str], name: str | None) -> Recipe:
    """The recipe of a checkpoint with changes, and with the settings of another task for zero-shot evaluation."""
    renamed = next((text for text in assignments if text.partition("=")[0] == "task.name"), None)
    if renamed is not None:
        raise ConfigError(f"override {renamed!r}: to evaluate as another task, use --task")
    metadata = checkpoint.read_json(folder / "config.json")
    recipe = recipes.of_checkpoint(folder, metadata)
    table: dict[str, Any] = metadata["recipe"]
    if name is not None and name != recipe.task.name:
        possible = [each for each, kind in TASKS.items() if kind.zero_shot]
        if name not in TASKS:
            raise ConfigError(f"unknown task {name!r}: there are {', '.join(possible)}")
        if TASKS[recipe.task.name].is_tokenizer:
            raise CheckpointError(f"{folder}: holds a video tokenizer, which cannot be evaluated as {name}")
        if name not in possible:
            raise CheckpointError(
                f"{folder}: a {recipe.task.name} checkpoint cannot be evaluated as {name} without training: "
                f"--task takes {', '.join(possible)}"
            )
        settings = TASKS[name].zero_shot_settings(recipe.task, metadata["facts"])
        table = {**table, "task": {"name": name, **settings}}
    return recipes.check(config.override(table, assignments), f"{folder}: its recipe")


def _check_views(task: Task, loader: Loader, views: int) -> None:
    if views == 1:
        return
    if not task.averaged:
        raise ConfigError(
            f"--views {views}: {task.name} averages no scores of several clips with these settings; linear_probe, "
            "question_answering, multiple_choice, and retrieval with task.protocol=dual-encoder do"
        )
    if isinstance(loader.pixels, StoredPixels):
        held, needed = loader.pixels.store.cached_frames, views * loader.num_frames
        if held < needed:
            raise ConfigError(
                f"--views {views} of {loader.num_frames} frames: only {held} frames of a video are cached; evaluate "
                f"with data.cached_frames={needed}, or without the cache: data.cache= data.packed="
            )


def _use_truth(task: Task, rows: Sequence[Example], truth: Path | None, annotations: Path) -> bool:
    """Set the relevance of a retrieval task by the truth of synthetic data, if there is any; whether it was set."""
    if not task.uses_relevance:
        if truth is not None:
            raise ConfigError(f"{truth}: {task.name} does not rank videos for texts; leave --truth out")
        return False
    beside = (annotations if annotations.is_dir() else annotations.parent) / "world.jsonl"
    if truth is None and not beside.is_file():
        return False
    # Computed here too, so that the truth of other data is refused before the work.
    synthetic.relevance(truth or beside, [caption_of(row, None) for row in rows], [row.video for row in rows])
    task.relevance = by_truth(truth or beside)
    return True


def by_truth(truth: Path) -> Callable[[Sequence[Prediction]], NDArray[np.bool_]]:
    """Relevance for ``Task.relevance``: (texts, videos), True if the text is true of the video.

    Args:
        truth: the ``world.jsonl`` of the synthetic data of both.
    """

    def relevance(predictions: Sequence[Prediction]) -> NDArray[np.bool_]:
        texts = [caption_of(prediction.example, None) for prediction in predictions]
        return synthetic.relevance(truth, texts, [prediction.example.video for prediction in predictions])

    return relevance


def report(summary: Metrics, loader: Loader, described: dict[str, Any]) -> dict[str, Any]:
    """The JSON of an evaluation: metrics, interval, chance, rule, unreadable videos, and a description."""
    low, high = metrics.interval([row["score"] for row in summary.rows])
    return {
        "metrics": summary.metrics,
        "interval": [100 * low, 100 * high],
        "chance": summary.chance,
        "rule": summary.rule,
        "samples": len(summary.rows),
        "unreadable": dict(sorted(loader.unreadable.items())),
        **described,
    }


def save(folder: Path, result: dict[str, Any], summary: Metrics, *, parquet: bool = False) -> None:
    """Write ``metrics.json``, ``predictions.jsonl`` and ``details.json``.

    Args:
        folder: of the evaluation.
        result: ``Evaluation.result``.
        summary: ``Evaluation.summary``.
        parquet: also write ``predictions.parquet``, with the same rows.

    Raises:
        DependencyError: pyarrow is needed and not installed.
        OutputError: the folder holds something else, or cannot be written.
    """
    table = parquet_bytes(summary.rows) if parquet else None
    files.acquire_dir(folder, KIND)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in summary.rows)
    try:
        files.write_atomic(folder / "predictions.jsonl", lines)
        if table is not None:
            files.write_atomic(folder / "predictions.parquet", table)
        files.write_atomic(folder / "details.json", json.dumps(summary.details))
        metrics_json = json.dumps(result, indent=2, sort_keys=True, default=str) + "\n"
        files.write_atomic(folder / "metrics.json", metrics_json)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}; free space or name another folder") from None


def parquet_bytes(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows of predictions as a Parquet file; values of mixed types are written as JSON text.

    Raises:
        DependencyError: pyarrow is not installed.
    """
    try:
        pa: Any = importlib.import_module("pyarrow")
        pq: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DependencyError("Parquet files need pyarrow: pip install 'evilm[parquet]'") from None
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            columns[name] = pa.array([json.dumps(value, ensure_ascii=False) for value in values])
    target = io.BytesIO()
    pq.write_table(pa.table(columns), target)
    return target.getvalue()


def fingerprint(folder: Path) -> str:
    """The sha256 of a checkpoint's weights, from its manifest."""
    return str(checkpoint.read_json(folder / checkpoint.MANIFEST)["sha256"]["model.safetensors"])
