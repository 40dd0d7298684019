"""The open index as the interface needs it: several searches at once, the words that hits match, questions."""

from __future__ import annotations

import glob
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.errors import EvilmError, QueryError
from evilm.inference import join_question, softmax
from evilm.search.index import VideoIndex
from evilm.search.query import Filter, QueryVector, parse_day
from evilm.server.batches import BusyError
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from evilm.inference import Answer, Embedder
    from evilm.search.query import Hit, Hits
    from evilm.server import schemas

MAX_QUESTIONS = 4  # that are answered or wait at the same time
SUBTRACT = 0.6  # weight of a subtracted text
VECTORS = 8192  # text vectors that are kept
WORD_LIFT = 1.5  # standard deviations from which a word of the query is shown as one that a segment matches
WORD_BLOCK = 16  # searches whose words are compared by one product
_STOP_WORDS = frozenset("a an and are at by for from in into is it of off on or over that the then to with".split())
_TERM = re.compile(r'(?:(?<=\s)|^)([-+])("[^"]*"|\S+)')


@dataclass(frozen=True)
class Request:
    """A search.

    Attributes:
        plus, minus: texts to add and to subtract.
        segment: id of a segment to search by.
        example: an uploaded picture or clip.
        where: condition on files.
        count: number of hits.
        offset: number of best hits to leave out.
    """

    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    segment: int | None = None
    example: QueryVector | None = None
    where: Filter | None = None
    count: int = 48
    offset: int = 0


