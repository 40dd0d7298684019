"""Read the evaluations below some folders, and how the evaluated model was trained.

A checkpoint's recipe names the run that it started from, and a pre-training recipe its video tokenizer, by path. A path
that does not exist is searched for beside the run; if it is not there either, it is reported as missing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from evilm.errors import CheckpointError, DataError
from evilm.training import checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

OBJECTIVES = ("vtm", "mlm", "mvm")  # of Table 5; the recipe's settings are their weights, such as mvm_weight


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a checkpoint was trained."""

    run: Path  # folder of the run
    checkpoint: Path  # folder of the checkpoint
    model: dict[str, Any] | None  # settings of its E-ViLM; None for a video tokenizer
    settings: dict[str, Any]  # settings of its task
    validation: dict[str, float]  # metrics on the validation split at the end of training; {} if unknown
    data: dict[str, Any]  # reader and annotations of the training split
    start: Provenance | None  # the run that it started from; None for random weights, or if the run is missing
    tokenizer: Provenance | None  # the video tokenizer of a pre-trained model; None without MVM, or if missing
    missing: tuple[str, ...]  # runs that its recipe names and that do not exist any more

    @property
    def name(self) -> str:
        """The run's folder below its parent."""
        return f"{self.run.parent.name}/{self.run.name}"

    @property
    def is_pretrained(self) -> bool:
        """Whether this run itself is a pre-training."""
        return "mvm_weight" in self.settings

    @property
    def pretraining(self) -> Provenance | None:
        """The pre-training that this model comes from, or this run itself; None if there is none or it is missing."""
        return self if self.is_pretrained else None if self.start is None else self.start.pretraining

    @property
    def objectives(self) -> frozenset[str] | None:
        """Objectives of the pre-training; empty without pre-training; None if it is missing."""
        if self.pretraining is not None:
            return frozenset(name for name in OBJECTIVES if self.pretraining.settings.get(f"{name}_weight"))
        return None if self.all_missing else frozenset()

    @property
    def all_missing(self) -> tuple[str, ...]:
        """``missing`` of this run and of those that it comes from."""
        return self.missing + (() if self.start is None else self.start.all_missing)

    @property
    def tokenizer_kind(self) -> str | None:
        """Row of Table 6 of a video tokenizer: ``focal``, ``bce``, ``pixels`` or ``features``; None for other runs."""
        return self.settings.get("word_loss") or self.settings.get("target")


class Evaluation(BaseModel):
    """One ``metrics.json``, and how the evaluated model was trained."""

    file: Path
    model: Provenance
    task: str
    split: str
    data: dict[str, Any]  # reader, annotations and split
    metrics: dict[str, float]
    interval: tuple[float, float] | None = None
    samples: int
    rule: str
    order: str = "true"  # of the frames: true or shuffled
    changes: tuple[str, ...] = ()  # to the checkpoint's recipe

    @property
    def zero_shot(self) -> bool:
        """Whether a pre-trained model was evaluated on a task that it was not trained for."""
        return self.model.is_pretrained and self.task != self.model.settings.get("name")

    @property
    def control(self) -> str | None:
        """``frames shuffled`` or ``without video`` for a control experiment, else None."""
        text_only = "task.text_only=true" in self.changes or self.model.settings.get("text_only")
        return "frames shuffled" if self.order != "true" else "without video" if text_only else None

    @property
    def source(self) -> str:
        """Data and split in words."""
        return f"{self.data['reader']} of {self.data['annotations']}, {self.split} split, {self.samples:,} rows"


def read_evaluations(paths: Iterable[Path]) -> tuple[list[Evaluation], list[str]]:
    """Read every evaluation below some folders; also return one line for each that cannot be used.

    Raises:
        DataError: a path does not exist, or there is no evaluation below it.
    """
    evaluations: list[Evaluation] = []
    unusable: list[str] = []
    for path in paths:
        files = [path] if path.is_file() else sorted(path.rglob("metrics.json"))
        if not files:
            why = "no such file or folder" if not path.exists() else "holds no evaluation (metrics.json)"
            raise DataError(f"{path}: {why}; create one with `evilm evaluate RUN --split test`")
        for file in files:
            try:
                evaluations.append(_read(file))
            except (CheckpointError, OSError, KeyError, TypeError, ValueError) as error:
                reason = error if isinstance(error, CheckpointError) else f"not an evaluation of evilm ({error!r:.80})"
                unusable.append(f"{file}: not used: {reason}")
    return evaluations, unusable


def _read(file: Path) -> Evaluation:
    raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    folder = Path(raw["checkpoint"])
    if not (folder / "config.json").is_file():  # the run was moved: it is a folder above the evaluation
        folder = next((up for up in file.parents if (up / "config.json").is_file() or checkpoint.steps(up)), folder)
    return Evaluation.model_validate(raw | {"file": file, "model": provenance(folder)})


def provenance(folder: Path) -> Provenance:
    """How a run or a checkpoint was trained, from its ``config.json`` and those of the runs that it names.

    Raises:
        CheckpointError: there is no checkpoint, or its ``config.json`` is not of this version of evilm.
    """
    own = folder if (folder / "config.json").is_file() else next(iter(reversed(checkpoint.steps(folder))), None)
    if own is None:
        raise CheckpointError(f"{folder}: holds no checkpoint, so its training is unknown")
    saved = checkpoint.read_json(own / "config.json")
    run = own.parent if own.name.startswith("step-") else own
    try:
        recipe, settings, data = saved["recipe"], saved["recipe"]["task"], saved["recipe"]["data"]["train"]
    except (KeyError, TypeError):
        raise CheckpointError(f"{own / 'config.json'}: holds no recipe, so it is no checkpoint of evilm") from None
    if "mvm" in settings:
        raise CheckpointError(f"{own / 'config.json'}: task.mvm is now task.mvm_weight; train this model again")
    missing: list[str] = []
    start = _named(run, recipe.get("start"), missing)
    tokenizer = _named(run, settings.get("tokenizer"), missing) if settings.get("mvm_weight") else None
    return Provenance(
        run, own, saved.get("model"), settings, saved.get("validation") or {}, data, start, tokenizer, tuple(missing)
    )


def _named(run: Path, path: object, missing: list[str]) -> Provenance | None:
    """The run that a recipe names, at its path or beside ``run``; it is added to ``missing`` if it is at neither."""
    if not path:
        return None
    for place in (Path(str(path)), run.parent / Path(str(path)).name):
        if place.is_dir():
            try:
                return provenance(place)
            except CheckpointError:
                continue
    missing.append(str(path))
    return None
