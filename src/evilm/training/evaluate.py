"""One evaluator for every task: predictions of a split, metrics with their rule, and everything written down."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from evilm import __version__, config, distributed, files, metrics
from evilm.data import synthetic
from evilm.errors import CheckpointError, ConfigError, DataError, OutputError
from evilm.progress import Meter
from evilm.tasks import FINETUNE, TOKENIZERS
from evilm.tasks.distill import Distill
from evilm.tasks.retrieval import Retrieval
from evilm.tasks.task import caption_of
from evilm.training import build, checkpoint, feed
from evilm.training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from evilm.data.loader import Loader
    from evilm.distributed import Precision
    from evilm.tasks import Metrics, Prediction, Task
    from evilm.types import Example

Split = Literal["train", "validation", "test"]
KIND = "evaluation of evilm"  # what the mark of an evaluation's folder says


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What ``of_checkpoint`` found.

    Attributes:
        task: the name of the task.
        split: which rows.
        summary: metrics, chance, rule, rows.
        result: the JSON of it, see ``report``.
        folder: where ``save`` puts it unless told otherwise.
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
) -> Metrics:
    """Predict every row of a split once, in file order, and summarise.

    Several processes take batches in turn, and each gets the summary of all.

    Args:
        task: put on ``device`` and into evaluation mode.
        loader: of a split that is not shuffled for training.
        device, precision: where and in which format.
        label: for the progress line.
        stop: asked before every batch.

    Raises:
        StoppedError: ``stop`` said so, in one of the processes.
    """
    task.to(device).eval()
    bf16, share = distributed.uses_bf16(precision, device), distributed.world_size()
    own: list[list[Prediction]] = []
    with Meter(label, len(loader), "batches") as meter, torch.inference_mode():
        batches = iter(loader)
        for first in range(0, len(loader), share):
            if distributed.all_reduce_max(int(stop())):
                raise StoppedError
            batch = next(batches, None)
            if batch is not None:
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    own.append(task.predict(batch.to(device)))
            meter.update(min(first + share, len(loader)))
    each = distributed.all_gather_objects(own)
    for found in distributed.all_gather_objects(loader.unreadable):
        loader.unreadable.update(found)
    return task.compute_metrics([row for n in range(len(loader)) for row in each[n % share][n // share]])


def of_checkpoint(
    path: Path,
    split: Split = "validation",
    assignments: Iterable[str] = (),
    *,
    task: str | None = None,
    shuffled: bool = False,
    truth: Path | None = None,
    out: Path | None = None,
) -> Evaluation:
    """Evaluate a checkpoint on a split of its own recipe.

    Args:
        path: a checkpoint or a run.
        split: which of the recipe's data; the test split is for the last word, and is only taken when asked for.
        assignments: ``a.b=c`` changes to the recipe, such as other annotations.
        task: evaluate as this task instead (zero-shot).
        shuffled: show the frames in a wrong order: the control that cannot read time.
        truth: ``world.jsonl`` of a procedural world, by which a video is right when the text is true of it; one that
            lies beside the annotations is taken by itself.
        out: refuse at once when this folder cannot take the result; nothing is written here.

    Raises:
        CheckpointError, ConfigError, DataError, DeviceError, OutputError: whatever does not fit, before any work.
    """
    checkpoint_folder = checkpoint.find(path)
    assignments = list(assignments)
    recipe = _recipe(checkpoint_folder, assignments, task)
    name = f"evaluation-{split}" + (f"-{task}" if task else "") + ("-shuffled" if shuffled else "")
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
    rows = feed.examples(source)
    _check_rows(recipe.task.name, rows, split)
    restored, about = build.restore(checkpoint_folder, recipe.task)
    scored_by_truth = _judge(restored, rows, truth, source.annotations)
    with distributed.rank0_first():
        loader = feed.loader(recipe, restored, rows, train=False)
    loader.order = "shuffled" if shuffled else "true"
    summary = evaluate(restored, loader, device, recipe.run.precision, f"evaluating {split}")
    if scored_by_truth:
        summary.rule += "; a video is right when the text is true of it"
    said = {
        "task": recipe.task.name,
        "split": split,
        "data": json.loads(source.model_dump_json()),
        "changes": assignments,
        "order": loader.order,
        "checkpoint": str(checkpoint_folder),
        "step": about.get("step"),
        "weights": fingerprint(checkpoint_folder),
        "versions": {"evilm": __version__, "torch": torch.__version__},
    }
    return Evaluation(recipe.task.name, split, summary, report(summary, loader, said), folder)


def _recipe(folder: Path, assignments: Sequence[str], task: str | None) -> Recipe:
    """The recipe of a checkpoint with changes, and with another task where one is asked for."""
    about = checkpoint.read_json(folder / "config.json")
    renamed = next((text for text in assignments if text.partition("=")[0] == "task.name"), None)
    if renamed is not None:
        raise ConfigError(f"override {renamed!r}: to evaluate as another task, take --task")
    try:
        table: dict[str, Any] = {**about["recipe"]}
        own: dict[str, Any] = {**table["task"]}
    except (KeyError, TypeError):
        raise CheckpointError(f"{folder / 'config.json'}: holds no recipe, so this is no checkpoint of ours") from None
    if task is not None and task != own.get("name"):
        if task not in FINETUNE:
            raise ConfigError(f"unknown task {task!r}: there are {', '.join(FINETUNE)}")
        if own.get("name") in TOKENIZERS:
            raise CheckpointError(f"{folder}: holds a video tokenizer, which cannot be evaluated as {task}")
        shared = {"max_text_len", "embed_dim"} & own.keys() if task in ("retrieval", "paraphrase") else set[str]()
        # Nothing is trained, so only the heads that the protocol ranks by are asked of the checkpoint.
        weights = {"contrastive_weight": 0.0, "vtm_weight": 0.0} if task == "retrieval" else dict[str, float]()
        told = _choosing(own) if task == "multiple_choice" else {}
        if task == "retrieval" and own.get("name") == "distill":
            told = {"embed_dim": about["facts"]["width"]}  # the teacher's space
        table = {**table, "task": {"name": task, **weights, **{key: own[key] for key in shared}, **told}}
    return config.check(Recipe, config.override(table, assignments), f"{folder}: its recipe")


def _choosing(own: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol and head of multiple choice for a checkpoint that was trained for another task.

    A pre-trained model scores options zero-shot by matching, or by its embeddings where matching was not learned; a
    retrieval model as it ranks.
    """
    if own.get("name") == "retrieval":
        embeds = own.get("protocol", "dual-encoder") == "dual-encoder"
    else:
        embeds = own.get("vtm_weight") == 0 and bool(own.get("contrastive_weight"))
    told: dict[str, Any] = {"protocol": "retrieval-tuned" if own.get("name") == "retrieval" else "zero-shot"}
    return told | ({"head": "embed", "embed_dim": own.get("embed_dim", 512)} if embeds else {})


