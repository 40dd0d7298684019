"""``evilm adapt``: fine-tune a model on a user's own clips, and evaluate it before and after on clips held out.

The result is a run like any other: the trainer carries out a recipe.

    RUN/adapt.json        the request, the clips, the recipe, the metrics before and after
    RUN/train.jsonl       the clips to train on         RUN/held-out.jsonl    the clips held out
    RUN/unreadable.jsonl  clips that cannot be read     RUN/start/            the model with new words added,
                                                        RUN/model/            and read back from an export
"""

from __future__ import annotations

import datetime as dt
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilm import config, files
from evilm.data.vocabulary import Vocabulary
from evilm.errors import CheckpointError, ConfigError, DataError, OutputError
from evilm.model.heads import embedding_width
from evilm.model.presets import ModelConfig
from evilm.tasks import TASKS
from evilm.training import checkpoint, evaluate, trainer
from evilm.training.adapt_data import cache_frames, check_videos, count_words, extend, read_clips, split
from evilm.training.recipe import Recipe, of_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from evilm.types import Example

STATE = "adapt.json"
MEANINGFUL = 20  # held-out clips; metrics on fewer are chance
_MAX_CACHE = 4e9  # bytes of decoded frames, and of their features, on the disk
_CACHED_FRAMES = 8  # of each clip
_LEARNING_RATE = 5e-4
_MIN_STEPS = 20  # that must fit into the time limit where frames are encoded in every step


@dataclass(frozen=True)
class Request:
    """The arguments of ``adapt``. They are stored in the run, and a resumed run must have the same.

    Attributes:
        source, videos: see ``adapt_data.read_clips``.
        model: folder of the checkpoint, run or export to start from.
        seed: of the held-out part and of training.
        val_ratio: fraction of the videos to hold out.
        extend_vocab: add frequent words that the vocabulary lacks.
        minutes: time limit of the whole command.
        changes: ``a.b=c`` changes to the recipe.
    """

    source: str
    videos: str | None
    model: str
    seed: int = 0
    val_ratio: float = 0.2
    extend_vocab: bool = True
    minutes: float = 10.0
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Start:
    """A checkpoint to train on: its folder, recipe and model, and settings of the task that are kept."""

    folder: Path
    recipe: Recipe
    shape: ModelConfig
    max_text_len: int
    embed_dim: int
    focal_gamma: float


