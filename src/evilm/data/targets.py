"""What a teacher says of clips, computed once and kept: for distillation.

A vector belongs to a clip, the moments of it that were looked at, and a teacher. The file is named by the teacher's
fingerprint and by how it looks (T frames from the middles of equal segments, size, fit), so another teacher never
answers from it; within it vectors are found by ``Clip.id``. What a killed run had computed is kept.
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

_AT_ONCE = 32  # clips that are decoded while as many are encoded


class FrameEncoder(Protocol):
    """Who says something of clips."""

    @property
    def fingerprint(self) -> str:
        """Equal for those that say the same."""
        ...

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        ...

    @property
    def frames(self) -> int:
        """T."""
        ...

    @property
    def size(self) -> int:
        """Pixels of a frame's side."""
        ...

    @property
    def fit(self) -> Fit:
        """How a picture becomes square."""
        ...

    def embed_frames(self, frames: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """(n, T, size, size, 3) to (n, d)."""
        ...


class TargetStore:
    """Vectors of clips, (d,) each, on disk or in memory.

    Args:
        seer: whose they are.
        folder: where they are kept; None keeps them in memory.

    Raises:
        OutputError: the folder cannot be written.
        DataError: the file there is damaged.
    """

    def __init__(self, seer: FrameEncoder, folder: Path | None) -> None:
        self.seer = seer
        about = f"{seer.fingerprint} {seer.frames} {seer.size} {seer.fit} {seer.width}"
        self.path = None if folder is None else folder / f"targets-{hashlib.sha256(about.encode()).hexdigest()[:16]}.db"
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self.path or ":memory:", check_same_thread=False)
            self._file.execute("CREATE TABLE IF NOT EXISTS targets (clip TEXT PRIMARY KEY, vector BLOB, problem TEXT)")
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise OutputError(f"{self.path}: cannot keep a teacher's vectors: {error}") from None
            raise DataError(f"{self.path}: is damaged ({error}); delete it to compute it anew") from None
        except OSError as error:
            raise OutputError(f"{folder}: cannot keep a teacher's vectors: {error.strerror}") from None

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def lacking(self, clips: Iterable[Clip]) -> list[Clip]:
        """Clips that have neither a vector nor a reason to have none, each once."""
        known = {row[0] for row in self._file.execute("SELECT clip FROM targets")}
        return list({clip.id: clip for clip in clips if clip.id not in known}.values())

    def fill(self, clips: Iterable[Clip], workers: int = 2, progress: Callable[[int], None] | None = None) -> list[str]:
        """Look at what is lacking; a line for each clip that could not be read.

        Args:
            clips: all that are needed.
            workers: processes that decode.
            progress: called with how many of the lacking clips are done.
        """
        todo = self.lacking(clips)
        parts = [todo[i : i + _AT_ONCE] for i in range(0, len(todo), _AT_ONCE)]
        problems: list[str] = []
        done = 0
        with DecoderPool(max(1, workers)) as pool, ThreadPoolExecutor(max(1, workers)) as threads:

            def read(clip: Clip) -> NDArray[np.uint8] | VideoError:
                try:
                    return pool.read(clip, self.seer.frames, self.seer.size, fit=self.seer.fit)
                except VideoError as error:
                    return error

            coming = [threads.submit(read, clip) for clip in parts[0]] if parts else []
            for number, part in enumerate(parts):
                now = coming
                coming = [threads.submit(read, clip) for clip in parts[number + 1]] if number + 1 < len(parts) else []
                problems += self._keep(part, [future.result() for future in now])
                done += len(part)
                if progress is not None:
                    progress(done)
        return problems

    def _keep(self, clips: Sequence[Clip], found: Sequence[NDArray[np.uint8] | VideoError]) -> list[str]:
        seen = [i for i, frames in enumerate(found) if isinstance(frames, np.ndarray)]
        vectors: dict[int, bytes] = {}
        if seen:
            made = self.seer.embed_frames(np.stack([frames for frames in found if isinstance(frames, np.ndarray)]))
            vectors = {
                i: np.ascontiguousarray(row, dtype=np.float32).tobytes() for i, row in zip(seen, made, strict=True)
            }
        rows = [
            (clip.id, vectors.get(i), str(error) if isinstance(error, VideoError) else None)
            for i, (clip, error) in enumerate(zip(clips, found, strict=True))
        ]
        try:
            with self._file:
                self._file.executemany("INSERT OR REPLACE INTO targets VALUES (?, ?, ?)", rows)
        except sqlite3.OperationalError as error:
            raise OutputError(f"{self.path}: cannot keep a teacher's vectors: {error}") from None
        return [problem for _, _, problem in rows if problem is not None]

    def of(self, clips: Sequence[Clip]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Vectors (B, d) of clips, and which of them the teacher could see (B,); zeros for the others.

        Clips that ``fill`` was not asked for are looked at now.
        """
        if self.lacking_some(clips):
            self.fill(clips, 1)
        vectors = np.zeros((len(clips), self.seer.width), dtype=np.float32)
        known = np.zeros(len(clips), dtype=np.bool_)
        for i, clip in enumerate(clips):
            row = self._file.execute("SELECT vector FROM targets WHERE clip = ?", (clip.id,)).fetchone()
            if row is not None and row[0] is not None:
                vectors[i], known[i] = np.frombuffer(row[0], dtype=np.float32), True
        return vectors, known

    def lacking_some(self, clips: Sequence[Clip]) -> bool:
        """Whether any of a few clips has not been looked at."""
        ask = "SELECT 1 FROM targets WHERE clip = ?"
        return any(self._file.execute(ask, (clip.id,)).fetchone() is None for clip in clips)
