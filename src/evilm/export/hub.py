"""Publish a model's folder on the Hugging Face hub: weights, settings and card, never code."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilm import hub
from evilm.errors import OutputError
from evilm.export import card
from evilm.inference.loading import is_hub_name
from evilm.training import checkpoint

if TYPE_CHECKING:
    from evilm.inference.runtime import Metadata


def upload(folder: Path, name: str, metadata: Metadata, *, private: bool = False) -> str:
    """Publish a model's folder with its card.

    Args:
        folder: a checkpoint or an export.
        name: ``owner/name`` on the hub; it is created if needed.
        metadata: of the model, for the card of a checkpoint; an export has its own card.
        private: visible to the owner only.

    Returns:
        the address of the model on the hub.

    Raises:
        DependencyError: huggingface_hub is missing.
        OutputError: the name is not valid, there is no network, or the hub refuses.
    """
    if not is_hub_name(name):
        raise OutputError(f"{name}: is not a name on the hub: use owner/name")
    library = hub.library(name)
    if not hub.hub_reachable():
        raise OutputError(f"{name}: cannot be published: the hub cannot be reached")
    with tempfile.TemporaryDirectory(prefix="evilm-hub-") as temporary:
        copy = Path(temporary) / "model"
        write_public_copy(folder, copy, metadata)
        try:
            api = library.HfApi()
            api.create_repo(name, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=name, folder_path=copy, commit_message="Publish with evilm"))
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise OutputError(f"{name}: cannot be published: {reason}; log in with `hf auth login`") from error


def write_public_copy(folder: Path, copy: Path, metadata: Metadata) -> None:
    """Copy a model's folder with a card, and without the optimizer's state and the paths of this machine.

    Args:
        folder: a checkpoint or an export.
        copy: the folder to write; must not exist.
        metadata: of the model.
    """

    def fill(to: Path) -> None:
        shutil.copytree(folder, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("training", checkpoint.MANIFEST))
        for name in ("config.json", "export.json"):
            if (to / name).is_file():
                checkpoint.write_json(to / name, _without_paths(checkpoint.read_json(to / name)))
        if not (to / checkpoint.CARD).is_file():
            (to / checkpoint.CARD).write_text(card.render(metadata), encoding="utf-8")

    checkpoint.write(copy, fill, what="copy to publish", remedy="free space in TMPDIR and try again")


def _without_paths(value: Any) -> Any:
    """A JSON value in which absolute paths keep their last two parts only."""
    if isinstance(value, dict):
        return {name: _without_paths(each) for name, each in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [_without_paths(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    return "/".join(value.rstrip("/").split("/")[-2:]) if isinstance(value, str) and value.startswith("/") else value
