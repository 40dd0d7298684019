"""A recipe: everything that decides a run, in one TOML file, and the objects it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import Field, model_validator

from evilm import checkpoint, config, distributed, teacher
from evilm.config import Config
from evilm.data import readers
from evilm.data.features import FeatureStore
from evilm.data.frame_store import FrameStore
from evilm.data.labels import LabelStore
from evilm.data.loader import Loader
from evilm.data.packed import packed_for
from evilm.data.pixels import FilePixels, StoredPixels
from evilm.data.sources import DataConfig, SourceConfig, shards
from evilm.data.table import collect
from evilm.data.unreadable import check_bad
from evilm.data.vocabulary import Vocabulary
from evilm.distributed import DeviceName, Precision
from evilm.errors import CheckpointError, ConfigError
from evilm.model.presets import ModelConfig, build, preset
from evilm.model.text_weights import load_published
from evilm.model.tokenizer import FrameEncoder
from evilm.optim import OptimConfig
from evilm.progress import Meter
from evilm.tasks import FINETUNE, TOKENIZERS, AnyTaskConfig, VideoTextTask
from evilm.tasks.distill import Distill, DistillConfig
from evilm.tasks.linear_probe import LinearProbeConfig
from evilm.tasks.pretrain import Pretrain, PretrainConfig
from evilm.tasks.reconstruction import ReconstructionConfig, ReconstructionTask
from evilm.tasks.retrieval import Retrieval
from evilm.tasks.tokenizer import TokenizerTask, TokenizerTaskConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from evilm.data.pixels import Store
    from evilm.model.evilm import EViLM
    from evilm.model.tokenizer import VideoTokenizer
    from evilm.tasks import Task
    from evilm.types import Example


class RunConfig(Config):
    """Where and how the work runs."""

    out: Path = Path("runs/run")
    device: DeviceName = "auto"
    precision: Precision = "auto"
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 leaves torch's choice")
    compile: bool = Field(default=False, description="torch.compile the encoders and the decoder")
    recompute: bool = Field(default=False, description="keep fewer activations and compute them again: less memory")
    checkpoint_minutes: float = Field(default=5.0, gt=0)
    log_every: int = Field(default=10, gt=0, description="steps between lines of metrics.jsonl")
    validate_every: float = Field(
        default=0, ge=0, description="epochs between evaluations on data.validation; 0 at the end alone"
    )
    curves: bool = Field(default=True, description="draw curves.png at the end")
    tensorboard: bool = Field(default=False, description="write for TensorBoard too")


class Recipe(Config):
    """One run."""

    task: AnyTaskConfig
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    model: ModelConfig | None = Field(default=None, description="a preset with changes; none takes that of `start`")
    start: Path | None = Field(default=None, description="checkpoint whose weights the run starts from")
    vocabulary: Path | None = Field(default=None, description="none takes that of `start`, or the one that ships")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, table: Any) -> Any:
        """``model.preset`` stands for the preset's settings, which the other keys then change."""
        recipe = cast("Mapping[str, Any]", table)
        if not isinstance(table, dict) or not isinstance(recipe.get("model"), dict) or "preset" not in recipe["model"]:
            return recipe
        changes = dict(recipe["model"])
        shape = preset(str(changes.pop("preset")))
        return {**recipe, "model": shape.model_dump() | changes}

    @model_validator(mode="after")
    def _has_model(self) -> Recipe:
        if self.model is None and self.start is None and self.task.name not in TOKENIZERS:
            raise ValueError("name a model (model.preset) or a checkpoint to start from (start)")
        return self


def shelves() -> list[Path]:
    """The folders of recipes that come with the project: beside ``src`` in a checkout, else inside the package."""
    package = Path(__file__).resolve().parent
    beside = package.parents[1] / "recipes" if package.parent.name == "src" else None
    return [folder for folder in (beside, package / "recipes") if folder is not None and folder.is_dir()]


