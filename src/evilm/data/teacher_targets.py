"""Disk cache of a teacher's clip embeddings, the targets of distillation.

The file is named by the teacher's fingerprint and its input (frames, size, resize mode), so embeddings of another
teacher are never used. Within the file they are found by ``Clip.id``. An interrupted run keeps what it has computed.
"""

from __future__ import annotations

import hashlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np

from evilm.data.video import DecoderPool
from evilm.errors import DataError, OutputError, VideoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.data.video import Fit
    from evilm.types import Clip

_BLOCK = 32  # clips that are decoded while the block before is encoded


class ClipEncoder(Protocol):
    """An encoder of clips, such as the teacher of a distillation."""

    @property
    def fingerprint(self) -> str:
        """Equal for encoders that give equal embeddings."""
        ...

    @property
    def embed_dim(self) -> int:
        """Dimension of an embedding."""
        ...

    @property
    def num_frames(self) -> int:
        """T."""
        ...

    @property
    def image_size(self) -> int:
        """Frame height and width in pixels."""
        ...

    @property
    def resize_mode(self) -> Fit:
        """How a frame becomes square."""
        ...

    def embed_frames(self, frames: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """(n, T, size, size, 3) to (n, d)."""
        ...


class TeacherTargets:
    """Embeddings of clips, (d,) each, on disk or in memory.

    Args:
        encoder: computes them.
        folder: where they are stored; None keeps them in memory.

    Raises:
        OutputError: the folder cannot be written.
        DataError: the file is damaged.
    """

    def __init__(self, encoder: ClipEncoder, folder: Path | None) -> None:
        self.encoder = encoder
        about = (
            f"{encoder.fingerprint} {encoder.num_frames} {encoder.image_size} {encoder.resize_mode} {encoder.embed_dim}"
        )
        self.path = None if folder is None else folder / f"targets-{hashlib.sha256(about.encode()).hexdigest()[:16]}.db"
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path or ":memory:", check_same_thread=False)
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS targets (clip TEXT PRIMARY KEY, vector BLOB, problem TEXT)"
            )
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise OutputError(f"{self.path}: cannot store the teacher's embeddings: {error}") from None
            raise DataError(f"{self.path}: is damaged ({error}); delete it to compute it again") from None
        except OSError as error:
            raise OutputError(f"{folder}: cannot store the teacher's embeddings: {error.strerror}") from None

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def missing(self, clips: Iterable[Clip]) -> list[Clip]:
        """Clips with neither an embedding nor a stored problem, each once."""
        known = {row[0] for row in self._database.execute("SELECT clip FROM targets")}
        return list({clip.id: clip for clip in clips if clip.id not in known}.values())

    def fill(self, clips: Iterable[Clip], workers: int = 2, progress: Callable[[int], None] | None = None) -> list[str]:
        """Compute the missing embeddings.

        Args:
            clips: all that are needed.
            workers: decoding processes.
            progress: called with the number of missing clips done.

        Returns:
            one line for each clip that cannot be read.
        """
        todo = self.missing(clips)
        blocks = [todo[i : i + _BLOCK] for i in range(0, len(todo), _BLOCK)]
        problems: list[str] = []
        done = 0
        with DecoderPool(max(1, workers)) as pool, ThreadPoolExecutor(max(1, workers)) as threads:

            def read(clip: Clip) -> NDArray[np.uint8] | VideoError:
                try:
                    return pool.read(
                        clip, self.encoder.num_frames, self.encoder.image_size, fit=self.encoder.resize_mode
                    )
                except VideoError as error:
                    return error

            following = [threads.submit(read, clip) for clip in blocks[0]] if blocks else []
            for number, block in enumerate(blocks):
                current = following
                if number + 1 < len(blocks):
                    following = [threads.submit(read, clip) for clip in blocks[number + 1]]
                problems += self._store(block, [future.result() for future in current])
                done += len(block)
                if progress is not None:
                    progress(done)
        return problems

    def _store(self, clips: Sequence[Clip], results: Sequence[NDArray[np.uint8] | VideoError]) -> list[str]:
        """Encode and store the clips that could be read; returns the problems of the others."""
        readable = [i for i, result in enumerate(results) if isinstance(result, np.ndarray)]
        vectors: dict[int, bytes] = {}
        if readable:
            frames = np.stack([result for result in results if isinstance(result, np.ndarray)])
            embeddings = np.ascontiguousarray(self.encoder.embed_frames(frames), dtype=np.float32)
            vectors = {i: vector.tobytes() for i, vector in zip(readable, embeddings, strict=True)}
        rows = [
            (clip.id, vectors.get(i), str(result) if isinstance(result, VideoError) else None)
            for i, (clip, result) in enumerate(zip(clips, results, strict=True))
        ]
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO targets VALUES (?, ?, ?)", rows)
        except sqlite3.OperationalError as error:
            raise OutputError(f"{self.path}: cannot store the teacher's embeddings: {error}") from None
        return [problem for _, _, problem in rows if problem is not None]

    def read(self, clips: Sequence[Clip]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Embeddings (B, d) of clips and which of them could be read (B,); the others get zeros.

        Clips that were not passed to ``fill`` are computed now.
        """
        query = "SELECT vector FROM targets WHERE clip = ?"
        if any(self._database.execute(query, (clip.id,)).fetchone() is None for clip in clips):
            self.fill(clips, 1)
        vectors = np.zeros((len(clips), self.encoder.embed_dim), dtype=np.float32)
        readable = np.zeros(len(clips), dtype=np.bool_)
        for i, clip in enumerate(clips):
            row = self._database.execute(query, (clip.id,)).fetchone()
            if row is not None and row[0] is not None:
                vectors[i], readable[i] = np.frombuffer(row[0], dtype=np.float32), True
        return vectors, readable
