"""``evilm.load``: from a name to an ``Embedder``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evilm import checkpoint
from evilm.errors import CheckpointError, DependencyError
from evilm.inference.embedder import Embedder

if TYPE_CHECKING:
    Device = Literal["auto", "cpu", "cuda"]

EXPORT = "export.json"  # what tells an exported folder from a checkpoint
TINY = "world-tiny"  # the model that comes with the package
_SHIPPED = Path(__file__).parent / "shipped"


def load(model: str | Path, *, device: Device = "auto", threads: int | None = None) -> Embedder:
    """A trained model, ready to be asked.

    Args:
        model: the folder of an export; of a run or checkpoint (needs torch); ``world-tiny``, which comes with the
            package; or a name on the hub (``owner/name``).
        device: where a checkpoint runs; an export runs on the CPU.
        threads: of an export's runtime; None takes one for each core.

    Raises:
        CheckpointError: no such model, or it is damaged or not to be trusted.
        DependencyError: torch is missing and the folder is a checkpoint.
    """
    path = shipped(model) or Path(model).expanduser()
    if not _exists(path):
        from evilm.export import hub

        if not hub.is_name(str(model)):
            raise CheckpointError(
                f"{model}: no such model; name the folder of an export, a run or a checkpoint, {TINY} that comes "
                "along, or owner/name on the hub"
            )
        path = hub.download(str(model))
    if (path / EXPORT).is_file():
        from evilm.export.onnx_engine import OnnxEngine

        return Embedder(OnnxEngine(path, threads))
    try:
        from evilm.export.torch_engine import TorchEngine
    except ModuleNotFoundError as error:
        checkpoint.find(path)
        raise DependencyError(
            f"{path}: is a checkpoint, which needs {error.name}: pip install 'evilm[train]', or load an export of it"
        ) from None
    return Embedder(TorchEngine(path, device))


def shipped(model: str | Path) -> Path | None:
    """Where the model of that name lies in the package; None where none is meant. A folder of the name goes first."""
    return _SHIPPED / TINY if str(model) == TINY and not _exists(Path(model)) else None


def _exists(path: Path) -> bool:
    """Whether there is something; a name that the system cannot even look up is none."""
    try:
        return path.exists()
    except OSError:
        return False
