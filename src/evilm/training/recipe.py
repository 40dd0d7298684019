"""A recipe: all settings of a run in one TOML file; where recipes are found; errors for settings of old versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, model_validator

from evilm import config
from evilm.config import Config
from evilm.data.config import DataConfig
from evilm.distributed import DeviceName, Precision
from evilm.errors import CheckpointError, ConfigError, SelectionError
from evilm.model.presets import ModelConfig, preset
from evilm.tasks import TASKS, AnyTaskConfig
from evilm.training.optim import OptimConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Settings of earlier versions by their table, and their names today; None for those that no longer exist.
_EMBEDDING = {"words": "max_text_len", "focus": "focal_gamma", "embedding": "embed_dim"}
_SHAPE = {"width": "embed_dim", "heads": "num_heads", "hidden": "mlp_dim", "size": "image_size"}
RENAMED: dict[str, dict[str, str | None]] = {
    "optim": {
        "head_lr": "head_lr_scale", "backbone_lr": "backbone_lr_scale", "clip": "grad_clip", "ema": "ema_decay",
        "accumulate": "grad_accum_steps", "warmup": "warmup_ratio", "explodes": "loss_spike_factor", "power": None,
        "fused": None, "betas": None, "layer_decay": None,
    },
    "run": {"out": "output_dir", "recompute": "grad_checkpointing", "curves": None, "log_every": None},
    "data": {
        "fit": "resize_mode", "candidates": "cached_frames", "bad_share": "max_bad_ratio", "more": "extra_train",
    },
    "data.augment": {
        "scale": "crop_scale", "aspect": "crop_ratio", "rand_ops": "randaugment_ops", "views": "cached_crops",
        "rand_magnitude": "randaugment_magnitude", "flip": "hflip", "flip_sided": "hflip_sided",
    },
    "model": {
        **_SHAPE, "text_width": "text_embed_dim", "text_heads": "text_num_heads", "text_hidden": "text_mlp_dim",
        "text_positions": "max_text_len", "frames": "num_frames", "text_layers": "text_depth", "cls_mean": None,
        "pooled_skip": "embedding",
        "text_position_start": None, "space_start": "position_std", "time_start": "position_std",
    },
    "task": {
        **_EMBEDDING, "word_ratio": "mlm_ratio", "mvm": "mvm_weight", "mlm": "mlm_weight", "vtm": "vtm_weight",
        "contrastive": "contrastive_weight", "negatives": "num_negatives", "top": "rerank_top_k",
        "captions": "captions_per_video", "answers": "num_answers", "blind": "text_only", "cosine": None,
        "relation": None, "text": "text_weight", "remember": None, "mask_when": None, "at_least": "min_count",
        "most": "max_words", "frames": "num_frames", "targets": None, "reconstruction_weight": None,
        "cosine_weight": None, "relation_weight": None, "cache_encodings": None, "lexical": None,
    },
    "task.tokenizer": {
        **_SHAPE, "codes": "codebook_size", "code_width": "code_dim", "restart_below": "dead_code_threshold",
        "decay": "ema_decay",
    },
}  # fmt: skip


class RunConfig(Config):
    """Settings of where and how a run works."""

    output_dir: Path = Field(default=Path("runs/run"), description="folder of the run")
    device: DeviceName = Field(default="auto", description="auto takes CUDA, then Apple's GPU, then the CPU")
    precision: Precision = Field(default="auto", description="number format; auto takes bf16 on hardware that has it")
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 leaves torch's choice")
    compile: bool = Field(default=False, description="torch.compile the encoders and the fusion decoder")
    grad_checkpointing: bool = Field(default=False, description="recompute activations: less memory, more time")
    checkpoint_minutes: float = Field(default=5.0, gt=0, description="minutes between checkpoints")
    validate_every: float = Field(
        default=0, ge=0, description="epochs between validations; 0 validates at the end only"
    )
    tensorboard: bool = Field(default=False, description="write TensorBoard files as well")


class Recipe(Config):
    """All settings of a run."""

    task: AnyTaskConfig
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    model: ModelConfig | None = Field(default=None, description="model.preset with changes; none takes that of `start`")
    start: Path | None = Field(default=None, description="checkpoint whose weights the run starts from")
    vocabulary: Path | None = Field(default=None, description="none takes that of `start`, or the bundled one")
    seed: int = Field(default=0, ge=0, description="random seed of everything that is drawn")

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, table: Any) -> Any:
        """Replace ``model.preset`` by the preset's settings, which the other keys override."""
        recipe = cast("Mapping[str, Any]", table)
        if not isinstance(table, dict) or not isinstance(recipe.get("model"), dict) or "preset" not in recipe["model"]:
            return recipe
        changes = dict(recipe["model"])
        shape = preset(str(changes.pop("preset")))
        return {**recipe, "model": shape.model_dump() | changes}

    @model_validator(mode="after")
    def _has_model(self) -> Recipe:
        if self.model is None and self.start is None and not TASKS[self.task.name].is_tokenizer:
            raise ValueError("name a model (model.preset) or a checkpoint to start from (start)")
        return self