def find(name: str | Path) -> Path:
    """The recipe file that ``name`` means: a path, or the bare name of a recipe that comes with the project.

    Raises:
        ConfigError: there is none; lists those that come with the project.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = {file.stem: file for shelf in reversed(shelves()) for file in shelf.glob("*.toml")}
    if str(name) in known:
        return known[str(name)]
    what = "is a folder, not a recipe" if path.is_dir() else "no such recipe"
    raise ConfigError(f"{name}: {what}; give a TOML file or one of {', '.join(sorted(known)) or '(none installed)'}")


def load(path: Path, assignments: Iterable[str] = ()) -> Recipe:
    """A recipe file with ``a.b=c`` overrides.

    Raises:
        ConfigError: naming each unknown or ill-typed key.
    """
    return config.load(Recipe, path, assignments)


@dataclass(frozen=True)
class Start:
    """What a run started from, by parameter.

    Attributes:
        loaded: names that came from the checkpoint.
        fresh: names that start at random.
        left: names of the checkpoint that found no place.
        published: what came from published weights of the parts, a line each.
    """

    loaded: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    published: tuple[str, ...] = ()

    def __str__(self) -> str:
        def parts(names: Sequence[str]) -> str:
            tops = sorted({".".join(name.split(".")[: 2 if name.startswith("model.") else 1]) for name in names})
            return ", ".join(tops) or "nothing"

        return f"loaded: {parts(self.loaded)}; at random: {parts(self.fresh)}; left out: {parts(self.left)}"


def examples(source: SourceConfig) -> Sequence[Example]:
    """The rows of one split, thinned evenly to ``limit``; a list, or a memory-mapped table where they are many."""
    rows = collect(readers.stream(source.reader, source.annotations, source.videos, source.split))
    if source.limit is None or source.limit >= len(rows):
        return rows
    return [rows[i * len(rows) // source.limit] for i in range(source.limit)]


def new_task(recipe: Recipe, rows: Sequence[Example]) -> tuple[Task, dict[str, Any], Start]:
    """The task of a recipe, its facts, and what it started from."""
    torch.manual_seed(recipe.seed)
    task_config = recipe.task
    if isinstance(task_config, TokenizerTaskConfig | ReconstructionConfig):
        trains = TOKENIZERS[task_config.name]
        facts = trains.learn_facts(task_config, rows)  # pyright: ignore[reportArgumentType], each with its own config
        return trains(task_config, facts), facts, Start()  # pyright: ignore[reportArgumentType]
    origin = None if recipe.start is None else checkpoint.find(recipe.start)
    about = None if origin is None else checkpoint.read_json(origin / "config.json")
    if about is not None and about.get("model") is None:
        raise CheckpointError(f"{origin}: is a {about.get('task')} checkpoint, which holds no E-ViLM to start from")
    shape = recipe.model or config.check(ModelConfig, (about or {})["model"], str(origin))
    vocabulary = _vocabulary(recipe, origin)
    model = build(shape if origin is None else shape.model_copy(update={"backbone_weights": "none"}), vocabulary.size)
    published = tuple(load_published(model, vocabulary.pieces, shape)) if origin is None else ()
    if isinstance(task_config, PretrainConfig):
        tokenizer, facts = _tokenizer(task_config)
        if tokenizer is not None:
            tokenizer.check_grid(model.video_encoder.grid(shape.frames, shape.size, shape.size))
        if task_config.backbone == "tokenizer":
            _share_backbone(model, tokenizer)
        task: Task = Pretrain(model, vocabulary, task_config, facts, tokenizer)
    elif isinstance(task_config, DistillConfig):
        whose = teacher.named(task_config.teacher, distributed.device(recipe.run.device), restore)
        facts = Distill.facts(task_config, rows, whose)
        task = Distill(model, vocabulary, task_config, facts, whose)
    else:
        kind = FINETUNE[task_config.name]
        facts = kind.learn_facts(task_config, rows)  # pyright: ignore[reportArgumentType], each with its own config
        task = kind(model, vocabulary, task_config, facts)  # pyright: ignore[reportArgumentType]
    start = Start(published=published) if origin is None else _load_start(task, origin)
    if isinstance(task, Retrieval):
        task.check_start(start.loaded)
    return task, facts, start


def _vocabulary(recipe: Recipe, origin: Path | None) -> Vocabulary:
    """The recipe's words, which must be those of the checkpoint it starts from."""
    own = None if recipe.vocabulary is None else Vocabulary.load(recipe.vocabulary)
    if origin is None:
        return own or Vocabulary.default()
    theirs = Vocabulary.load(origin / "vocabulary.json")
    if own is not None and own.fingerprint != theirs.fingerprint:
        raise CheckpointError(
            f"{origin}: was trained with another vocabulary than {recipe.vocabulary}; leave `vocabulary` out"
        )
    return theirs