def adapt(
    request: Request, out: Path, restore: Callable[[Path, Path], Path], *, resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Any:  # fmt: skip
    """Fine-tune a model on a user's clips within the time limit, or continue.

    Args:
        request: what to do.
        out: the run's folder: new or empty, or with ``resume`` one that the same request began.
        restore: reads an export back as a checkpoint, see ``export.restore``.
        resume: continue an interrupted run.
        say: called with each line of the report.

    Returns:
        the content of ``adapt.json``: among others ``before``, ``after`` and ``chance`` by metric, in percent.

    Raises:
        CheckpointError: the model has no embeddings, or is an export that cannot be read back.
        DataError: no captions, or too few clips to hold some out.
        OutputError: ``out`` holds something else, or a run and ``resume`` was not set.
        trainer.Interrupted: after saving, on Ctrl-C or SIGTERM.
    """
    state = _read_state(request, out) if resume else None
    if state is None:
        if out.is_dir() and checkpoint.steps(out):
            raise OutputError(f"{out}: holds a run already; continue it with --resume, or name another folder in --out")
        files.check_output_dir(out, trainer.KIND)
        state = _prepare(request, out, restore, say)
    if "after" not in state:
        trainer.train(config.check(Recipe, state["recipe"], str(out / STATE)), resume=resume)
        last = checkpoint.find(out)
        state["after"] = checkpoint.read_json(last / "config.json")["validation"]
        state["seconds"] = round(checkpoint.read_json(last / "training" / "state.json")["seconds"], 1)
        _write(out / STATE, json.dumps(state, indent=2, default=str) + "\n")
    return state


def _read_state(request: Request, out: Path) -> dict[str, Any] | None:
    """The state of an interrupted run; None if it stopped before training.

    Raises:
        ConfigError: the run was begun with other arguments.
    """
    if not (out / STATE).is_file():
        return None
    state = checkpoint.read_json(out / STATE)
    now = json.loads(json.dumps(asdict(request)))
    other = [f"{key} {value!r}" for key, value in state["request"].items() if now.get(key) != value]
    if other:
        raise ConfigError(f"{out}: was begun with {', '.join(other)}: use the same, or name another folder in --out")
    return state


def _prepare(
    request: Request, out: Path, restore: Callable[[Path, Path], Path], say: Callable[[str], None]
) -> dict[str, Any]:
    """Check the model and the clips, split them, evaluate the model, and store the state."""
    began = time.monotonic()
    model = Path(request.model)
    start = None if (model / "export.json").is_file() else open_start(model)
    clips = read_clips(Path(request.source), None if request.videos is None else Path(request.videos))
    if clips.uncaptioned:
        names = ", ".join(clips.uncaptioned[:3])
        say(f"{len(clips.uncaptioned)} videos are left out, because their names are no captions: {names}, ...")
    rows, unreadable = check_videos(clips.examples)
    _report_unreadable(unreadable, len(clips.examples), say)
    train, held = split(rows, request.val_ratio, request.seed)
    words = count_words(Vocabulary.load((model if start is None else start.folder) / "vocabulary.json"), train)
    say(f"{len(train)} clips to train on, {len(held)} held out; captions: {clips.origin}\n{words}")
    files.acquire_dir(out, trainer.KIND)
    if start is None:
        say(f"reading the weights of {model.name} back from its graphs")
        start = open_start(restore(model, out / "model"))
    new = words.new if request.extend_vocab else ()
    if new:
        extend(start.folder, new, out / "start")
        say(f"{len(new)} of these words are added to the vocabulary: {', '.join(new[:12])}")
    origin = out / "start" if new else start.folder
    recipe = recipe_for(request, start, clips.root, out, len(train), origin)
    (train, failed), (held, missed) = (
        cache_frames(part, recipe.data, start.shape.image_size) for part in (train, held)
    )
    if failed or missed:
        _report_unreadable(failed + missed, len(rows), say)
        if not train or not held:
            raise DataError(f"{len(train)} clips to train on and {len(held)} held out are left: repair the others")
        recipe = recipe_for(request, start, clips.root, out, len(train), origin)
        unreadable += failed + missed
    for name, part in (("train", train), ("held-out", held)):
        _write_lines(out / f"{name}.jsonl", map(_as_row, part))
    _write_lines(out / "unreadable.jsonl", unreadable)
    if len(held) < MEANINGFUL:
        say(f"only {len(held)} clips are held out: the metrics will mean nothing (at least {MEANINGFUL} are needed)")
    evaluating = time.monotonic()
    before = _evaluate(start, recipe, out)
    seconds, elapsed = time.monotonic() - evaluating, time.monotonic() - began
    frame, batch = seconds / (len(held) * start.shape.num_frames), recipe.optim.batch_size * start.shape.num_frames
    features = _uncached_frames(recipe, len(train)) * frame
    recipe, rest = _fit_time(recipe, request.minutes, elapsed, seconds, features, batch * frame)
    minutes = recipe.optim.max_minutes
    end = dt.datetime.now().astimezone() + dt.timedelta(minutes=minutes + rest)
    say(f"training takes at most {minutes:.1f} minutes; expected end: {end:%H:%M}")
    state = {
        "request": asdict(request),
        "clips": {"train": len(train), "held out": len(held), "unreadable": len(unreadable),
                  "uncaptioned": len(clips.uncaptioned), "captions": clips.origin},
        "words": words.as_json() | {"new": list(new)},
        "recipe": json.loads(recipe.model_dump_json()),
        "rule": before.summary.rule,
        "before": before.summary.metrics,
        "chance": before.summary.chance,
    }  # fmt: skip
    _write(out / STATE, json.dumps(state, indent=2, default=str) + "\n")
    return state


def _report_unreadable(unreadable: Sequence[dict[str, str]], clips: int, say: Callable[[str], None]) -> None:
    if unreadable:
        say(f"{len(unreadable)} of {clips} clips cannot be read and are left out:")
    for line in unreadable[:5]:
        say(f"  {line['path']}: {line['status']}: {line['reason']}")


def divide_time(limit: float, elapsed: float, evaluation: float, features: float) -> tuple[float, float]:
    """Minutes of training, at least a tenth of the limit, and minutes of the other work that is left.

    Args:
        limit: minutes of the whole command.
        elapsed: seconds since the command began.
        evaluation: seconds of an evaluation, which follows once more.
        features: seconds to compute the features of the training clips.
    """
    rest = 1.2 * evaluation + features + 5
    return max(limit - (elapsed + rest) / 60, limit / 10), rest / 60


def _fit_time(
    recipe: Recipe, limit: float, elapsed: float, evaluation: float, features: float, step: float
) -> tuple[Recipe, float]:
    """The recipe with its time limit, and minutes of the other work that is left.

    Features that take longer than the limit are not computed if many steps without them fit into it. ``step`` is the
    time in seconds to encode the frames of one step; for the other times see ``divide_time``.
    """
    minutes, rest = divide_time(limit, elapsed, evaluation, 0)
    if features <= 0.8 * 60 * minutes or minutes * 60 < _MIN_STEPS * step:
        minutes, rest = divide_time(limit, elapsed, evaluation, features)
    else:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"features": False})})
    return recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"max_minutes": minutes})}), rest


