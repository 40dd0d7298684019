"""Open a model by name: a folder, a bundled model, a model on the hub, or a dual encoder of another library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evilm import files, hub
from evilm.encoders import names as encoder_names
from evilm.errors import CheckpointError, DependencyError
from evilm.training import checkpoint

if TYPE_CHECKING:
    from evilm.inference.runtime import Runtime

    Device = Literal["auto", "cpu", "cuda"]

EXPORT_FILE = "export.json"  # distinguishes an exported folder from a checkpoint
_SHIPPED = Path(__file__).parent / "shipped"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_HUB_FILES = ("*.json", "*.onnx", "*.safetensors", "README.md", files.MARK)

TINY = "world-tiny"  # the model of `evilm quickstart`
PHOTO = "evilm-photo"
# Bundled models: what each was trained on and what it recognises; the first is the default.
BUNDLED = {
    PHOTO: "trained on photographs and videos of everyday scenes, for research use: people, animals, sports, food",
    TINY: "trained on synthetic clips of moving shapes; recognises those shapes, colours and movements only",
}
DEFAULT_MODEL = PHOTO


def open_runtime(model: str | Path, *, device: Device = "auto", threads: int | None = None) -> Runtime:
    """Open a trained model; see ``evilm.load``.

    Raises:
        CheckpointError: no such model, or it is damaged or refused.
        DependencyError: the model needs a library that is not installed.
    """
    if encoder_names.is_name(str(model)) and not _exists(Path(model).expanduser()):
        return _open_dual_encoder(str(model), device)
    path = model_folder(model)
    if (path / EXPORT_FILE).is_file():
        from evilm.inference.runtime_onnx import OnnxRuntime

        return OnnxRuntime(path, threads)
    try:
        from evilm.inference.runtime_torch import TorchRuntime
    except ModuleNotFoundError as error:
        checkpoint.find(path)
        raise DependencyError(
            f"{path}: is a checkpoint, which needs {error.name}: pip install 'evilm[train]', or load an export of it"
        ) from None
    return TorchRuntime(path, device)


def model_folder(model: str | Path) -> Path:
    """The folder of a model: one on this machine, a bundled one, or the local copy of one on the hub.

    Raises:
        CheckpointError: no such model.
        DependencyError: the model is on the hub, and huggingface_hub is missing.
    """
    path = bundled_folder(model) or Path(model).expanduser()
    if _exists(path):
        return path
    if is_hub_name(str(model)):
        return hub.fetch(str(model), _HUB_FILES)
    raise CheckpointError(
        f"{model}: no such model; name the folder of an export, a run or a checkpoint, owner/name on the hub, or a "
        f"bundled model: {bundled_list()}"
    )


def is_hub_name(text: str) -> bool:
    """Whether ``text`` may be ``owner/name`` on the hub."""
    return _HUB_NAME.fullmatch(text) is not None


def bundled_folder(model: str | Path) -> Path | None:
    """The folder of a bundled model; None for other names, and where the current folder holds a folder of that name."""
    return _SHIPPED / str(model) if str(model) in BUNDLED and not _exists(Path(model)) else None


def bundled_name(folder: Path | None) -> str | None:
    """The name of the bundled model in ``folder``; None if it holds another model."""
    return folder.name if folder is not None and folder.parent == _SHIPPED and folder.name in BUNDLED else None


def bundled_list() -> str:
    """The bundled models with what each recognises, in one line."""
    return "; ".join(f"{name} ({text})" for name, text in BUNDLED.items())


def absolute_name(model: str | Path) -> str:
    """A name that ``open_runtime`` takes from any current folder."""
    path = Path(model).expanduser()
    if _exists(path):
        return str(path.resolve())
    return encoder_names.absolute_name(str(model)) if encoder_names.is_name(str(model)) else str(model)


def _open_dual_encoder(name: str, device: Device) -> Runtime:
    from evilm import encoders

    encoder = encoders.load(name, device)  # first, because it reports a missing library
    from evilm.inference.dual_encoder import DualEncoderRuntime

    return DualEncoderRuntime(encoder)


def _exists(path: Path) -> bool:
    """Whether there is a file or folder; False for a name that the system rejects."""
    try:
        return path.exists()
    except OSError:
        return False
