"""``evilm adapt``: go on training on a user's own clips, and say what it was worth on clips that were held out.

The run is one like any other: a recipe, carried out by the trainer, whose checkpoint everything else takes.

    RUN/adapt.json        the request, what was found in the clips, the recipe, the numbers before and after
    RUN/train.jsonl       the clips learned from        RUN/held-out.jsonl    those held out
    RUN/unreadable.jsonl  what could not be read        RUN/start/            the model with room for new words
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilm import config, files
from evilm.data.vocabulary import Vocabulary
from evilm.errors import ConfigError, DataError, OutputError
from evilm.training import checkpoint, evaluate, recipe, trainer
from evilm.training.adapt import start as starts
from evilm.training.adapt.captions import own_clips
from evilm.training.adapt.readable import decodable, readable
from evilm.training.adapt.split import divide
from evilm.training.adapt.words import examine, extend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from evilm.training.adapt.start import Start
    from evilm.types import Example

STATE = "adapt.json"
SHOWN = ("R@1", "R@5", "R@10", "MdR")
_CACHED = 4e9  # bytes of decoded frames, and of what is kept about them, on the disk at most
_CANDIDATES = 8  # frames of a clip among these


@dataclass(frozen=True)
class Request:
    """What a user asked for; JSON-able, so that a run is gone on with as it was begun.

    Attributes:
        source, videos: as ``own_clips`` takes them.
        model: the checkpoint or run to begin with.
        seed: of the part held out, and of training.
        share: of the videos that are held out.
        new_words: give frequent words that the model does not know a piece of their own.
        changes: ``a.b=c`` changes to the recipe.
    """

    source: str
    videos: str | None
    model: str
    seed: int = 0
    share: float = 0.2
    new_words: bool = True
    changes: tuple[str, ...] = ()


def adapt(request: Request, out: Path, *, resume: bool = False, say: Callable[[str], None] = lambda _: None) -> Any:
    """Carry out a request, or go on with it.

    Args:
        request: what is wanted.
        out: the run's folder: new or empty, or with ``resume`` one that this request began.
        resume: go on where it was stopped.
        say: told what happens, a line at a time.

    Returns:
        what ``adapt.json`` holds: among others ``before``, ``after`` and ``chance`` by metric, in percent.

    Raises:
        CheckpointError: the model is an export, or embeds nothing.
        DataError: no captions, or too few clips to hold some out.
        OutputError: ``out`` holds something else, or a run and ``resume`` was not asked for.
        trainer.Interrupted: after saving, when Ctrl-C or SIGTERM came.
    """
    begun = _begun(request, out) if resume else None
    if begun is None:
        if out.is_dir() and checkpoint.steps(out):
            raise OutputError(f"{out}: holds a run already; go on with --resume, or name another folder with --out")
        files.check_output_dir(out, trainer.KIND)
        begun = _begin(request, out, say)
    if "after" not in begun:
        trainer.train(config.check(recipe.Recipe, begun["recipe"], str(out / STATE)), resume=resume)
        done = checkpoint.find(out)
        begun["after"] = checkpoint.read_json(done / "config.json")["validation"]
        begun["seconds"] = round(checkpoint.read_json(done / "training" / "state.json")["seconds"], 1)
        _write(out / STATE, begun)
    return begun


def _begun(request: Request, out: Path) -> dict[str, Any] | None:
    """What was found when a request was begun; None where it was not.

    Raises:
        ConfigError: it was another request.
    """
    if not (out / STATE).is_file():
        return None
    state = checkpoint.read_json(out / STATE)
    asked = json.loads(json.dumps(asdict(request)))
    differs = [f"{key} {value!r}" for key, value in state["request"].items() if asked.get(key) != value]
    if differs:
        raise ConfigError(f"{out}: was begun with {', '.join(differs)}: go on with the same, or name another folder")
    return state


def _begin(request: Request, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Look at model and clips, divide them, measure, and write it all down; nothing is written before it all fits."""
    start = starts.trainable(request.model)
    own = own_clips(Path(request.source), None if request.videos is None else Path(request.videos))
    if own.nameless:
        say(f"{len(own.nameless)} videos are left out, as their names say nothing: {', '.join(own.nameless[:3])}, ...")
    rows, unreadable = readable(own.examples)
    _say_left_out(unreadable, len(own.examples), say)
    train, held = divide(rows, request.share, request.seed)
    vocabulary = Vocabulary.load(start.folder / "vocabulary.json")
    words = examine(vocabulary, train)
    say(f"{len(train)} clips to learn from, {len(held)} held out; captions: {own.origin}")
    say(str(words))
    files.acquire_dir(out, trainer.KIND)
    new = words.new if request.new_words else ()
    if new:
        extend(start.folder, new, out / "start")
        say(f"{len(new)} of these words get a piece of their own: {', '.join(new[:12])}")
    origin = out / "start" if new else start.folder
    plan = recipe_for(request, start, own.root, out, len(train), origin)
    (train, lost), (held, missed) = (decodable(part, plan.data, start.shape.image_size) for part in (train, held))
    if lost or missed:
        _say_left_out(lost + missed, len(rows), say)
        if not train or not held:
            raise DataError(f"{len(train)} clips to learn from and {len(held)} held out are left: mend the others")
        plan = recipe_for(request, start, own.root, out, len(train), origin)
        unreadable += lost + missed
    _write_rows(out / "train.jsonl", train)
    _write_rows(out / "held-out.jsonl", held)
    _write_lines(out / "unreadable.jsonl", unreadable)
    before = _measure(start, plan, out)
    state = {
        "request": asdict(request),
        "clips": {"train": len(train), "held out": len(held), "unreadable": len(unreadable),
                  "without words": len(own.nameless), "captions": own.origin},
        "words": words.as_json() | {"new": list(new)},
        "recipe": json.loads(plan.model_dump_json()),
        "rule": before.summary.rule,
        "before": before.summary.metrics,
        "chance": before.summary.chance,
    }  # fmt: skip
    _write(out / STATE, state)
    return state