def find(name: str | Path) -> Path:
    """The recipe file of a path, or of the bare name of a bundled recipe.

    Raises:
        ConfigError: there is none; lists the bundled recipes.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = {file.stem: file for folder in reversed(bundled()) for file in folder.glob("*.toml")}
    if str(name) in known:
        return known[str(name)]
    what = "is a folder, not a recipe" if path.is_dir() else "no such recipe"
    raise ConfigError(f"{name}: {what}; give a TOML file or one of {', '.join(sorted(known)) or '(none installed)'}")


def bundled() -> list[Path]:
    """The folders of bundled recipes: beside ``src`` in a checkout, else inside the package."""
    package = Path(__file__).resolve().parents[1]
    beside = package.parents[1] / "recipes" if package.parent.name == "src" else None
    return [folder for folder in (beside, package / "recipes") if folder is not None and folder.is_dir()]


def load(path: Path, assignments: Iterable[str] = ()) -> Recipe:
    """A recipe file with ``a.b=c`` overrides.

    Raises:
        ConfigError: names each unknown, renamed or ill-typed key.
    """
    return check(config.override(config.read(path), assignments), str(path))


def check(table: Mapping[str, Any], origin: str) -> Recipe:
    """A table of settings as a recipe.

    Args:
        table: the settings.
        origin: where they were read from, for messages.

    Raises:
        ConfigError: names each unknown, renamed or ill-typed key.
    """
    return config.check(Recipe, table, origin, RENAMED)


def check_selection(data: DataConfig, *, select_on_test: bool = False) -> None:
    """Refuse a validation split that is a test split: validation selects thresholds and the reported checkpoint.

    Args:
        data: of the recipe.
        select_on_test: accept it; evaluations of the run then say so.

    Raises:
        SelectionError: ``data.validation`` is called test, or has the rows of ``data.test``.
    """
    source = data.validation
    if source is None or select_on_test or not selects_on_test(data):
        return
    why = f"split = {source.split!r}" if source.is_test else "the rows of data.test"
    raise SelectionError(
        f"data.validation has {why}: what is selected on the test split is too good on it; name a split of its own, "
        "or leave data.validation out, or add --select-on-test, which evaluations of the run will then print"
    )


def selects_on_test(data: DataConfig) -> bool:
    """Whether ``data.validation`` is a split called test, or has the rows of ``data.test``."""
    return data.validation is not None and (data.validation.is_test or data.validation == data.test)


def of_checkpoint(folder: Path, metadata: Mapping[str, Any]) -> Recipe:
    """The recipe that a checkpoint was trained by.

    Args:
        folder: the checkpoint, for messages.
        metadata: its ``config.json``.

    Raises:
        CheckpointError: it was written by another version, or holds no recipe.
    """
    place = folder / "config.json"
    if not isinstance(metadata.get("recipe"), dict) or not isinstance(metadata.get("facts"), dict):
        raise CheckpointError(f"{place}: holds no recipe, so this is no checkpoint of a run of evilm")
    try:
        return check(metadata["recipe"], "its recipe")
    except ConfigError as error:
        version = metadata.get("versions", {}).get("evilm", "an unknown version")
        raise CheckpointError(
            f"{place}: was written by evilm {version} and cannot be read by this version: {error}; use evilm "
            f"{version}, or train again"
        ) from None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Changes since a run was started that may change its result, a line each.

    Args:
        before, now: the run's metadata at its start and today.
    """
    old, new = _leaves(before.get("recipe", {})), _leaves(now.get("recipe", {}))
    lines = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith("run.")
    ]
    if "data" in before and "data" in now and before["data"] != now["data"]:
        lines.append(f"the training rows were {before['data']} and are {now['data']}: their order differs")
    for name, version in before.get("versions", {}).items():
        if now.get("versions", {}).get(name) != version:
            lines.append(f"{name} was {version} and is {now.get('versions', {}).get(name)}: the last bits may differ")
    return lines


def _leaves(table: Any, prefix: str = "") -> dict[str, Any]:
    """A nested table as dotted names and values."""
    if not isinstance(table, dict):
        return {prefix: table}
    found: dict[str, Any] = {}
    for name, value in cast("dict[str, Any]", table).items():
        found |= _leaves(value, f"{prefix}.{name}" if prefix else name)
    return found
