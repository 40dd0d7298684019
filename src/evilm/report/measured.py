"""Our own numbers: every evaluation in some run folders, and what the model behind each was trained on.

A checkpoint names the one that it started from, and a pre-trained one its video tokenizer, by path. A path that leads
nowhere is looked for beside the run; what is still not found is unknown, and said so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evilm.errors import CheckpointError, DataError
from evilm.training import checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

OBJECTIVES = ("vtm", "mlm", "mvm")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a checkpoint is, and what it came from.

    Attributes:
        folder: the run.
        checkpoint: the checkpoint in it.
        task: what it was trained for.
        model: the shape of its E-ViLM, None for a tokenizer.
        settings: of its task.
        validation: what it got on its validation split at the end of training, {} when unknown.
        data: reader and annotations of its training split.
        start: the checkpoint that it started from; None when it started at random.
        tokenizer: the video tokenizer of a pre-trained one; None without MVM, or when unknown.
        lost: what it names and is not there any more.
    """

    folder: Path
    checkpoint: Path
    task: str
    model: dict[str, Any] | None
    settings: dict[str, Any]
    validation: dict[str, float]
    data: dict[str, Any]
    start: Origin | None = None
    tokenizer: Origin | None = None
    lost: tuple[str, ...] = ()

    @property
    def pretraining(self) -> Origin | None:
        """The pre-trained checkpoint behind it, itself included; None when there is none, or it is lost."""
        if self.task == "pretrain":
            return self
        return None if self.start is None else self.start.pretraining

    @property
    def objectives(self) -> frozenset[str] | None:
        """Those of Table 5 that it was pre-trained by; none without pre-training; None when that cannot be told."""
        found = self.pretraining
        if found is not None:
            return frozenset(name for name in OBJECTIVES if found.settings.get(name))
        return None if self.all_lost else frozenset()

    @property
    def all_lost(self) -> tuple[str, ...]:
        """``lost`` here and in what it came from."""
        return self.lost + (() if self.start is None else self.start.all_lost)

    @property
    def teaches(self) -> str | None:
        """A tokenizer's kind in Table 6: ``focal``, ``bce``, ``pixels``, ``features``; None for anything else."""
        if self.task == "tokenizer":
            return str(self.settings.get("word_loss", "focal"))
        return str(self.settings["target"]) if self.task == "reconstruction" else None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One ``metrics.json``.

    Attributes:
        file: where it lies.
        task, split, reader, annotations: what was evaluated, on what.
        metrics: its numbers.
        samples: rows of the split.
        rule: the rule behind the numbers.
        shuffled: whether frames were shown in a wrong order.
        changes: what was changed in the recipe for it.
        origin: the model.
    """

    file: Path
    task: str
    split: str
    reader: str
    annotations: str
    metrics: dict[str, float]
    samples: int
    rule: str
    shuffled: bool
    changes: tuple[str, ...]
    origin: Origin
    raw: dict[str, Any] = field(repr=False, default_factory=lambda: {})

    @property
    def zero_shot(self) -> bool:
        """Whether a pre-trained model did it without being tuned for it."""
        return self.origin.task == "pretrain" and self.task != "pretrain"

    @property
    def blind(self) -> bool:
        """Whether the model was not shown the video."""
        return bool(self.origin.settings.get("blind")) or any(c.startswith("task.text_only=true") for c in self.changes)

    @property
    def about(self) -> str:
        """The data, in words."""
        return f"{self.reader} of {self.annotations}, {self.split} split, {self.samples:,} rows"


def read(paths: Iterable[Path]) -> tuple[list[Evaluation], list[str]]:
    """Every evaluation below some folders, by path, and a line for each that cannot be used.

    Raises:
        DataError: a path that is not there, or with no evaluation in it.
    """
    found: list[Evaluation] = []
    said: list[str] = []
    for path in paths:
        files = [path] if path.is_file() else sorted(path.rglob("metrics.json"))
        if not files:
            why = "no such file or folder" if not path.exists() else "holds no evaluation (metrics.json)"
            raise DataError(f"{path}: {why}; `evilm evaluate RUN --split test` makes one")
        for file in files:
            try:
                found.append(_evaluation(file))
            except (CheckpointError, KeyError, TypeError, ValueError) as error:
                said.append(f"{file}: left out: {_reason(error)}")
    return found, said


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, CheckpointError) else f"not an evaluation of ours ({error!r:.80})"


def _evaluation(file: Path) -> Evaluation:
    try:
        said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(error.strerror) from None
    return Evaluation(
        file=file,
        task=str(said["task"]),
        split=str(said["split"]),
        reader=str(said["data"]["reader"]),
        annotations=str(said["data"]["annotations"]),
        metrics={str(name): float(value) for name, value in said["metrics"].items()},
        samples=int(said["samples"]),
        rule=str(said["rule"]),
        shuffled=said.get("order", "true") != "true",
        changes=tuple(said.get("changes", ())),
        origin=origin(_beside(file, str(said["checkpoint"]))),
        raw=said,
    )


def _beside(file: Path, named: str) -> Path:
    """The checkpoint that an evaluation names, or the run that it lies in."""
    if (Path(named) / "config.json").is_file():
        return Path(named)
    return next((up for up in file.parents if (up / "config.json").is_file() or checkpoint.steps(up)), Path(named))


def origin(folder: Path) -> Origin:
    """What a run or a checkpoint is; only its ``config.json`` is read, and those of what it names.

    Raises:
        CheckpointError: there is no checkpoint, or its ``config.json`` is not ours.
    """
    own = folder if (folder / "config.json").is_file() else next(iter(reversed(checkpoint.steps(folder))), None)
    if own is None:
        raise CheckpointError(f"{folder}: holds no checkpoint, so it cannot be told what was trained how")
    about = checkpoint.read_json(own / "config.json")
    run = own.parent if own.name.startswith("step-") else own
    try:
        recipe, settings = about["recipe"], about["recipe"]["task"]
        task, data = str(about["task"]), recipe["data"]["train"]
    except (KeyError, TypeError):
        raise CheckpointError(f"{own / 'config.json'}: holds no recipe, so this is no checkpoint of ours") from None
    lost: list[str] = []
    start = _named(run, recipe.get("start"), lost)
    tokenizer = _named(run, settings.get("tokenizer"), lost) if task == "pretrain" and settings.get("mvm") else None
    validation = cast("dict[str, float]", about.get("validation") or {})
    return Origin(run, own, task, about.get("model"), settings, validation, data, start, tokenizer, tuple(lost))


def _named(run: Path, path: object, lost: list[str]) -> Origin | None:
    """The run that a recipe names, where it is or beside the run; noted in ``lost`` when it is in neither place."""
    if not path:
        return None
    for place in (Path(str(path)), run.parent / Path(str(path)).name):
        if place.is_dir():
            try:
                return origin(place)
            except CheckpointError:
                continue
    lost.append(str(path))
    return None
