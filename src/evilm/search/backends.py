"""Opens the backend of nearest-neighbour search that an index asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evilm.search.nearest import Exact, Faiss, Lance
from evilm.search.qdrant import Qdrant

if TYPE_CHECKING:
    from pathlib import Path

    from evilm.search.nearest import Backend, BackendName
    from evilm.search.vectors import Vectors


def open_backend(name: BackendName, vectors: Vectors, folder: Path, identity: str) -> Backend:
    """Make the named backend (not ``auto``) ready to search.

    Args:
        name: of the backend.
        vectors: what is searched.
        folder: of the index, for caches.
        identity: of the database, so that no cache of another index is used.

    Raises:
        DependencyError: the backend's package is not installed.
    """
    if name == "faiss":
        return Faiss.open(vectors, folder, identity)
    if name == "lance":
        return Lance.open(vectors, folder, identity)
    if name == "qdrant":
        return Qdrant.open(vectors, folder, identity)
    return Exact(vectors.matrix)
