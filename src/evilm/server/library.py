"""The open index as the interface needs it: searches in batches, segments and videos by id, filters, paging, questions.

A thread of its own runs the model and the comparison with all vectors. It takes all searches that wait at that moment
as one batch, so 64 clients cost one pass of the text encoder and one matrix product.
"""

from __future__ import annotations

import datetime as dt
import queue
import re
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.errors import EvilmError, QueryError
from evilm.search import VideoIndex
from evilm.search.query import Filter
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from evilm.inference import Embedder
    from evilm.search.query import Hits, Video

    Vector = NDArray[np.float32]

MAX_BATCH, MAX_WAITING = 64, 256
MAX_HITS = 5000  # that a search can be paged through in an order other than by score
SUBTRACT = 0.6  # weight of a subtracted text
VECTORS = 4096  # text vectors that are kept
_TERM = re.compile(r'(?:(?<=\s)|^)([-+])("[^"]*"|\S+)')


class BusyError(Exception):
    """More searches wait than the server takes."""


@dataclass(frozen=True)
class Request:
    """A search.

    Attributes:
        plus, minus: texts to add and to subtract.
        segment: id of a segment to search by.
        vector: of an uploaded picture or clip.
        where: condition on files.
        count: number of hits.
    """

    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    segment: int | None = None
    vector: Vector | None = None
    where: Filter | None = None
    count: int = 48


def parse_text(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts to add and to subtract: ``beach -people +"two dogs"`` to (``beach``, ``two dogs``) and (``people``,)."""
    signs: dict[str, list[str]] = {"+": [], "-": []}
    for sign, term in _TERM.findall(text):
        if word := term.strip('"').strip():
            signs[sign].append(word)
    rest = " ".join(_TERM.sub(" ", text).split())
    return tuple([rest] if rest else []) + tuple(signs["+"]), tuple(signs["-"])


@dataclass
class _Waiting:
    request: Request
    future: Future[Hits] = field(default_factory=Future)


class Library:
    """An index, its model, and the thread that searches.

    Args:
        folder: of the index; it may not exist yet.
        model: of the index; None takes the one that made it.
    """

    def __init__(self, folder: Path, model: str | None = None) -> None:
        self.folder, self.model_name = folder, model
        self._index: VideoIndex | None = None
        self._lock = threading.Lock()
        self._waiting: queue.Queue[_Waiting | None] = queue.Queue(MAX_WAITING)
        self._vectors: OrderedDict[str, Vector] = OrderedDict()
        self._model_lock = threading.Lock()
        self.searches = 0
        self.batches = 0
        threading.Thread(target=self._work, name="evilm-search", daemon=True).start()

    def close(self) -> None:
        """End the thread and close the index."""
        self._waiting.put(None)
        if self._index is not None:
            self._index.close()

    @property
    def index(self) -> VideoIndex | None:
        """The index; None while there is none."""
        with self._lock:
            if self._index is None and (self.folder / "index.db").is_file():
                try:
                    self._index = VideoIndex.open(self.folder, self.model_name)
                    len(self._index)
                except EvilmError:
                    self._index = None
            return self._index

    def need(self) -> VideoIndex:
        """The index.

        Raises:
            QueryError: there is none yet.
        """
        index = self.index
        if index is None:
            raise QueryError("there is no index yet: choose a folder in the Index view")
        return index

    @property
    def model(self) -> Embedder:
        """The model of the index."""
        with self._model_lock:
            return self.need().model

    # Searching

    def search(self, request: Request, timeout: float = 30.0) -> Hits:
        """The best segments; waits for its turn.

        Raises:
            BusyError: too many searches wait.
            EvilmError: the query cannot be searched for.
        """
        waiting = _Waiting(request)
        try:
            self._waiting.put_nowait(waiting)
        except queue.Full:
            raise BusyError from None
        return waiting.future.result(timeout)

    def run(self, work: Callable[[Embedder], Any]) -> Any:
        """Run ``work`` with the model while no search uses it."""
        model = self.model
        with self._model_lock:
            return work(model)

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < MAX_BATCH:
                try:
                    more = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    return
                batch.append(more)
            self.batches += 1
            self.searches += len(batch)
            self._answer(batch)

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        ready: list[tuple[_Waiting, Vector]] = []
        try:
            index = self.need()
            self._embed(index, {text for each in batch for text in (*each.request.plus, *each.request.minus)})
        except Exception as error:  # noqa: BLE001, each waiting request gets it
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for each in batch:  # one bad text must not fail the others
                self._answer([each])
            return
        for each in batch:
            try:
                ready.append((each, self._combined(index, each.request)))
            except Exception as error:  # noqa: BLE001
                each.future.set_exception(error)
        if not ready:
            return
        try:
            results = index.search_many(
                [vector for _, vector in ready], max(each.request.count for each, _ in ready),
                [each.request.where for each, _ in ready],
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001
            if len(ready) == 1:
                ready[0][0].future.set_exception(error)
            else:
                for each, _ in ready:
                    self._answer([each])
            return
        for (each, _), hits in zip(ready, results, strict=True):
            each.future.set_result(hits)

    def _embed(self, index: VideoIndex, texts: set[str]) -> None:
        """Keep the vectors of these texts."""
        missing = sorted(texts - self._vectors.keys())
        if missing:
            with self._model_lock:
                vectors = (
                    [index.embed(text) for text in missing] if len(missing) == 1 else list(index.embed_texts(missing))
                )
            self._vectors.update(zip(missing, vectors, strict=True))
        for text in texts:
            self._vectors.move_to_end(text)
        while len(self._vectors) > VECTORS:
            self._vectors.popitem(last=False)

    def _combined(self, index: VideoIndex, request: Request) -> Vector:
        """The unit vector of a search: what is added less what is subtracted."""
        parts = [self._vectors[text] for text in request.plus]
        if request.segment is not None:
            parts.append(index.embed(request.segment))
        if request.vector is not None:
            parts.append(request.vector)
        if not parts:
            raise QueryError("describe what to look for; a minus alone is not enough")
        vector = np.sum(parts, axis=0) / len(parts)
        for text in request.minus:
            vector = vector - SUBTRACT * self._vectors[text]
        return (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)

    def vector(self, request: Request) -> Vector:
        """The unit vector of a search."""
        index = self.need()
        self._embed(index, {*request.plus, *request.minus})
        return self._combined(index, request)

    # Content

    def video(self, number: int) -> Video | None:
        """A file of the index."""
        return self.need().video(number)

    def embed_file(self, path: Path) -> Vector:
        """The vector of an uploaded picture or clip."""
        return self.need().embed(path)

    def ask(self, path: Path, start: float, end: float, question: str, choices: Sequence[str]) -> dict[str, Any]:
        """The answer to a question about a part of a video."""
        answer = self.run(lambda model: model.ask(Clip(path, start, end), question, tuple(choices)))
        return {
            "answer": answer.answer, "probability": float(answer.probability), "certain": not answer.cannot_tell,
            "answers": [{"answer": text, "probability": float(share)} for text, share in answer.top],
            "frames": [{"time": float(seconds), "weight": float(weight)} for seconds, weight in answer.frames],
        }  # fmt: skip


def day_of(text: str | None) -> dt.date | None:
    """A day from ISO 8601; None for none.

    Raises:
        QueryError: it is no day.
    """
    if not text:
        return None
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise QueryError(f"{text!r} is no day: write it as 2026-06-01") from None


def timed() -> Callable[[], float]:
    """Seconds since this call."""
    began = time.perf_counter()
    return lambda: time.perf_counter() - began
