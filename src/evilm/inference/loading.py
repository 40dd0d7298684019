"""``evilm.load``: from a name to an ``Embedder``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evilm.encoders import names as encoder_names
from evilm.errors import CheckpointError, DependencyError
from evilm.inference.embedder import Embedder
from evilm.training import checkpoint

if TYPE_CHECKING:
    from evilm.inference.dual_encoder import DualEncoderRuntime

    Device = Literal["auto", "cpu", "cuda"]

EXPORT_FILE = "export.json"  # what tells an exported folder from a checkpoint
_SHIPPED = Path(__file__).parent / "shipped"
TINY = "world-tiny"
# Models that may be bundled with the package, the best for real videos first, and what each was trained on.
_TRAINED_ON = {
    "evilm-photo": "photographs and videos of everyday scenes, with captions",
    TINY: "videos of moving shapes in the synthetic world, and nothing else",
}
BUNDLED = {name: trained_on for name, trained_on in _TRAINED_ON.items() if (_SHIPPED / name).is_dir()}
DEFAULT_MODEL = next(iter(BUNDLED), TINY)  # of an index that is made without naming a model


def load(model: str | Path, *, device: Device = "auto", threads: int | None = None) -> Embedder:
    """A trained model, ready to be asked.

    Args:
        model: the folder of an export; of a run or checkpoint (needs torch); ``world-tiny``, which comes with the
            package; a name on the hub (``owner/name``); or a dual encoder of another library, such as
            ``open_clip:ViT-B-32:laion2b_s34b_b79k`` (see ``evilm.encoders``).
        device: where a checkpoint or a dual encoder runs; an export runs on the CPU.
        threads: of an export's runtime; None takes one for each core. Torch keeps its own count.

    Raises:
        CheckpointError: no such model, or it is damaged or not to be trusted.
        DependencyError: torch is missing and the folder is a checkpoint.
    """
    path = bundled_folder(model) or Path(model).expanduser()
    if not _exists(path) and encoder_names.is_name(str(model)):
        return Embedder(_dual(str(model), device))
    if not _exists(path):
        from evilm.export import hub

        if not hub.is_name(str(model)):
            raise CheckpointError(
                f"{model}: no such model; name the folder of an export, a run or a checkpoint, a bundled model "
                f"({', '.join(BUNDLED)}), or owner/name on the hub"
            )
        path = hub.download(str(model))
    if (path / EXPORT_FILE).is_file():
        from evilm.inference.runtime_onnx import OnnxRuntime

        return Embedder(OnnxRuntime(path, threads))
    try:
        from evilm.inference.runtime_torch import TorchRuntime
    except ModuleNotFoundError as error:
        checkpoint.find(path)
        raise DependencyError(
            f"{path}: is a checkpoint, which needs {error.name}: pip install 'evilm[train]', or load an export of it"
        ) from None
    return Embedder(TorchRuntime(path, device))


def bundled_folder(model: str | Path) -> Path | None:
    """Folder of the bundled model of that name; None if there is none, or if a folder of that name exists here."""
    return _SHIPPED / str(model) if str(model) in BUNDLED and not _exists(Path(model)) else None


def absolute_name(model: str | Path) -> str:
    """What ``load`` takes, so written that it means the same from any folder."""
    path = Path(model).expanduser()
    if _exists(path):
        return str(path.resolve())
    return encoder_names.absolute(str(model)) if encoder_names.is_name(str(model)) else str(model)


def _dual(name: str, device: Device) -> DualEncoderRuntime:
    """A dual encoder of another library."""
    try:
        from evilm.encoders import base
        from evilm.inference.dual_encoder import DualEncoderRuntime
    except ModuleNotFoundError as error:
        raise DependencyError(f"{name}: needs {error.name}: pip install 'evilm[clip]'") from None
    return DualEncoderRuntime(base.load(name, device))


def _exists(path: Path) -> bool:
    """Whether there is something; a name that the system cannot even look up is none."""
    try:
        return path.exists()
    except OSError:
        return False
