"""Models on the Hugging Face hub: fetched and published as folders, never as code."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilm import files
from evilm import hub as weights_hub
from evilm.errors import CheckpointError, OutputError
from evilm.hub import library as _library
from evilm.training import checkpoint

if TYPE_CHECKING:
    from evilm.inference.runtime import Metadata

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_WANTED = ("*.json", "*.onnx", "*.safetensors", "README.md", files.MARK)
_KEPT_BACK = ("training",)  # of a checkpoint: the optimiser's state, twice the size of the weights


def is_name(text: str) -> bool:
    """Whether ``text`` may be a hub's ``owner/name`` rather than a path."""
    return _NAME.fullmatch(text) is not None


def download(name: str) -> Path:
    """The local copy of a hub's model, fetched where there is none yet.

    Raises:
        DependencyError: huggingface_hub is missing.
        CheckpointError: no such model, or no network; said at once, not after minutes of attempts.
    """
    hub, near = _library(name), weights_hub.hub_reachable()
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(_WANTED), local_files_only=not near))
    except Exception as error:
        reason = " ".join(str(error).split())[:160] if near else "no network, and no copy of it here"
        raise CheckpointError(f"{name}: no such folder here, and not to be had from the hub: {reason}") from error


def upload(folder: Path, name: str, about: Metadata, *, private: bool = False) -> str:
    """Publish a model's folder with its card.

    Args:
        folder: a checkpoint or an export.
        name: ``owner/name`` on the hub, made where there is none.
        about: what the card says of a checkpoint; an export has its own card.
        private: for the owner's eyes alone.

    Returns:
        where it lies now.

    Raises:
        DependencyError: huggingface_hub is missing.
        OutputError: no such name can be, no network, or the hub refuses.
    """
    if not is_name(name):
        raise OutputError(f"{name}: is no name on the hub; take owner/name")
    hub = _library(name)
    if not weights_hub.hub_reachable():
        raise OutputError(f"{name}: cannot be published: the hub cannot be reached")
    with tempfile.TemporaryDirectory(prefix="evilm-hub-") as temporary:
        copy = Path(temporary) / "model"
        publishable(folder, copy, about)
        try:
            api = hub.HfApi()
            api.create_repo(name, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=name, folder_path=copy, commit_message="Publish with evilm"))
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise OutputError(f"{name}: cannot be published: {reason}; log in with `hf auth login`") from error


def publishable(folder: Path, copy: Path, about: Metadata) -> None:
    """What is published of a model: a folder that ``evilm.load`` takes, with a card and without paths of this machine.

    Args:
        folder: a checkpoint or an export.
        copy: where to write it; must not exist.
        about: of the model.
    """
    from evilm.export import card

    def fill(to: Path) -> None:
        shutil.copytree(folder, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_KEPT_BACK, checkpoint.MANIFEST))
        for name in ("config.json", "export.json"):
            if (to / name).is_file():
                checkpoint.write_json(to / name, _without_paths(checkpoint.read_json(to / name)))
        if not (to / "README.md").is_file():
            (to / "README.md").write_text(card.of_checkpoint(about), encoding="utf-8")

    checkpoint.write(copy, fill, what="copy to publish", remedy="free space in TMPDIR and try again")


def _without_paths(value: Any) -> Any:
    """A JSON value whose absolute paths keep their last two parts alone."""
    if isinstance(value, dict):
        return {name: _without_paths(each) for name, each in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [_without_paths(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    return "/".join(value.rstrip("/").split("/")[-2:]) if isinstance(value, str) and value.startswith("/") else value
