"""Nearest neighbours by Qdrant, for indexes that one machine does not hold.

The collection is on the server at ``EVILM_QDRANT_URL`` (with the key ``EVILM_QDRANT_API_KEY``); without this variable
the client keeps it in the folder of the index, compares with every vector, and serves only one process.
"""

from __future__ import annotations

import atexit
import importlib
import os
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from evilm.errors import DependencyError, VideoIndexError
from evilm.search.ranking import LISTED, filtered, top_k

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.search.ranking import Cosines, Rows
    from evilm.search.vectors import Vectors

_FOLDER = "qdrant.cache"
_BATCH = 1024  # vectors that are sent together


class Qdrant:
    """Candidates from Qdrant, cosines from the float32 vectors.

    Args:
        matrix: (n, D) float32 unit vectors.
        client: of Qdrant.
        name: of the collection, whose ids are rows of the matrix.
    """

    def __init__(self, matrix: NDArray[np.float32], client: Any, name: str) -> None:
        self.matrix, self._client, self._name = matrix, client, name

    @classmethod
    def open(cls, vectors: Vectors, folder: Path, identity: str) -> Self:
        """Open the collection of these vectors, or upload them; older collections of the index are deleted.

        Raises:
            DependencyError: the client is not installed.
            VideoIndexError: the server does not answer, or another process uses the folder.
        """
        try:
            import qdrant_client  # pyright: ignore[reportMissingImports, reportMissingTypeStubs], an extra
        except ModuleNotFoundError:
            raise DependencyError(
                "the backend qdrant needs its client: pip install 'evilm[qdrant]', or search with --backend exact"
            ) from None
        module, url = cast("Any", qdrant_client), os.environ.get("EVILM_QDRANT_URL")
        stem = f"segments_{identity[:8]}_"
        name = f"{stem}{vectors.generation}_{len(vectors)}"
        place = url or str(folder / _FOLDER)
        try:
            if url:
                client: Any = module.QdrantClient(url=url, api_key=os.environ.get("EVILM_QDRANT_API_KEY"))
            else:
                client = _local_client(module, place)
            if not client.collection_exists(name) or client.count(name, exact=True).count != len(vectors):
                for each in client.get_collections().collections:
                    if each.name.startswith(stem):
                        client.delete_collection(each.name)
                params = module.models.VectorParams(size=vectors.matrix.shape[1], distance=module.models.Distance.DOT)
                client.create_collection(name, vectors_config=params)
                for start in range(0, len(vectors), _BATCH):
                    some = np.ascontiguousarray(vectors.matrix[start : start + _BATCH])
                    batch = module.models.Batch(ids=list(range(start, start + len(some))), vectors=some.tolist())
                    client.upsert(name, batch, wait=True)
        except DependencyError:
            raise
        except Exception as error:  # noqa: BLE001 - the client raises errors of several libraries
            raise VideoIndexError(f"Qdrant at {place}: {error}; start the server, or use --backend exact") from None
        return cls(vectors.matrix, client, name)

    def nearest(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[Rows, Cosines]:
        """See ``nearest.Backend.nearest``."""
        if not len(self.matrix) or (allowed is not None and not allowed.any()):
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        if allowed is not None and allowed.sum() > LISTED:
            return filtered(lambda count: self._fetch(query, count), k, allowed, len(self.matrix))
        return self._fetch(query, k, None if allowed is None else np.flatnonzero(allowed))

    def _fetch(
        self, query: NDArray[np.float32], count: int, only: NDArray[np.int64] | None = None
    ) -> tuple[Rows, Cosines]:
        condition = None
        if only is not None:
            models = cast("Any", importlib.import_module("qdrant_client.models"))
            condition = models.Filter(must=[models.HasIdCondition(has_id=only.tolist())])
        answer = self._client.query_points(
            self._name, query=query.tolist(), limit=count, query_filter=condition, with_payload=False
        )
        rows = np.sort(np.array([point.id for point in answer.points], dtype=np.int64))
        cosines = np.asarray(self.matrix[rows] @ query, dtype=np.float32)
        order = top_k(cosines, count)
        return rows[order], cosines[order]


_clients: dict[str, Any] = {}  # of folders: a folder can be opened once in a process


def _local_client(module: Any, place: str) -> Any:
    if place not in _clients:
        _clients[place] = module.QdrantClient(path=place)
        atexit.register(_clients[place].close)  # the client's own finalizer comes too late and prints a traceback
    return _clients[place]