def _tokenizer(task: PretrainConfig) -> tuple[VideoTokenizer | None, dict[str, Any]]:
    """The trained video tokenizer that MVM takes its labels from."""
    if not task.mvm or task.tokenizer is None:
        return None, {}
    restored, about = restore(Path(task.tokenizer))
    if not isinstance(restored, TokenizerTask | ReconstructionTask):
        raise CheckpointError(f"{task.tokenizer}: is a {about['task']} checkpoint, not a video tokenizer's")
    tokenizer = restored.tokenizer.eval()
    tokenizer.check_alive()
    for parameter in tokenizer.parameters():
        parameter.requires_grad_(False)
    return tokenizer, {"codes": tokenizer.config.codes, "tokenizer": tokenizer.fingerprint()}


def _share_backbone(model: EViLM, tokenizer: VideoTokenizer | None) -> None:
    """Start the model's backbone where the tokenizer's ended.

    Raises:
        ConfigError: there is no tokenizer, or its encoder is another backbone.
    """
    own, theirs = model.config, None if tokenizer is None else tokenizer.config
    if tokenizer is None or theirs is None or (theirs.encoder, theirs.stride) != (own.backbone, own.stride):
        said = "there is no tokenizer" if theirs is None else f"the tokenizer's is {theirs.encoder} at {theirs.stride}"
        raise ConfigError(
            f"task.backbone = 'tokenizer' needs the model's {own.backbone} at stride {own.stride} and {said}: "
            "set task.backbone=own"
        )
    assert isinstance(tokenizer.encoder, FrameEncoder)
    try:
        model.video_encoder.backbone.load_state_dict(tokenizer.encoder.backbone.state_dict())
    except RuntimeError:
        raise ConfigError(
            f"task.backbone = 'tokenizer': model.backbone_options {own.backbone_options} make another {own.backbone} "
            f"than the tokenizer's {theirs.encoder_options}: set them alike, or task.backbone=own"
        ) from None


def _tokenizer_at_hand(task: PretrainConfig, facts: dict[str, Any]) -> VideoTokenizer | None:
    """The tokenizer of a pre-trained checkpoint, where its run is still there and still the same."""
    if not task.mvm or task.tokenizer is None or not Path(task.tokenizer).exists():
        return None
    tokenizer, now = _tokenizer(task)
    if facts.get("tokenizer") != now["tokenizer"]:
        raise CheckpointError(f"{task.tokenizer}: is not the video tokenizer that this model was pre-trained with")
    return tokenizer


def _load_start(task: Task, origin: Path) -> Start:
    """Copy every tensor that has a place in ``task``; positions of another size are an error, heads may differ."""
    theirs, own = checkpoint.read_tensors(origin / "model.safetensors"), task.state_dict()
    fits = {name: tensor for name, tensor in theirs.items() if name in own and own[name].shape == tensor.shape}
    clash = [name for name in theirs if name.startswith("model.") and name in own and name not in fits]
    lacking = [name for name in own if name.startswith("model.") and name not in fits]
    if clash or lacking:
        worst = (clash or lacking)[0]
        raise CheckpointError(
            f"{origin}: is not of this model's shape ({worst}): leave the recipe's [model] out to take the checkpoint's"
        )
    task.load_state_dict({**own, **fits})
    return Start(tuple(fits), tuple(n for n in own if n not in fits), tuple(n for n in theirs if n not in fits))