def _uncached_frames(recipe: Recipe, clips: int) -> int:
    """Frames of the training clips, in all views, whose features are computed before training."""
    crops = recipe.data.augment.crops or 0
    views = crops * (2 if recipe.data.augment.hflip else 1)
    return clips * recipe.data.cached_frames * views if recipe.data.features else 0


def open_start(path: Path) -> Start:
    """The checkpoint in a folder of a run or of a checkpoint.

    Raises:
        CheckpointError: no such folder, a video tokenizer, or a model without embeddings.
    """
    folder = checkpoint.find(path)
    table = checkpoint.read_json(folder / "config.json")
    task = table.get("task")
    if task in TASKS and TASKS[task].is_tokenizer:
        raise CheckpointError(f"{folder}: is a video tokenizer: name the run of a retrieval model")
    if "recipe" not in table or "model" not in table:
        raise CheckpointError(f"{folder / 'config.json'}: has no recipe, so this is not a checkpoint of evilm")
    embed_dim = embedding_width(checkpoint.read_tensors(folder / "model.safetensors"))
    if embed_dim is None:
        raise CheckpointError(
            f"{folder}: this {task} model has no embedding head to adapt: use a retrieval model, or one "
            "pre-trained with task.contrastive_weight > 0"
        )
    recipe = of_checkpoint(folder, table)
    return Start(
        folder=folder,
        recipe=recipe,
        shape=config.check(ModelConfig, table["model"], f"{folder / 'config.json'}: model"),
        max_text_len=int(getattr(recipe.task, "max_text_len", 30)),
        embed_dim=embed_dim,
        focal_gamma=float(getattr(recipe.task, "focal_gamma", 0.0)),
    )


def schedule(clips: int) -> tuple[int, float]:
    """Batch size and epochs: about a hundred steps for up to a thousand clips, six epochs for more."""
    return min(64, clips), min(40.0, max(6.0, 6_000 / clips))


