"""The model and the settings of an index: loaded, stored, and checked so that an index uses no others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.config import Config
from evilm.data.video import Mode
from evilm.errors import VideoIndexError
from evilm.progress import say
from evilm.search.segments import SegmentConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from evilm.inference import Embedder
    from evilm.search.database import Database

# Format 1 of the index stores the fields of ``SegmentConfig`` under these names.
_STORED_NAMES = {
    "method": "by", "max_seconds": "seconds", "min_seconds": "shortest", "cut_threshold": "change",
    "max_segments": "most",
}  # fmt: skip


class IndexConfig(Config):
    """Settings that an index keeps for its whole life: how videos are decoded and cut."""

    mode: Mode = "exact"
    segments: SegmentConfig = SegmentConfig()


def unit_rows(vectors: NDArray[np.floating], source: str) -> NDArray[np.float32]:
    """Rows of length one in float32.

    Args:
        vectors: (n, D) output of a model.
        source: of the vectors, for the message.

    Raises:
        VideoIndexError: a row is not finite or is zero.
    """
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    if rows.ndim != 2 or not np.isfinite(lengths).all() or not (lengths > 0).all():
        raise VideoIndexError(f"{source}: the model gave a vector that is zero or not finite; use another model")
    return np.ascontiguousarray(rows / lengths, dtype=np.float32)


def resolve_model(
    model: Embedder | str | Path | None, *, is_new: bool
) -> tuple[Embedder | None, Embedder | str | Path | None]:
    """Load the model that a caller named; for a new index without one, the default bundled model.

    Returns:
        the embedder (None: the index's own), and what it was loaded from.
    """
    if model is None and is_new:
        from evilm.inference.loading import BUNDLED, DEFAULT_MODEL

        models = "; ".join(f"{name} ({trained_on})" for name, trained_on in BUNDLED.items())
        say(f"no model named: using {DEFAULT_MODEL}; bundled models and what they were trained on: {models}")
        model = DEFAULT_MODEL
    return None if model is None else _load(model), model


def _load(model: Embedder | str | Path) -> Embedder:
    if isinstance(model, (str, Path)):
        from evilm.inference import load

        return load(model)
    return model


def bind_model(database: Database, embedder: Embedder | None, source: Embedder | str | Path | None) -> Embedder:
    """The model of an index that is being updated; a new index stores where it came from and its fingerprint.

    Args:
        database: open for writing.
        embedder: None for the stored model.
        source: of the embedder, if it was loaded by name.

    Raises:
        VideoIndexError: another model made the index.
    """
    stored = database.metadata("model")
    if stored is not None:
        return check_model(embedder or stored["path"], stored, database.folder)
    assert embedder is not None
    path = None
    if isinstance(source, (str, Path)):
        from evilm.inference.loading import absolute_name

        path = absolute_name(source)
    width = int(embedder.embed_texts(["a video"]).shape[1])
    with database.transaction():
        database.set_metadata("model", {"path": path, "fingerprint": embedder.fingerprint})
        database.set_metadata("width", width)
    return embedder


def check_model(model: Embedder | str | Path | None, stored: Mapping[str, Any], folder: Path) -> Embedder:
    """Load a model and check that it made the index.

    Args:
        model: it, or where it is.
        stored: ``path`` and ``fingerprint`` that the index has.
        folder: of the index.

    Raises:
        VideoIndexError: it cannot be found, or it is another model.
    """
    if model is None:
        raise VideoIndexError(f"{folder}: does not know where its model is: name it with --model")
    if isinstance(model, str) and model == stored["path"] and os.path.isabs(model) and not Path(model).exists():  # noqa: PTH117 - a string from the index
        raise VideoIndexError(f"{folder}: its model is no longer at {model}: name its new place with --model")
    embedder = _load(model)
    if embedder.fingerprint != stored["fingerprint"]:
        from evilm.inference.loading import BUNDLED

        if model == stored["path"] and model in BUNDLED:
            raise VideoIndexError(
                f"{folder}: was made by the {model} of another version of this package: index again into a new folder"
            )
        raise VideoIndexError(
            f"{folder}: was made by another model ({stored['fingerprint'][:12]}, from {stored['path'] or 'memory'}), "
            f"this one is {embedder.fingerprint[:12]}: name that one, or index into a new folder"
        )
    return embedder


def stored_config(database: Database) -> IndexConfig:
    """The settings that an index was made with."""
    stored = database.metadata("config")
    if stored is None:
        return IndexConfig()
    cut = {name: stored["cut"][old] for name, old in _STORED_NAMES.items() if old in stored["cut"]}
    return IndexConfig(mode=stored["mode"], segments=SegmentConfig(**cut))


def bind_config(database: Database, config: IndexConfig | None) -> IndexConfig:
    """The settings of an index that is being updated; a new index stores them.

    Args:
        database: open for writing.
        config: None for the stored ones.

    Raises:
        VideoIndexError: the index was made with other settings.
    """
    if database.metadata("config") is None:
        config = config or IndexConfig()
        cut = {_STORED_NAMES[name]: value for name, value in config.segments.model_dump(mode="json").items()}
        with database.transaction():
            database.set_metadata("config", {"mode": config.mode, "cut": cut})
        return config
    stored = stored_config(database)
    if config is not None and config != stored:
        raise VideoIndexError(
            f"{database.folder}: was made with {stored!r}: leave these options out, or index into a new folder"
        )
    return stored


def foreign_to_world_tiny(model: str | None, videos: Iterable[bytes]) -> bool:
    """Whether the model is ``world-tiny`` and a video lies outside the folder of a synthetic world."""
    from evilm.inference.loading import TINY

    if model != TINY:
        return False
    folders = {Path(os.fsdecode(os.path.realpath(video))).parent for video in videos}
    return any(not any((each / "world.jsonl").is_file() for each in (folder, folder.parent)) for folder in folders)