def parse_text(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts to add and to subtract: ``beach -people +"two dogs"`` to (``beach``, ``two dogs``) and (``people``,)."""
    signs: dict[str, list[str]] = {"+": [], "-": []}
    for sign, term in _TERM.findall(text):
        if word := term.strip('"').strip():
            signs[sign].append(word)
    rest = " ".join(_TERM.sub(" ", text).split())
    return tuple([rest] if rest else []) + tuple(signs["+"]), tuple(signs["-"])


def filter_of(filters: schemas.Filters, root: Path) -> Filter:
    """The condition on files that a request states.

    Args:
        filters: as the request has them.
        root: the folder that their folder is relative to.

    Raises:
        QueryError: the folder leads out of the root, or a day is none.
    """
    folder = None
    if filters.folder:
        if "\0" in filters.folder or ".." in PurePath(filters.folder).parts or PurePath(filters.folder).is_absolute():
            raise QueryError("the folder has to be one of the indexed folders")
        folder = root / filters.folder
    days = [None if not day else parse_day(day) for day in (filters.after, filters.before)]
    if any(day is not None and not 1900 <= day.year <= 9000 for day in days):
        raise QueryError("a day has to lie between the years 1900 and 9000")
    name = f"*{glob.escape(filters.name)}*" if filters.name else None
    return Filter(folder, name, filters.min_seconds, filters.max_seconds, *days)


class Library:
    """An index and its model; safe to use from several threads.

    Args:
        folder: of the index; it may not exist yet.
        model: of the index; None takes the one that made it.
    """

    def __init__(self, folder: Path, model: str | None = None) -> None:
        self.folder, self.model_name = folder, model
        self._index: VideoIndex | None = None
        self._lock = threading.Lock()
        self._vectors: OrderedDict[str, QueryVector] = OrderedDict()
        self._vectors_lock = threading.Lock()
        self._questions = threading.BoundedSemaphore(MAX_QUESTIONS)

    def close(self) -> None:
        """Close the index."""
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
        return self.need().model

    # Searching

    def search(self, requests: Sequence[Request]) -> list[Hits]:
        """The best segments of each search: one pass of the text encoder and one matrix product for all of them.

        Raises:
            EvilmError: one of the searches cannot be made.
        """
        index = self.need()
        vectors = self._embed(index, {text for each in requests for text in (*each.plus, *each.minus)})
        return index.search_many(
            [_combine(index, each, vectors) for each in requests],
            [each.count for each in requests], [each.where for each in requests],
            offsets=[each.offset for each in requests],
        )  # fmt: skip

    def _embed(self, index: VideoIndex, texts: set[str]) -> dict[str, QueryVector]:
        """The vectors of texts; those that are not kept are embedded together, while other threads go on."""
        with self._vectors_lock:
            found = {text: self._vectors[text] for text in texts if text in self._vectors}
        missing = sorted(texts - found.keys())
        found.update(zip(missing, index.embed_texts(missing), strict=True))
        with self._vectors_lock:
            self._vectors.update(found)
            for text in texts:
                self._vectors.move_to_end(text)
            while len(self._vectors) > VECTORS:
                self._vectors.popitem(last=False)
        return found

    def vector(self, request: Request) -> QueryVector:
        """The vector of a search.

        Raises:
            QueryError: there is nothing to search for, or it cannot be searched for.
        """
        index = self.need()
        return _combine(index, request, self._embed(index, {*request.plus, *request.minus}))

    def matching_words(self, searches: Sequence[tuple[Request, Sequence[Hit]]]) -> list[list[list[str]]]:
        """For each hit of each search, the words of the query that its segment matches, the best first."""
        index = self.need()
        words = [self._words(request) if hits else [] for request, hits in searches]
        vectors = self._embed(index, {word for some in words for word in some})
        matched: list[list[list[str]]] = []
        for start in range(0, len(searches), WORD_BLOCK):
            part = slice(start, start + WORD_BLOCK)
            columns = {word: i for i, word in enumerate(dict.fromkeys(word for some in words[part] for word in some))}
            ids = [hit.segment_id for _, hits in searches[part] for hit in hits]
            lifts = iter(index.lifts(ids, [vectors[word] for word in columns]).tolist())
            matched += [
                [_matching(next(lifts), some, columns) for _ in hits]
                for (_, hits), some in zip(searches[part], words[part], strict=True)
            ]
        return matched

    def _words(self, request: Request) -> list[str]:
        """Words of a query that a segment may match: known to the model, not too short, at most eight."""
        words = [word.strip(".,;:!?'\"").lower() for text in request.plus for word in text.split()]
        words = [word for word in words if len(word) > 2 and any(c.isalnum() for c in word)]
        words = [word for word in dict.fromkeys(words) if word not in _STOP_WORDS][:8]
        return [word for word in words if self.model.unknown_share([word]) == 0]

    def ask(self, path: Path, start: float, end: float, question: str, choices: Sequence[str]) -> dict[str, Any]:
        """The answer to a question about a part of a video.

        Raises:
            BusyError: too many questions wait.
            EvilmError: the model cannot answer, or the video cannot be read.
        """
        if not self._questions.acquire(blocking=False):
            raise BusyError
        try:
            clip = Clip(path, start, end)
            answer = self.model.ask(clip, question, tuple(choices))
            frames = [each[:2] for each in answer.attended_frames()] or self._fits(clip, question, answer)
        finally:
            self._questions.release()
        return {
            "answer": answer.answer, "probability": answer.probability, "certain": answer.confident,
            "answers": [{"answer": text, "probability": share} for text, share in answer.candidates],
            "frames": [{"time": time, "weight": weight} for time, weight in frames],
        }  # fmt: skip

    def _fits(self, clip: Clip, question: str, answer: Answer) -> list[tuple[float, float]]:
        """Times and weights of a clip's frames, for a model without attention: how well each alone fits the answer."""
        frames = self.model.read_frames(clip)
        stills = self.model.embed_frames(np.repeat(frames[:, None], len(frames), axis=1))
        [text] = self.model.embed_texts([join_question(question, answer.answer)])
        return [*zip(answer.times, softmax(stills @ text / self.model.temperature).tolist(), strict=True)]


def _combine(index: VideoIndex, request: Request, vectors: dict[str, QueryVector]) -> QueryVector:
    """The unit vector of a search: the mean of what is added less what is subtracted.

    Raises:
        QueryError: nothing is added, or there is no such segment.
    """
    parts = [vectors[text] for text in request.plus]
    if request.segment is not None:
        parts.append(index.embed(request.segment))
    if request.example is not None:
        parts.append(request.example)
    if not parts:
        raise QueryError("describe what to look for; a minus alone is not enough")
    if len(parts) == 1 and not request.minus:
        return parts[0]
    vector = np.mean([part.vector for part in parts], axis=0)
    for text in request.minus:
        vector = vector - SUBTRACT * vectors[text].vector
    unit = (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)
    return QueryVector(unit, all(part.by_text for part in parts))


def _matching(lifts: Sequence[float], words: Sequence[str], columns: dict[str, int]) -> list[str]:
    """Words of a query that a segment matches, by the lifts of the segment in the columns of the words."""
    high = [word for word in words if lifts[columns[word]] >= WORD_LIFT]
    return sorted(high, key=lambda word: -lifts[columns[word]])[:4]