def restore(path: Path, task: AnyTaskConfig | None = None) -> tuple[Task, dict[str, Any]]:
    """The task that a checkpoint holds, in evaluation mode, and its ``config.json``.

    Args:
        path: a checkpoint, or a run (its newest valid checkpoint).
        task: evaluate as this task instead: heads are taken from the checkpoint (zero-shot).

    Raises:
        CheckpointError: missing, damaged, of another task, or without a head that is needed.
    """
    folder = checkpoint.find(path)
    about = checkpoint.read_json(folder / "config.json")
    try:
        recipe = config.check(Recipe, about["recipe"], f"{folder / 'config.json'}: recipe")
        facts = about["facts"]
    except (KeyError, ConfigError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: not written by this version: {error}") from None
    if isinstance(recipe.task, TokenizerTaskConfig | ReconstructionConfig):
        trained = TOKENIZERS[recipe.task.name]
        restored: Task = trained(recipe.task.at_random(), facts)  # pyright: ignore[reportArgumentType]
    else:
        table: Any = about.get("model")
        shape = config.check(ModelConfig, table, f"{folder / 'config.json'}: model").model_copy(
            update={"backbone_weights": "none"}
        )
        vocabulary = Vocabulary.load(folder / "vocabulary.json")
        model = build(shape, vocabulary.size)
        wanted = task or recipe.task
        if isinstance(wanted, PretrainConfig):
            restored = Pretrain(model, vocabulary, wanted, facts, _tokenizer_at_hand(wanted, facts))
        elif isinstance(wanted, TokenizerTaskConfig | ReconstructionConfig):
            raise CheckpointError(f"{folder}: holds no video tokenizer")
        elif isinstance(wanted, DistillConfig):
            restored = Distill(model, vocabulary, wanted, facts, teacher.at_hand(wanted.teacher, facts, restore))
        else:
            try:
                restored = FINETUNE[wanted.name](model, vocabulary, wanted, facts)  # pyright: ignore[reportArgumentType]
            except KeyError as error:
                raise CheckpointError(
                    f"{folder}: a {about['task']} checkpoint knows no {error.args[0]}, which {wanted.name} needs: "
                    "fine-tune it for that"
                ) from None
    tensors = checkpoint.read_tensors(folder / "model.safetensors")
    lacking = [name for name in restored.state_dict() if name not in tensors]
    if lacking:
        raise CheckpointError(
            f"{folder}: a {about['task']} checkpoint has no trained {lacking[0].split('.')[0]!r} head, which "
            f"{(task or recipe.task).name} needs: fine-tune it, or pre-train with the objective that trains it"
        )
    try:
        restored.load_state_dict({name: tensors[name] for name in restored.state_dict()})
    except RuntimeError as error:
        last = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{folder}: tensors do not fit the model: {last}") from None
    return restored.eval(), about


def frames_of(recipe: Recipe, task: Task) -> tuple[int, int]:
    """(T, size) of the clips that a task is fed."""
    if isinstance(recipe.task, TokenizerTaskConfig | ReconstructionConfig):
        return recipe.task.frames, recipe.task.tokenizer.size
    assert isinstance(task, VideoTextTask)
    return task.model.config.frames, task.model.config.size


def loader(recipe: Recipe, task: Task, rows: Sequence[Example], *, train: bool, label: bool = False) -> Loader:
    """Batches of some rows, from the cache where the recipe names one.

    Args:
        recipe: the settings.
        task: whose clips they are.
        rows: of one split.
        train: draw at random, see ``Loader``.
        label: with cached labels and features, where the recipe asks for them.
    """
    data = recipe.data
    if isinstance(task, Distill):
        teacher.look(task, rows, data)
    count, size = frames_of(recipe, task)
    pixels: FilePixels | StoredPixels = FilePixels(size, data.fit)
    store = _store(recipe, rows, size, train=train)
    if store is not None:
        pixels = StoredPixels(store)
    return Loader(
        examples=rows,
        pixels=pixels,
        frames=count,
        size=size,
        batch_size=recipe.optim.batch_size,
        seed=recipe.seed,
        train=train,
        augment=data.augment,
        labels=_cached_labels(recipe, task, store) if label else None,
        features=_cached_features(recipe, task, store) if label else None,
        bad_share=data.bad_share,
        shards=shards(data, rows, store) if train and rows else None,
        fixed=isinstance(recipe.task, LinearProbeConfig) and recipe.task.remember,
        workers=data.workers,
        prefetch=data.prefetch,
        timeout=data.timeout,
        pin=distributed.device(recipe.run.device).type == "cuda",
        rank=distributed.rank(),
        ranks=distributed.ranks(),
    )


def _store(recipe: Recipe, rows: Sequence[Example], size: int, *, train: bool) -> Store | None:
    """The frames of some rows that were decoded before, or are now where the recipe names a cache."""
    data = recipe.data
    if data.packed is not None and rows:
        pack = packed_for(data.packed, rows[0].clip, size, data.fit)
        if train:
            problems = [f"{clip}: {status}: {reason}" for clip, (status, reason) in pack.problems.items()]
            check_bad(problems, len(pack), data.bad_share)
        return pack
    if data.cache is None:
        return None
    store = FrameStore(data.cache, (row.clip for row in rows), size=size, candidates=data.candidates, fit=data.fit)
    with Meter("decoding", len(store), "clips") as meter:
        problems = store.fill(data.workers, lambda done, _: meter.update(done), data.timeout)
    for problem in problems[:5]:
        meter.console.print(f"unreadable: {problem}", highlight=False, markup=False, soft_wrap=True)
    if train:
        check_bad(problems, len(store), data.bad_share)
    return store


def _cached_labels(recipe: Recipe, task: Task, store: Store | None) -> LabelStore | None:
    """Token labels of a store, made now where they lack."""
    if not isinstance(recipe.task, PretrainConfig) or not recipe.task.mvm or recipe.task.labels == "online":
        return None
    if store is None:
        raise ConfigError("task.labels = 'cached' needs cached frames: set data.cache to a folder, or data.packed")
    assert isinstance(task, Pretrain)
    tokenizer = task.tokenizer
    if tokenizer is None:
        raise ConfigError("task.labels = 'cached' needs task.tokenizer, the checkpoint of a video tokenizer")
    if tokenizer.config.encoder == "swin3d_t":
        raise ConfigError("task.labels: Video Swin labels depend on the frames beside them; take task.labels=online")
    grid = tokenizer.grid(1, store.size, store.size)
    labels = LabelStore(store, tokenizer.fingerprint(), grid, recipe.data.augment, recipe.seed)
    with Meter("labelling", len(store), "clips") as meter:
        labels.fill(tokenizer.labels, progress=lambda done, _: meter.update(done))
    return labels


def _cached_features(recipe: Recipe, task: Task, store: Store | None) -> FeatureStore | None:
    """What the frozen backbone sees in a store, computed now where it lacks."""
    if not recipe.data.features:
        return None
    if isinstance(task, Pretrain) or not isinstance(task, VideoTextTask):
        raise ConfigError(f"data.features cannot serve {task.name}, which encodes changed pixels: set it to false")
    if recipe.optim.backbone_lr and not isinstance(recipe.task, LinearProbeConfig):
        raise ConfigError(
            f"data.features keeps what a frozen backbone sees, and optim.backbone_lr = {recipe.optim.backbone_lr:g} "
            "trains it: set optim.backbone_lr=0, or data.features=false"
        )
    if store is None:
        raise ConfigError("data.features needs cached frames: set data.cache to a folder, or data.packed")
    device = distributed.device(recipe.run.device)
    bf16 = distributed.computes_in_bf16(recipe.run.precision, device)
    encoder = task.model.video_encoder.to(device).eval()
    grid = encoder.grid(1, store.size, store.size)
    name = encoder.fingerprint("bf16" if bf16 else "fp32")
    kept = FeatureStore(store, name, grid, encoder.channels, recipe.data.augment, recipe.seed)

    def see(frames: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return encoder.features(encoder.normalise(frames.to(device))).half()

    with Meter("encoding", len(store), "clips") as meter:
        kept.fill(see, max(1, 512 // store.candidates), lambda done, _: meter.update(done))
    return kept
