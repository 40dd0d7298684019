"""``evilm adapt``: go on training on a user's own clips, and say what it was worth on clips that were held out.

The run is one like any other: a recipe, carried out by the trainer, whose checkpoint everything else takes.

    RUN/adapt.json        the request, what was found in the clips, the recipe, the numbers before and after
    RUN/train.jsonl       the clips learned from        RUN/held-out.jsonl    those held out
    RUN/unreadable.jsonl  what could not be read        RUN/start/            the model with room for new words
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilm import checkpoint, config, evaluation, recipe, trainer
from evilm.adapt import start as starts
from evilm.adapt.captions import own_clips
from evilm.adapt.split import divide
from evilm.adapt.words import examine, extend
from evilm.data.video import DecoderPool
from evilm.data.vocabulary import Vocabulary
from evilm.errors import ConfigError, DataError, OutputError
from evilm.progress import Meter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from evilm.adapt.start import Start
    from evilm.types import Example

STATE = "adapt.json"
SHOWN = ("R@1", "R@5", "R@10", "MdR")
_CACHED = 4e9  # bytes of decoded frames that are kept on the disk at most
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
        checkpoint.check_free(out, trainer.KIND)
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
    readable, unreadable = _readable(own.examples)
    if unreadable:
        say(f"{len(unreadable)} of {len(own.examples)} clips cannot be read and are left out:")
        for line in unreadable[:5]:
            say(f"  {line['path']}: {line['status']}: {line['reason']}")
    train, held = divide(readable, request.share, request.seed)
    vocabulary = Vocabulary.load(start.folder / "vocabulary.json")
    words = examine(vocabulary, train)
    say(f"{len(train)} clips to learn from, {len(held)} held out; captions: {own.origin}")
    say(str(words))
    checkpoint.claim(out, trainer.KIND)
    _write_rows(out / "train.jsonl", train)
    _write_rows(out / "held-out.jsonl", held)
    _write_lines(out / "unreadable.jsonl", unreadable)
    new = words.new if request.new_words else ()
    if new:
        extend(start.folder, new, out / "start")
        say(f"{len(new)} of these words get a piece of their own: {', '.join(new[:12])}")
    plan = _recipe(request, start, own.root, out, len(train), out / "start" if new else start.folder)
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


def _readable(examples: Sequence[Example]) -> tuple[list[Example], list[dict[str, str]]]:
    """The rows whose video gives frames, and path, status and reason of those that do not."""
    paths = list(dict.fromkeys(row.clip.path for row in examples if not row.clip.frames))
    workers = os.cpu_count() or 1
    bad: dict[Path, dict[str, str]] = {}
    with (
        Meter("checking", len(paths), "videos") as meter, DecoderPool(workers) as pool,
        ThreadPoolExecutor(workers) as threads,
    ):  # fmt: skip
        try:
            for done, (path, found) in enumerate(zip(paths, threads.map(pool.check, paths), strict=True), 1):
                if not found.readable:
                    bad[path] = {"path": str(path), "status": found.status, "reason": found.reason}
                meter.update(done)
        except BaseException:  # Ctrl-C: not the files that wait, too
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    rows = [row for row in examples if row.clip.path not in bad]
    if examples and not rows:
        first = next(iter(bad.values()))
        raise DataError(f"none of {len(bad)} videos can be read; the first: {first['path']}: {first['reason']}")
    return rows, list(bad.values())


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


def _recipe(request: Request, start: Start, root: Path, out: Path, clips: int, origin: Path) -> recipe.Recipe:
    """The recipe of the run: retrieval, as the model embeds, on what was written to ``out``."""
    speed, theirs = pace(clips), start.recipe
    source = {"reader": "captions", "videos": str(root.resolve())}
    cached = clips * _CANDIDATES * 3 * start.shape.size**2 <= _CACHED
    table: dict[str, Any] = {
        "task": {"name": "retrieval", "words": start.words, "embedding": start.embedding, "focus": start.focus},
        "data": {
            "train": {**source, "annotations": str(out.resolve() / "train.jsonl")},
            "validation": {**source, "annotations": str(out.resolve() / "held-out.jsonl")},
            "cache": str(out / "cache") if cached else None, "candidates": _CANDIDATES, "fit": theirs.data.fit,
            "bad_share": 0.2,
        },
        "optim": {"batch_size": speed.batch, "epochs": speed.epochs, "lr": speed.lr, "backbone_lr": 0.0},
        "run": {"out": str(out), "checkpoint_minutes": 1.0},
        "start": str(origin), "seed": request.seed,
    }  # fmt: skip
    return config.check(recipe.Recipe, config.override(table, request.changes), "evilm adapt")


def _measure(start: Start, plan: recipe.Recipe, out: Path) -> evaluation.Evaluation:
    """The model as it is, on the clips held out, by the rule that the adapted one is measured by."""
    told = {
        "task.protocol": "dual-encoder", "data.packed": None, "data.cache": plan.data.cache,
        "data.candidates": plan.data.candidates, "data.workers": plan.data.workers,
        "optim.batch_size": plan.optim.batch_size, "run.device": plan.run.device, "run.precision": plan.run.precision,
        "run.threads": plan.run.threads,
    }  # fmt: skip
    source = plan.data.validation
    assert source is not None
    told |= {f"data.validation.{name}": value for name, value in json.loads(source.model_dump_json()).items()}
    changes = [f"{name}={'' if value is None else json.dumps(value, default=str)}" for name, value in told.items()]
    return evaluation.of_checkpoint(start.folder, "validation", changes, task="retrieval", out=out / "before")


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
