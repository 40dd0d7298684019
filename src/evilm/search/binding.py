"""An index and its model: which made it, how it cut and decoded, and that no other one searches it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilm.config import Config
from evilm.data.video import Mode
from evilm.errors import VideoIndexError
from evilm.search.decoding import DecodeConfig
from evilm.search.segments import CutConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evilm.search.database import Database
    from evilm.search.embedder import Embedder


class IndexConfig(Config):
    """What an index remembers about how it was made."""

    mode: Mode = "exact"
    cut: CutConfig = CutConfig()


def loaded(model: Embedder | str | Path) -> Embedder:
    """A model, from wherever it is."""
    if isinstance(model, (str, Path)):
        from evilm.inference import load

        return load(model)
    return model


def bind(catalogue: Database, given: Embedder | None, origin: Embedder | str | Path | None) -> Embedder:
    """The index's model; a new index remembers it.

    Raises:
        VideoIndexError: the index is of another model.
    """
    made = catalogue.fact("model")
    if made is not None:
        return checked(given or made["path"], made, catalogue.folder)
    assert given is not None
    width = int(given.embed_texts(["a video"]).shape[1])
    path = None
    if isinstance(origin, (str, Path)):
        from evilm.inference.loading import absolute_name

        path = absolute_name(origin)
    with catalogue.transaction():
        catalogue.set_fact("model", {"path": path, "fingerprint": given.fingerprint})
        catalogue.set_fact("width", width)
    return given


def checked(model: Embedder | str | Path | None, made: Mapping[str, Any], folder: Path) -> Embedder:
    """The model, if it is the one that ``made`` says.

    Raises:
        VideoIndexError: it is another, or nowhere.
    """
    if model is None:
        raise VideoIndexError(f"{folder}: does not know where its model is: name it with --model")
    if isinstance(model, str) and model == made["path"] and os.path.isabs(model) and not Path(model).exists():  # noqa: PTH117 - a string from the index
        raise VideoIndexError(f"{folder}: its model is no longer at {model}: name its new place with --model")
    found = loaded(model)
    if found.fingerprint != made["fingerprint"]:
        raise VideoIndexError(
            f"{folder}: was made by another model ({made['fingerprint'][:12]}, from {made['path'] or 'memory'}), "
            f"this one is {found.fingerprint[:12]}: name that one, or index into a new folder"
        )
    return found


def remembered(catalogue: Database, model: Embedder, config: IndexConfig | None) -> DecodeConfig:
    """How an index decodes: as it was first made."""
    kept = catalogue.fact("config")
    if kept is None:
        kept = (config or IndexConfig()).model_dump(mode="json")
        with catalogue.transaction():
            catalogue.set_fact("config", kept)
    elif config is not None and config.model_dump(mode="json") != kept:
        had = IndexConfig.model_validate(kept)
        raise VideoIndexError(
            f"{catalogue.folder}: was made with {had!r}: leave these settings out, or index into a new folder"
        )
    settings = IndexConfig.model_validate(kept)
    return DecodeConfig(
        frames=model.num_frames, size=model.image_size, fit=model.resize_mode, mode=settings.mode, cut=settings.cut
    )