def _say_left_out(unreadable: Sequence[dict[str, str]], clips: int, say: Callable[[str], None]) -> None:
    if unreadable:
        say(f"{len(unreadable)} of {clips} clips cannot be read and are left out:")
    for line in unreadable[:5]:
        say(f"  {line['path']}: {line['status']}: {line['reason']}")


@dataclass(frozen=True)
class Pace:
    """How long and how fast to train on so many clips.

    Attributes:
        batch: clips a step.
        epochs: times each clip is seen.
        lr: learning rate.
    """

    batch: int
    epochs: float
    lr: float


def pace(clips: int) -> Pace:
    """Few clips are seen often, many seldom: some hundred steps up to a thousand clips, then six epochs."""
    return Pace(min(64, clips), min(40.0, max(6.0, 6_000 / clips)), 5e-4)


def recipe_for(request: Request, start: Start, root: Path, out: Path, clips: int, origin: Path) -> recipe.Recipe:
    """The recipe of the run: retrieval, as the model embeds, on what is written to ``out``.

    Args:
        request: with changes to it.
        start: what is known of the model.
        root: the folder that paths of videos start from.
        out: of the run.
        clips: to learn from.
        origin: the checkpoint to begin with, which has room for new words.
    """
    speed, theirs = pace(clips), start.recipe
    source = {"reader": "captions", "videos": str(root.resolve())}
    cached = clips * _CANDIDATES * 3 * start.shape.image_size**2 <= _CACHED
    table: dict[str, Any] = {
        "task": {"name": "retrieval", "max_text_len": start.words, "embed_dim": start.embedding,
                 "focal_gamma": start.focus},
        "data": {
            "train": {**source, "annotations": str(out.resolve() / "train.jsonl")},
            "validation": {**source, "annotations": str(out.resolve() / "held-out.jsonl")},
            "cache": str(out / "cache") if cached else None, "cached_frames": _CANDIDATES,
            "resize_mode": theirs.data.resize_mode,
            "max_bad_ratio": 0.2,
        },
        "optim": {"batch_size": speed.batch, "epochs": speed.epochs, "lr": speed.lr, "backbone_lr_scale": 0.0},
        "run": {"output_dir": str(out), "checkpoint_minutes": 1.0},
        "start": str(origin), "seed": request.seed,
    }  # fmt: skip
    plan = config.check(recipe.Recipe, config.override(table, request.changes), "evilm adapt")
    if "features" not in plan.data.model_fields_set and _fits_features(plan, clips * start.shape.image_size**2):
        plan = plan.model_copy(update={"data": plan.data.model_copy(update={"features": True})})
    return plan


def _fits_features(plan: recipe.Recipe, pixels: int) -> bool:
    """Whether what the backbone sees can be kept: it is frozen, frames are, crops are few, and the disk has room.

    Features of stride 16 take about as much as the picture (384 channels of two bytes in place of 256 x 3 bytes).
    """
    crops = plan.data.augment.crops
    if plan.data.cache is None or plan.data.packed is not None or plan.optim.backbone_lr_scale or crops is None:
        return False
    views = crops * (2 if plan.data.augment.hflip else 1)
    return pixels * plan.data.cached_frames * 3 * (1 + views) <= _CACHED


def _measure(start: Start, plan: recipe.Recipe, out: Path) -> evaluate.Evaluation:
    """The model as it is, on the clips held out, by the rule that the adapted one is measured by."""
    told = {
        "task.protocol": "dual-encoder", "data.packed": None, "data.cache": plan.data.cache,
        "data.cached_frames": plan.data.cached_frames, "data.workers": plan.data.workers,
        "optim.batch_size": plan.optim.batch_size, "run.device": plan.run.device, "run.precision": plan.run.precision,
        "run.threads": plan.run.threads,
    }  # fmt: skip
    source = plan.data.validation
    assert source is not None
    told |= {f"data.validation.{name}": value for name, value in json.loads(source.model_dump_json()).items()}
    changes = [f"{name}={'' if value is None else json.dumps(value, default=str)}" for name, value in told.items()]
    return evaluate.of_checkpoint(start.folder, "validation", changes, task="retrieval", out=out / "before")


def _write_rows(path: Path, examples: Iterable[Example]) -> None:
    """Clips as lines that the ``captions`` reader takes."""
    rows: list[dict[str, Any]] = []
    for row in examples:
        part = {"start": row.clip.start} if row.clip.start else {}
        part |= {} if row.clip.end is None else {"end": row.clip.end}
        rows.append({"path": row.video, "captions": list(row.captions), **part})
    _write_lines(path, rows)


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    _replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write(path: Path, state: dict[str, Any]) -> None:
    _replace(path, json.dumps(state, indent=2, default=str) + "\n")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}; free space or name another folder") from None
