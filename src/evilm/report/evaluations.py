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

# Names for `--on`, and the text that the paths of such data contain.
DATA_NAMES = {"synthetic": "world", "msrvtt-mini": "msrvtt-frames"}
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
    seed: int | None = None
    recipe: str = ""  # the settings without seed and places, equal for runs that differ in their seeds only

    @property
    def name(self) -> str:
        """The run's folder below its parent."""
        return f"{self.run.parent.name}/{self.run.name}"

    @property
    def family(self) -> str:
        """What runs share that differ in the seeds of their stages only: the recipes of all stages."""
        return f"{self.recipe};{self.start and self.start.family};{self.tokenizer and self.tokenizer.family}"

    @property
    def seeds(self) -> str:
        """The seed of the run, and of the stages before it where they differ: ``1``, or ``1 after 0``."""
        earlier = {stage.seeds for stage in (self.start, self.tokenizer) if stage is not None} - {str(self.seed)}
        return " after ".join([str(self.seed), *sorted(earlier)])

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

    @property
    def conditions(self) -> tuple[object, ...]:
        """What evaluations must share for a mean over their seeds."""
        return self.model.family, self.source, self.rule, self.changes


def select(evaluations: Iterable[Evaluation], on: str | None) -> list[Evaluation]:
    """The evaluations on some data.

    Args:
        evaluations: those at hand.
        on: a name of ``DATA_NAMES``, or a part of the name of the reader or of the path of the annotations.

    Raises:
        DataError: none is on such data.
    """
    found = list(evaluations)
    wanted = None if on is None else DATA_NAMES.get(on, on)
    chosen = [one for one in found if wanted is None or wanted in f"{one.data['reader']} {one.data['annotations']}"]
    if on is not None and not chosen:
        known = sorted({f"{one.data['reader']} of {one.data['annotations']}" for one in found})
        raise DataError(f"--on {on}: no evaluation is on such data; there are: {'; '.join(known) or 'none'}")
    return chosen


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
        run, own, saved.get("model"), settings, saved.get("validation") or {}, data, start, tokenizer, tuple(missing),
        recipe.get("seed"), _without_places(recipe, missing),
    )  # fmt: skip


def _without_places(recipe: dict[str, Any], missing: Iterable[str]) -> str:
    """The settings that make a run what it is: not its seed, and not the folders of runs, caches and vocabularies."""
    kept = {key: value for key, value in recipe.items() if key not in {"seed", "start", "vocabulary", "run"}}
    kept["task"] = {key: value for key, value in recipe["task"].items() if key != "tokenizer"}
    kept["data"] = {key: value for key, value in recipe["data"].items() if key not in {"cache", "packed"}}
    return json.dumps([kept, sorted(missing)], sort_keys=True)


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
