"""A recipe: everything that decides a run, in one TOML file, and where recipes are found.

What it stands for is made elsewhere: its task in ``assembly.py``, its rows and batches in ``feed.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, model_validator

from evilm import config
from evilm.config import Config
from evilm.data.config import DataConfig
from evilm.distributed import DeviceName, Precision
from evilm.errors import ConfigError
from evilm.model.presets import ModelConfig, preset
from evilm.tasks import TOKENIZERS, AnyTaskConfig
from evilm.training.optim import OptimConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class RunConfig(Config):
    """Where and how the work runs."""

    output_dir: Path = Path("runs/run")
    device: DeviceName = "auto"
    precision: Precision = "auto"
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 leaves torch's choice")
    compile: bool = Field(default=False, description="torch.compile the encoders and the decoder")
    grad_checkpointing: bool = Field(
        default=False, description="keep fewer activations and compute them again: less memory"
    )
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
    package = Path(__file__).resolve().parents[1]
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
