"""A trained model in use: ``evilm.load`` gives one ``Embedder``, whichever form the model has.

    model = evilm.load("runs/retrieval")            # a run or checkpoint (needs torch), an export, or a hub's name
    videos = model.embed_videos(["a.mp4", ("b.mp4", 10.0, 15.0)])
    scores = videos.vectors @ model.embed_texts(["a dog catches a frisbee"]).T

A video is a path, or (path, start, end) in seconds, or a ``Clip``. Nothing here needs torch for an exported model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from evilm import checkpoint
from evilm.data import frames as sampling
from evilm.data.video import VideoReader, read_clip
from evilm.errors import CheckpointError, ConfigError, DataError, DependencyError, VideoError
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from evilm.data.video import Mode
    from evilm.errors import VideoStatus
    from evilm.export.engine import About, Engine, Head

    Video = str | Path | tuple[str | Path, float, float | None] | Clip
    Device = Literal["auto", "cpu", "cuda"]

EXPORT = "export.json"  # what tells an exported folder from a checkpoint
_AT_ONCE = 16  # clips, or texts times 4, that go through a graph together


@dataclass(frozen=True, slots=True)
class VideoEmbeddings:
    """What became of some videos.

    Attributes:
        vectors: (n, d) float32, l2-normalised; a row of zeros where the video could not be read.
        statuses: (n,) ``ok``, or why not: one of ``errors.VideoStatus``.
        problems: (n,) one line of explanation where the status is not ``ok``, else empty.
    """

    vectors: NDArray[np.float32]
    statuses: tuple[VideoStatus, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, how sure it is, and what was looked at.

    Attributes:
        answer: the most probable one.
        probability: of it, among all candidates.
        known: False when the probability is below the threshold that validation data set: "cannot tell".
        threshold: that threshold; None where none was set, and every answer is then ``known``.
        candidates: the most probable answers with their probabilities, best first.
        times: (T,) seconds of the frames that were looked at; their numbers, for a clip of stills.
        looked: (T, h, w) share of the attention on each region, sums to 1.
    """

    answer: str
    probability: float
    known: bool
    threshold: float | None
    candidates: tuple[tuple[str, float], ...]
    times: tuple[float, ...]
    looked: NDArray[np.float32]