def recipe_for(request: Request, start: Start, root: Path, out: Path, clips: int, origin: Path) -> Recipe:
    """The recipe of the run: retrieval with a frozen backbone, on the lists of clips in ``out``.

    Args:
        request: with changes to the recipe.
        start: the checkpoint.
        root: the folder that paths of videos are relative to.
        out: folder of the run.
        clips: number of clips to train on.
        origin: folder of the checkpoint with new words added.
    """
    batch_size, epochs = schedule(clips)
    source = {"reader": "captions", "videos": str(root.resolve())}
    pixels = clips * start.shape.image_size**2
    table: dict[str, Any] = {
        "task": {"name": "retrieval", "max_text_len": start.max_text_len, "embed_dim": start.embed_dim,
                 "focal_gamma": start.focal_gamma},
        "data": {
            "train": {**source, "annotations": str(out.resolve() / "train.jsonl")},
            "validation": {**source, "annotations": str(out.resolve() / "held-out.jsonl")},
            "cache": str(out / "cache") if pixels * _CACHED_FRAMES * 3 <= _MAX_CACHE else None,
            "cached_frames": _CACHED_FRAMES, "resize_mode": start.recipe.data.resize_mode, "max_bad_ratio": 0.2,
        },
        "optim": {"batch_size": batch_size, "epochs": epochs, "lr": _LEARNING_RATE, "backbone_lr_scale": 0.0,
                  # Maps of pooled features are enough, and answers need both encoders as they are.
                  "text_lr_scale": 0.0 if start.shape.embedding == "pooled" else 1.0},
        "run": {"output_dir": str(out), "checkpoint_minutes": 1.0},
        "start": str(origin), "seed": request.seed,
    }  # fmt: skip
    recipe = config.check(Recipe, config.override(table, request.changes), "evilm adapt")
    if "features" not in recipe.data.model_fields_set and _can_cache_features(recipe, pixels):
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"features": True})})
    return recipe


def _can_cache_features(recipe: Recipe, pixels: int) -> bool:
    """Whether the backbone is frozen, frames are cached, the number of crops is limited, and the features fit the disk.

    Features of stride 16 take about as much space as the frame: 384 channels of two bytes instead of 256 x 3 bytes.
    """
    crops = recipe.data.augment.crops
    if recipe.data.cache is None or recipe.data.packed is not None or recipe.optim.backbone_lr_scale or crops is None:
        return False
    views = crops * (2 if recipe.data.augment.hflip else 1)
    return pixels * recipe.data.cached_frames * 3 * (1 + views) <= _MAX_CACHE


def _evaluate(start: Start, recipe: Recipe, out: Path) -> evaluate.Evaluation:
    """Evaluate the unchanged model on the held-out clips, in the same way as the adapted one."""
    settings = {
        "task.protocol": "dual-encoder", "data.packed": None, "data.cache": recipe.data.cache,
        "data.cached_frames": recipe.data.cached_frames, "data.workers": recipe.data.workers,
        "optim.batch_size": recipe.optim.batch_size, "run.device": recipe.run.device,
        "run.precision": recipe.run.precision, "run.threads": recipe.run.threads,
    }  # fmt: skip
    source = recipe.data.validation
    assert source is not None
    settings |= {f"data.validation.{name}": value for name, value in json.loads(source.model_dump_json()).items()}
    changes = [f"{name}={'' if value is None else json.dumps(value, default=str)}" for name, value in settings.items()]
    return evaluate.of_checkpoint(start.folder, "validation", changes, task="retrieval", out=out / "before")


def _as_row(example: Example) -> dict[str, Any]:
    """A clip as a row of the ``captions`` reader."""
    part = {"start": example.clip.start} if example.clip.start else {}
    part |= {} if example.clip.end is None else {"end": example.clip.end}
    return {"path": example.video, "captions": list(example.captions), **part}


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write(path: Path, text: str) -> None:
    try:
        files.write_atomic(path, text)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}; free space or name another folder") from None
