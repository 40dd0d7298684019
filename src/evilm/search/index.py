"""``VideoIndex``: a folder of videos that can be searched.

index = evilm.VideoIndex.build("~/clips", "runs/retrieval")
for hit in index.search("a dog catches a frisbee", k=5):
    print(hit.path, hit.start, hit.end, hit.score)
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from evilm import files
from evilm.data.video import DecoderPool
from evilm.errors import QueryError, VideoError, VideoIndexError
from evilm.search import binding, nearest_codes, query, vectors
from evilm.search.calibration import GOOD, UNKNOWN, UNRELATED, Calibration, labelled, lifts, sample
from evilm.search.database import NAME, UNFINISHED, Database
from evilm.search.embedder import Embedder, Matcher, unit
from evilm.search.hits import Hit, Hits
from evilm.search.nearest import Ranking, Store, chosen, ranking, store_named
from evilm.search.update import Report, Update, save_caches, writing
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

KIND = "index of videos"
INSIDE = ".evilm-index"  # where an index without a place of its own lies: hidden in its folder, so scans pass it by
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


class VideoIndex:
    """An open index; ``build`` makes one and ``open`` opens one. Searching is safe from several threads.

    Args:
        folder: of the index.
        model: the model that made it, where it is at hand; else it is loaded when it is first needed.
        store: what answers: ``exact``, ``faiss`` or ``lance``; ``auto`` takes ``exact`` until that is slow.

    Raises:
        VideoIndexError: no index, a damaged one, or one of another model.
    """

    def __init__(self, folder: Path, model: Embedder | str | Path | None = None, store: Store | str = "auto") -> None:
        self.folder = folder
        self.store: Store = store_named(store)
        self._catalogue = Database(folder)
        self._given = model
        self._model: Embedder | None = None
        self._guard = threading.RLock()
        self._matrix: vectors.Vectors | None = None
        self._sample: NDArray[np.float32] | None = None
        self._ranking: Ranking | None = None
        self._told = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; safe to call twice."""
        self._catalogue.close()

    def __len__(self) -> int:
        """How many moments there are."""
        return self._catalogue.counts[1]

    @property
    def files(self) -> int:
        """How many videos it holds."""
        return self._catalogue.counts[0]

    @property
    def model(self) -> Embedder:
        """The model that made the index.

        Raises:
            VideoIndexError: it is not to be found, or another one was given.
        """
        with self._guard:
            if self._model is None:
                made = self._catalogue.fact("model")
                if made is None:
                    raise VideoIndexError(f"{self.folder}: {UNFINISHED}")
                self._model = binding.checked(self._given or made["path"], made, self.folder)
            return self._model

    # Making

    @classmethod
    def build(
        cls, folder: str | Path, model: Embedder | str | Path | None = None, at: str | Path | None = None, *,
        config: binding.IndexConfig | None = None, workers: int = 2, batch: int = 16, forget: bool = False,
        acknowledged: Callable[[Sequence[bytes], int, int], None] | None = None,
        reported: Callable[[Report], None] | None = None,
    ) -> Self:  # fmt: skip
        """Make an index of a folder, or bring one up to date; stopped anywhere, the same call goes on.

        Args:
            folder: of videos, scanned with all below it.
            model: an ``Embedder``, or what ``evilm.load`` takes; None: the one that an existing index remembers.
            at: the index's folder; None: ``.evilm-index`` within ``folder``.
            config: how videos are cut and decoded; an existing index keeps its own.
            workers: decoding processes.
            batch: moments encoded together.
            forget: drop the videos of a folder that holds none any more.
            acknowledged: called with paths that have just become durable, files done and files to do.
            reported: called with the report.

        Raises:
            VideoIndexError: nothing to index, another model's index, or another process writes to it.
            OutputError: the index's folder holds something else, or the disk is full (what is acknowledged is kept).
        """
        videos = Path(folder).expanduser()
        place = videos / INSIDE if at is None else Path(at).expanduser()
        if not videos.is_dir():
            raise VideoIndexError(f"{videos}: no such folder of videos")
        files.check_output_dir(place, KIND)
        fresh = not (place / NAME).exists()
        if fresh and model is None:
            raise VideoIndexError(f"{place}: a new index needs a model: name one with --model")
        embedder = None if model is None else binding.loaded(model)
        files.acquire_dir(place, KIND)
        try:
            with writing(place), Database(place, write=True) as catalogue:
                embedder = binding.bind(catalogue, embedder, model)
                update = Update(
                    catalogue, embedder, binding.remembered(catalogue, embedder, config), workers, batch,
                    acknowledged=acknowledged,
                )  # fmt: skip
                report = update.run(videos, forget=forget)
        except VideoIndexError:
            if fresh:
                _discard_empty(place)
            raise
        if reported is not None:
            reported(report)
        return cls(place, embedder)

    @classmethod
    def open(cls, folder: str | Path, model: Embedder | str | Path | None = None, store: Store | str = "auto") -> Self:
        """An index that was made before.

        Args:
            folder: of the index.
            model: in place of the path that the index remembers; it must be the same model.
            store: what answers.

        Raises:
            VideoIndexError: no index, a damaged one, or one of another model.
        """
        return cls(Path(folder).expanduser(), model, store)

    def compact(self) -> None:
        """Give back the space of deleted videos and write the cache anew.

        Raises:
            VideoIndexError: another process writes to the index.
            OutputError: there is no room for it; nothing is lost.
        """
        with writing(self.folder), Database(self.folder, write=True) as catalogue:
            catalogue.compact()
            width = catalogue.fact("width")
            if width is not None:
                save_caches(catalogue, vectors.load(catalogue, width))

    def calibrate(self, pairs: Sequence[tuple[str, str | Path]]) -> Calibration:
        """Set the line of "no good match" from texts and the videos of the index that they are true of.

        Args:
            pairs: text and path, some dozens of texts; a text that is true of several videos stands with each of them.
                Pairs of videos that the index lacks are left out.

        Raises:
            VideoIndexError: fewer than two texts of videos in the index, or another process writes to it.
            VocabularyError: the model knows no word of ordinary sentences.
        """
        known = {each.path: each.id for each in self._catalogue.files()}
        own: dict[str, set[int]] = {}
        for text, path in pairs:
            if (at := known.get(_as_scanned(Path(path)))) is not None:
                own.setdefault(text, set()).add(at)
        found = self._refresh()
        if len(own) < 2 or len(np.unique(found.files)) < 2:
            raise VideoIndexError(f"{self.folder}: calibration needs at least two texts of videos in the index")
        vectors = unit(self.model.embed_texts(list(own)), "text")
        right = np.array([
            (found.vectors[np.isin(found.files, list(files))] @ vector).max()
            for vector, files in zip(vectors, own.values(), strict=True)
        ])  # fmt: skip
        others = unit(self.model.embed_texts(list(UNRELATED)), "text")
        wrong = (found.vectors @ others.T).max(0)
        among = self._sampled(found)
        result = labelled((right, lifts(right, vectors, among)), (wrong, lifts(wrong, others, among)))
        with writing(self.folder), Database(self.folder, write=True) as catalogue, catalogue.transaction():
            catalogue.set_fact("text_calibration", result.as_json())
        return result

    # Searching

    def search(self, text: str, k: int = 10, where: query.Filter | None = None, rerank: int = 0) -> Hits:
        """The moments that fit a text best.

        Args:
            text: what should be seen.
            k: how many hits.
            where: which files may be found.
            rerank: order this many of the best by the fusion decoder; their scores stay the dual encoder's.

        Raises:
            QueryError: an empty text, an endless one, or one in words that the model does not know.
            VideoIndexError: the index's model is not to be found, or another one was given.
        """
        if rerank and not _fuses(self.model):
            raise QueryError("this model has no fusion decoder to re-rank with: search without --rerank")
        plain = query.checked(text, self.model)
        vector = unit(self.model.embed_texts([plain]), "query")[0]
        hits = self._nearest(vector, max(k, rerank), where, "text_calibration")
        good = bool(hits) and hits[0].score >= GOOD
        if rerank:
            hits = self._reranked(hits, plain, rerank)
        return Hits(text, tuple(hits[:k]), not good, self._calibration("text_calibration"))

    def search_like(
        self, example: str | Path, k: int = 10, where: query.Filter | None = None, *,
        start: float = 0.0, end: float | None = None,
    ) -> Hits:  # fmt: skip
        """The moments that look most like a video, a part of one, or a picture.

        Raises:
            VideoError: the example gives no frames.
        """
        path = Path(example).expanduser()
        picture = path.suffix.lower() in PICTURES
        clip = Clip(path.parent, frames=(path.name,)) if picture else Clip(path, start, end)
        with DecoderPool() as pool:
            frames = pool.read(clip, self.model.num_frames, self.model.image_size, fit=self.model.resize_mode)
        vector = unit(self.model.embed_frames(frames[None]), "example")[0]
        hits = self._nearest(vector, k, where, "example_calibration")
        good = bool(hits) and hits[0].score >= GOOD
        return Hits(str(example), tuple(hits), not good, self._calibration("example_calibration"))

    def unreadable(self) -> list[tuple[Path, str, str]]:
        """Path, status and reason of each file that gave nothing, or not all."""
        known = self._catalogue.files()
        return [(Path(os.fsdecode(each.path)), each.status, each.reason) for each in known if each.status != "ok"]

    def _nearest(self, vector: NDArray[np.float32], k: int, where: query.Filter | None, scale: str) -> list[Hit]:
        if k < 1:
            raise QueryError(f"k = {k}: ask for at least one hit")
        hits, whole = self._once(vector, k, where, scale)
        for _ in range(2):
            if not whole:
                hits, whole = self._once(vector, k, where, scale)
        return hits

    def _once(
        self, vector: NDArray[np.float32], k: int, where: query.Filter | None, scale: str
    ) -> tuple[list[Hit], bool]:
        """The nearest moments, and whether all of them were still there when their places were looked up."""
        found = self._refresh()
        if len(found) and found.vectors.shape[1] != len(vector):
            raise VideoIndexError(
                f"{self.folder}: holds vectors of {found.vectors.shape[1]}, not {len(vector)} numbers"
            )
        allowed = np.isin(found.files, where.files(self._catalogue)) if where else None
        with self._guard:
            answering = self._ranking or self._rank(found)
            self._ranking = answering
        rows, cosines = answering.nearest(vector, k, allowed)
        places = self._catalogue.places([int(found.moments[row]) for row in rows])
        scores = self._calibration(scale).score(cosines, lifts(cosines, vector, self._sampled(found)))
        hits: list[Hit] = []
        for row, cosine, score in zip(rows, cosines, scores, strict=True):
            if (place := places.get(int(found.moments[row]))) is not None:
                path, start, end = place
                hits.append(Hit(Path(os.fsdecode(path)), start, end, float(score), float(cosine)))
        return hits, len(hits) == len(rows)

    def _rank(self, found: vectors.Vectors) -> Ranking:
        """What answers now; that it is FAISS, without having been asked for, is said once."""
        store = chosen(self.store, *found.vectors.shape)
        if store not in {self.store, "exact"} and not self._told:
            from evilm.progress import say

            self._told = True
            say(
                f"{self.folder}: {len(found):,} moments, so {store} answers; exact looks at every vector, and is slower"
            )
        return ranking(store, found, self._catalogue)

    def _refresh(self) -> vectors.Vectors:
        """The vectors as they are now."""
        with self._guard:
            width = self._catalogue.fact("width")
            found = vectors.load(self._catalogue, width, self._matrix)
            if found is not self._matrix:
                self._matrix, self._ranking, self._sample = found, None, None
            return found

    def _sampled(self, found: vectors.Vectors) -> NDArray[np.float32]:
        """Some of the vectors, by which a search's cosines are known."""
        with self._guard:
            if self._sample is None or self._matrix is not found:
                self._sample = sample(found.vectors)
            return self._sample

    def _calibration(self, name: str) -> Calibration:
        value = self._catalogue.fact(name)
        return UNKNOWN if value is None else Calibration.from_json(value)

    def _reranked(self, hits: list[Hit], text: str, count: int) -> list[Hit]:
        """The first ``count`` hits in the fusion decoder's order; what cannot be read any more comes last of them."""
        model = self.model
        assert isinstance(model, Matcher)
        fits: dict[Hit, float] = {}
        for hit in hits[:count]:
            try:
                fits[hit] = float(model.match([(hit.path, hit.start, hit.end)], [text])[0, 0])
            except VideoError:
                fits[hit] = -np.inf
        return [*sorted(fits, key=lambda hit: -fits[hit]), *hits[count:]]


def _fuses(model: Embedder) -> bool:
    """Whether a model can look at a text and a video together."""
    about = getattr(model, "about", None)
    return isinstance(model, Matcher) and (about is None or "match" in about.heads)


def _as_scanned(path: Path) -> bytes:
    """A path as the scan writes it: its folder without links, its own name as it is."""
    path = path.expanduser()
    return os.fsencode(path.parent.resolve() / path.name)


def _discard_empty(place: Path) -> None:
    """Remove a new index that took in nothing, so that a mistyped folder leaves no trace."""
    try:
        with Database(place) as catalogue:
            if catalogue.counts != (0, 0) or any(True for _ in catalogue.files()):
                return
    except VideoIndexError:
        return
    for name in (NAME, f"{NAME}-wal", f"{NAME}-shm", "lock", vectors.NAME, nearest_codes.NAME):
        (place / name).unlink(missing_ok=True)
    files.release_dir(place)