class Embedder:
    """A video-language model that can be asked.

    Args:
        engine: the model in one of its forms.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __repr__(self) -> str:
        return f"Embedder({self.about.task}, {self.form}, heads: {', '.join(self.about.heads)}, {self.fingerprint})"

    # What it is

    @property
    def about(self) -> About:
        """What the model takes and gives."""
        return self.engine.about

    @property
    def fingerprint(self) -> str:
        """Names the weights in their form: vectors of equal fingerprints may be compared."""
        return self.engine.fingerprint

    @property
    def form(self) -> str:
        """How the model is run, such as ``onnx int8``."""
        return self.engine.form

    @property
    def frames(self) -> int:
        """T, how many frames ``embed_frames`` takes of a clip: one from the middle of each of T equal segments."""
        return self.about.frames

    @property
    def size(self) -> int:
        """Pixels of a frame's side."""
        return self.about.size

    @property
    def fit(self) -> Literal["crop", "squash"]:
        """How a picture becomes square, as ``read_clip`` takes it."""
        return self.about.fit

    @property
    def dimensions(self) -> int:
        """d, the width of the embeddings.

        Raises:
            ConfigError: the model embeds nothing.
        """
        self._need("embed_video")
        return int(self.about.embedding or 0)

    @property
    def temperature(self) -> float:
        """Of cosines: ``softmax(cosines / temperature)`` are the probabilities that training fitted."""
        return float(self.about.temperature or 1.0)

    # Vectors

    def read(self, video: Video, mode: Mode = "exact") -> NDArray[np.uint8]:
        """The frames that the model would look at, (T, size, size, 3).

        Raises:
            VideoError: the video gives none.
        """
        return read_clip(clip_of(video), self.frames, self.size, mode=mode, fit=self.fit)

    def embed_videos(
        self, videos: Sequence[Video], *, mode: Mode = "exact", progress: Callable[[int], None] | None = None
    ) -> VideoEmbeddings:
        """Videos to unit vectors.

        Args:
            videos: paths, (path, start, end), or clips.
            mode: ``exact`` frames, or ``fast``: keyframes.
            progress: called with how many videos are done by now.

        Returns:
            a row for each video, also for those that could not be read.
        """
        vectors = np.zeros((len(videos), self.dimensions), dtype=np.float32)
        statuses: list[VideoStatus] = []
        problems: list[str] = []
        for start in range(0, len(videos), _AT_ONCE):
            rows: list[int] = []
            pixels: list[NDArray[np.uint8]] = []
            for row, video in enumerate(videos[start : start + _AT_ONCE], start):
                try:
                    pixels.append(self.read(video, mode))
                except VideoError as error:
                    statuses.append(error.status)
                    problems.append(str(error))
                else:
                    rows.append(row)
                    statuses.append("ok")
                    problems.append("")
            if rows:
                vectors[rows] = self.embed_frames(np.stack(pixels))
            if progress is not None:
                progress(min(start + _AT_ONCE, len(videos)))
        return VideoEmbeddings(vectors, tuple(statuses), tuple(problems))

    def embed_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Clips (n, T, size, size, 3), as ``read`` gives them, to unit vectors (n, d).

        Raises:
            DataError: pixels of another shape or kind.
        """
        self._need("embed_video")
        regions = self.encode_frames(frames)
        return self._apart("embed_video", regions, np.ones(regions.shape[:2], dtype=np.bool_))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Sentences to unit vectors (n, d), in the space of the videos'.

        Raises:
            VocabularyError: no text, or one that cannot be encoded.
        """
        self._need("embed_text")
        return self._apart("embed_text", *self.encode_texts(texts))

    def encode_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Clips (n, T, size, size, 3) to regions (n, N, D), which ``match_encoded`` takes again.

        Raises:
            DataError: pixels of another shape or kind.
        """
        if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[1:] != (self.frames, self.size, self.size, 3):
            wanted = f"(n, {self.frames}, {self.size}, {self.size}, 3)"
            raise DataError(f"frames are {frames.dtype} {frames.shape}, and this model takes uint8 {wanted}")
        if not len(frames):
            return np.zeros((0, self.frames * self.about.grid[0] * self.about.grid[1], self.about.width), np.float32)
        parts = [self.engine.video(frames[i : i + _AT_ONCE]) for i in range(0, len(frames), _AT_ONCE)]
        return np.concatenate(parts)

    def encode_texts(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Sentences to words (n, L, D) and their mask (n, L).

        Raises:
            VocabularyError: no text, or one that cannot be encoded.
        """
        ids, mask = self.engine.vocabulary.encode_arrays(texts, self.about.words)
        step = 4 * _AT_ONCE
        parts = [self.engine.text(ids[i : i + step], mask[i : i + step]) for i in range(0, len(ids), step)]
        return np.concatenate(parts), mask

    # Questions

    def match(self, videos: Sequence[Video], texts: Sequence[str]) -> NDArray[np.float32]:
        """How well each text fits each video, (videos, texts); higher is better.

        By the fusion decoder's match head where there is one, else the cosine of embeddings.

        Raises:
            VideoError: a video gives no frames.
        """
        frames = np.stack([self.read(video) for video in videos])
        if "match" not in self.about.heads:
            return self.embed_frames(frames) @ self.embed_texts(texts).T
        return self.match_encoded(self.encode_frames(frames), *self.encode_texts(texts))

    def match_encoded(
        self, regions: NDArray[np.float32], words: NDArray[np.float32], mask: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """The match head's logits (videos, texts) of what ``encode_frames`` and ``encode_texts`` gave."""
        self._need("match")
        rows = [self._fused("match", np.broadcast_to(own, (len(words), *own.shape)), words, mask)[0] for own in regions]
        return np.stack([row[:, 0] for row in rows])

    def answer(self, video: Video, question: str, choices: Sequence[str] = ()) -> Answer:
        """A question about a video, answered from the model's answers, or from ``choices`` of them.

        Raises:
            ConfigError: the model answers no questions, or knows none of the choices.
            VideoError, VocabularyError: the video gives no frames, the question no words.
        """
        self._need("answer")
        names = list(dict.fromkeys(choices)) or list(self.about.answers)
        unknown = [name for name in names if name not in self.about.answers]
        if unknown:
            raise ConfigError(
                f"this model does not know the answer {unknown[0]!r}; it knows {', '.join(self.about.answers[:12])}"
                f"{', ...' if len(self.about.answers) > 12 else ''}"
            )
        words, mask = self.encode_texts([question])
        logits, looked = self._fused("answer", self.encode_frames(self.read(video)[None]), words, mask)
        columns = [self.about.answers.index(name) for name in names]
        return self._answer(video, names, logits[0, columns], looked[0])

    def choose(self, video: Video, choices: Sequence[str], question: str | None = None) -> Answer:
        """The choice that fits a video best: the match head on each, with the question before it where there is one.

        Raises:
            ConfigError: fewer than two choices, or a model that cannot match.
            VideoError, VocabularyError: the video gives no frames, a choice no words.
        """
        names = list(dict.fromkeys(choices))
        if len(names) < 2:
            raise ConfigError(f"a choice needs at least two different options, and there are {len(names)}")
        self._need("match")
        words, mask = self.encode_texts([f"{question} {name}" if question else name for name in names])
        regions = self.encode_frames(self.read(video)[None])
        logits, looked = self._fused("match", np.repeat(regions, len(names), 0), words, mask)
        return self._answer(video, names, logits[:, 0], looked[int(logits[:, 0].argmax())])

    def classify(self, videos: Sequence[Video], names: Sequence[str] = ()) -> list[tuple[tuple[str, float], ...]]:
        """Names with their probabilities for each video, best first.

        Args:
            videos: to be named.
            names: of classes, for a model that embeds (zero-shot); without any, the trained probe's own.

        Raises:
            ConfigError: neither a probe nor embeddings.
            VideoError: a video gives no frames.
        """
        frames = np.stack([self.read(video) for video in videos])
        if names:
            self._need("embed_text")
            logits = self.embed_frames(frames) @ self.embed_texts(names).T / self.temperature
        else:
            self._need("classify")
            regions = self.encode_frames(frames)
            logits = self._apart("classify", regions, np.ones(regions.shape[:2], dtype=np.bool_))
        return [_ranked(list(names) or list(self.about.classes), softmax(row)) for row in logits]

    # How

    def _need(self, head: Head) -> None:
        if head not in self.about.heads:
            what, how = _LACKS[head]
            raise ConfigError(f"this {self.about.task} model {what}: {how}")

    def _apart(self, head: Head, tokens: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """A head on h^CLS of one modality alone, (n, K)."""
        parts = [
            self.engine.head(head, self.engine.fuse(tokens[i : i + _AT_ONCE], mask[i : i + _AT_ONCE])[0])
            for i in range(0, len(tokens), _AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.dimensions), dtype=np.float32)

    def _fused(
        self, head: Head, regions: NDArray[np.float32], words: NDArray[np.float32], mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A head on h^CLS of both modalities, (n, K), and the attention on regions (n, N)."""
        logits: list[NDArray[np.float32]] = []
        looked: list[NDArray[np.float32]] = []
        for i in range(0, len(words), _AT_ONCE):
            text, video = words[i : i + _AT_ONCE], regions[i : i + _AT_ONCE]
            seen = np.concatenate([mask[i : i + _AT_ONCE], np.ones(video.shape[:2], dtype=np.bool_)], 1)
            cls, attention = self.engine.fuse(np.concatenate([text, video], 1), seen)
            logits.append(self.engine.head(head, cls))
            looked.append(attention[:, text.shape[1] :])
        return np.concatenate(logits), np.concatenate(looked)

    def _answer(
        self, video: Video, names: list[str], logits: NDArray[np.float32], looked: NDArray[np.float32]
    ) -> Answer:
        ranked = _ranked(names, softmax(logits))
        (best, probability), threshold = ranked[0], self.about.cannot_tell
        height, width = self.about.grid
        return Answer(
            answer=best,
            probability=probability,
            known=threshold is None or probability >= threshold.probability,
            threshold=None if threshold is None else threshold.probability,
            candidates=ranked[:5],
            times=times(clip_of(video), self.frames),
            looked=(looked / max(1e-9, float(looked.sum()))).reshape(self.frames, height, width),
        )


_LACKS: dict[Head, tuple[str, str]] = {
    "embed_video": ("embeds nothing", "take a retrieval model, or one pre-trained with task.contrastive > 0"),
    "embed_text": ("embeds nothing", "take a retrieval model, or one pre-trained with task.contrastive > 0"),
    "match": ("matches no texts with videos", "take a multiple_choice model, or one pre-trained with task.vtm > 0"),
    "answer": ("answers no questions", "take a question_answering model, or name choices of a multiple_choice one"),
    "classify": ("has no classes of its own", "give names, or take a linear_probe model"),
}


def load(model: str | Path, *, device: Device = "auto") -> Embedder:
    """A trained model, ready to be asked.

    Args:
        model: the folder of an export; of a run or checkpoint (needs torch); or a name on the hub (``owner/name``).
        device: where a checkpoint runs.

    Raises:
        CheckpointError: no such model, or it is damaged or not to be trusted.
        DependencyError: torch is missing and the folder is a checkpoint.
    """
    path = Path(model).expanduser()
    if not path.exists():
        from evilm.export import hub

        if not hub.is_name(str(model)):
            raise CheckpointError(
                f"{model}: no such model; name the folder of an export, a run or a checkpoint, or owner/name on the hub"
            )
        path = hub.download(str(model))
    try:
        from evilm.export.torch_engine import TorchEngine
    except ModuleNotFoundError as error:
        checkpoint.find(path)
        raise DependencyError(
            f"{path}: is a checkpoint, which needs {error.name}: pip install 'evilm[train]', or load an export of it"
        ) from None
    return Embedder(TorchEngine(path, device))


def clip_of(video: Video) -> Clip:
    """A video in whichever way it was named."""
    if isinstance(video, Clip):
        return video
    if isinstance(video, tuple):
        path, start, end = video
        return Clip(Path(path), float(start), None if end is None else float(end))
    return Clip(Path(video))


def times(clip: Clip, count: int) -> tuple[float, ...]:
    """The moments that are looked at: seconds in the file, or numbers of frames for a clip of stills.

    Raises:
        VideoError: the video cannot be opened.
    """
    if clip.frames:
        return tuple(float(i) for i in sampling.pick(len(clip.frames), count))
    with VideoReader(clip.path) as reader:
        whole = reader.duration
    end = whole if clip.end is None else min(clip.end, whole)
    return tuple(float(t) for t in sampling.segments(count, max(end - clip.start, 0.0), None, clip.start))


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (K,) to probabilities."""
    shares = np.exp(logits.astype(np.float64) - float(logits.max()))
    return (shares / shares.sum()).astype(np.float32)


def _ranked(names: Sequence[str], shares: NDArray[np.float32]) -> tuple[tuple[str, float], ...]:
    """Names with their shares, largest first."""
    return tuple((names[int(k)], float(shares[k])) for k in np.argsort(-shares, kind="stable"))