def _check_rows(task: str, rows: Sequence[Example], split: str) -> None:
    """Whether the rows are of the kind that a task reads.

    Raises:
        DataError: they are not; names the first.
    """
    lacks: dict[str, tuple[str, Callable[[Example], bool]]] = {
        "retrieval": ("caption", lambda row: not row.captions),
        "question_answering": ("question with an answer", lambda row: row.question is None or row.answer is None),
        "multiple_choice": ("options", lambda row: not row.choices),
        "linear_probe": ("class label", lambda row: row.label is None),
        "paraphrase": ("second caption", lambda row: len(row.captions) < 2),
    }
    what, lack = lacks.get(task, ("", lambda _: False))
    row = next((row for row in rows if lack(row)), None)
    if row is not None:
        raise DataError(
            f"data.{split}: row {row.key} has no {what}, which {task} needs: set another data.{split}.reader"
        )


def _judge(task: Task, rows: Sequence[Example], truth: Path | None, annotations: Path) -> bool:
    """Let a world's truth say what is relevant, where there is one; whether it does."""
    if not isinstance(task, Retrieval | Distill):
        if truth is not None:
            raise ConfigError(f"{truth}: only retrieval is scored by what is true; leave --truth out for {task.name}")
        return False
    beside = (annotations if annotations.is_dir() else annotations.parent) / "world.jsonl"
    if truth is None and not beside.is_file():
        return False
    # Asked now as well, so that a truth of another world is refused before the work.
    synthetic.relevance(truth or beside, [caption_of(row, None) for row in rows], [row.video for row in rows])
    task.relevance = by_truth(truth or beside)
    return True


def by_truth(truth: Path) -> Callable[[Sequence[Prediction]], NDArray[np.bool_]]:
    """Relevance for ``Retrieval``: (texts, videos), True where a world's text is true of the video.

    Args:
        truth: the ``world.jsonl`` of the world that both come from.
    """

    def relevance(predictions: Sequence[Prediction]) -> NDArray[np.bool_]:
        texts = [caption_of(prediction.example, None) for prediction in predictions]
        return synthetic.relevance(truth, texts, [prediction.example.video for prediction in predictions])

    return relevance


def report(summary: Metrics, loader: Loader, about: dict[str, Any]) -> dict[str, Any]:
    """The JSON of an evaluation: metrics, interval, chance, rule, unreadable videos, and what was evaluated."""
    low, high = metrics.interval([row["score"] for row in summary.rows])
    return {
        "metrics": summary.metrics,
        "interval": [100 * low, 100 * high],
        "chance": summary.chance,
        "rule": summary.rule,
        "samples": len(summary.rows),
        "unreadable": dict(sorted(loader.unreadable.items())),
        **about,
    }


def save(folder: Path, result: dict[str, Any], summary: Metrics) -> None:
    """Write ``metrics.json``, ``predictions.jsonl`` and ``details.json``, each whole or not at all.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
    """
    files.acquire_dir(folder, KIND)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in summary.rows)
    try:
        for name, text in (
            ("predictions.jsonl", lines),
            ("details.json", json.dumps(summary.details)),
            ("metrics.json", json.dumps(result, indent=2, sort_keys=True, default=str) + "\n"),
        ):
            temporary = folder / (name + ".tmp")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, folder / name)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}; free space or name another folder") from None


def fingerprint(folder: Path) -> str:
    """The sha256 of a checkpoint's weights, from its manifest."""
    return str(checkpoint.read_json(folder / checkpoint.MANIFEST)["sha256"]["model.safetensors"])
