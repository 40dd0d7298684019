"""A trained model in use: videos, texts and questions in, vectors and answers out."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import numpy as np

from evilm.data.video import DecoderPool
from evilm.errors import ConfigError, DataError, OutputError, VideoError
from evilm.inference import loading
from evilm.inference.results import (
    Answer,
    VideoEmbeddings,
    frame_times,
    join_question,
    rank_names,
    softmax,
    to_clip,
)
from evilm.inference.runtime import EncodedArrays

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.data.video import Fit, Mode
    from evilm.errors import VideoStatus
    from evilm.inference.loading import Device
    from evilm.inference.results import Video
    from evilm.inference.runtime import Head, Metadata, Runtime

_DECODERS = 4  # processes at most: beyond that the model is what takes the time
_AT_ONCE = 16  # clips, or texts times 4, that go through a graph together


class Embedder:
    """A video-language model that can be asked.

    Videos are decoded in processes of its own, which begin with the first video and may be killed: a file that crashes,
    hangs or wants too much memory gives an error, and nothing else happens. ``close``, or a ``with`` block, ends them;
    else they end with the program.

    Args:
        engine: the model in one of its forms.
    """

    def __init__(self, engine: Runtime) -> None:
        self.runtime = engine
        self.decoders = DecoderPool(min(_DECODERS, os.cpu_count() or 1))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes that decode; another video would start new ones."""
        self.decoders.close()

    def __repr__(self) -> str:
        return (
            f"Embedder({self.metadata.task}, {self.form}, heads: {', '.join(self.metadata.heads)}, {self.fingerprint})"
        )

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: Device = "auto", threads: int | None = None) -> Embedder:
        """``load``, by the name that the hub's libraries have for it."""
        return load(name, device=device, threads=threads)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Publish the model's folder as ``owner/name`` on the hub, with its card; where it lies now.

        Raises:
            DependencyError: huggingface_hub is missing.
            OutputError: the hub cannot be reached, or refuses.
        """
        from evilm.export import hub

        if self.runtime.folder is None:
            raise OutputError(f"{name}: {self.form} is another library's model: publish it by that library's means")
        return hub.upload(self.runtime.folder, name, self.metadata, private=private)

    # What it is

    @property
    def metadata(self) -> Metadata:
        """What the model takes and gives."""
        return self.runtime.metadata

    @property
    def fingerprint(self) -> str:
        """Names the weights in their form: vectors of equal fingerprints may be compared."""
        return self.runtime.fingerprint

    @property
    def form(self) -> str:
        """How the model is run, such as ``onnx int8``."""
        return self.runtime.form

    @property
    def num_frames(self) -> int:
        """T, how many frames ``embed_frames`` takes of a clip: one from the middle of each of T equal segments."""
        return self.metadata.num_frames

    @property
    def image_size(self) -> int:
        """Pixels of a frame's side."""
        return self.metadata.image_size

    @property
    def resize_mode(self) -> Fit:
        """How a picture becomes square, as ``read_clip`` takes it."""
        return self.metadata.resize_mode

    @property
    def embed_dim(self) -> int:
        """d, the width of the embeddings.

        Raises:
            ConfigError: the model embeds nothing.
        """
        self._need("embed_video")
        return int(self.metadata.embed_dim or 0)

    @property
    def temperature(self) -> float:
        """Of cosines: ``softmax(cosines / temperature)`` are the probabilities that training fitted."""
        return float(self.metadata.temperature or 1.0)

    def unknown_share(self, texts: Sequence[str]) -> float:
        """The share of word pieces in ``texts`` that the model does not know."""
        return self.runtime.vocabulary.unknown_share(texts)

    # Vectors

    def read_frames(self, video: Video, mode: Mode = "exact") -> NDArray[np.uint8]:
        """The frames that the model would look at, (T, size, size, 3).

        Raises:
            VideoError: the video gives none.
        """
        return self.decoders.read(to_clip(video), self.num_frames, self.image_size, mode=mode, fit=self.resize_mode)

    def _read_all(self, videos: Sequence[Video], mode: Mode) -> list[NDArray[np.uint8] | VideoError]:
        """``read`` of some videos side by side; its error in the place of what cannot be read."""

        def attempt(video: Video) -> NDArray[np.uint8] | VideoError:
            try:
                return self.read_frames(video, mode)
            except VideoError as error:
                return error

        with ThreadPoolExecutor(self.decoders.count) as threads:
            try:
                return list(threads.map(attempt, videos))
            except BaseException:  # Ctrl-C: not the videos that wait, too
                threads.shutdown(wait=False, cancel_futures=True)
                raise

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
        vectors = np.zeros((len(videos), self.embed_dim), dtype=np.float32)
        statuses: list[VideoStatus] = []
        problems: list[str] = []
        for start in range(0, len(videos), _AT_ONCE):
            rows: list[int] = []
            pixels: list[NDArray[np.uint8]] = []
            for row, found in enumerate(self._read_all(videos[start : start + _AT_ONCE], mode), start):
                if isinstance(found, VideoError):
                    statuses.append(found.status)
                    problems.append(str(found))
                else:
                    pixels.append(found)
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
        encoded = self.encode_frames(frames)
        return self.runtime.apply_head("embed_video", self._fuse_alone(encoded), encoded.pooled)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Sentences to unit vectors (n, d), in the space of the videos'.

        Raises:
            VocabularyError: no text, or one that cannot be encoded.
        """
        self._need("embed_text")
        encoded = self.encode_texts(texts)
        return self.runtime.apply_head("embed_text", self._fuse_alone(encoded), encoded.pooled)

    def cls_of_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """h^CLS of clips alone, (n, D), which probes classify."""
        return self._fuse_alone(self.encode_frames(frames))

    def cls_of_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """h^CLS of sentences alone, (n, D)."""
        return self._fuse_alone(self.encode_texts(texts))

    def encode_frames(self, frames: NDArray[np.uint8]) -> EncodedArrays:
        """Clips (n, T, size, size, 3) to patches (n, N, D), for ``match_encoded`` and ``score_choices``.

        Raises:
            DataError: pixels of another shape or kind.
        """
        if (
            frames.dtype != np.uint8
            or frames.ndim != 5
            or frames.shape[1:] != (self.num_frames, self.image_size, self.image_size, 3)
        ):
            wanted = f"(n, {self.num_frames}, {self.image_size}, {self.image_size}, 3)"
            raise DataError(f"frames are {frames.dtype} {frames.shape}, and this model takes uint8 {wanted}")
        if not len(frames):
            return self.encode_frames(np.zeros((1, *frames.shape[1:]), np.uint8))[:0]
        rows = range(0, len(frames), _AT_ONCE)
        return EncodedArrays.concatenate([self.runtime.encode_video(frames[i : i + _AT_ONCE]) for i in rows])

    def encode_texts(self, texts: Sequence[str]) -> EncodedArrays:
        """Sentences to words (n, L, D) and their mask (n, L).

        Raises:
            VocabularyError: no text, or one that cannot be encoded.
        """
        ids, mask = self.runtime.vocabulary.encode_arrays(texts, self.metadata.max_text_len)
        step = 4 * _AT_ONCE
        rows = range(0, len(ids), step)
        return EncodedArrays.concatenate(
            [self.runtime.encode_text(ids[i : i + step], mask[i : i + step]) for i in rows]
        )

    # Questions

    def match(self, videos: Sequence[Video], texts: Sequence[str]) -> NDArray[np.float32]:
        """How well each text fits each video, (videos, texts); higher is better.

        By the fusion decoder's match head where there is one, else the cosine of embeddings.

        Raises:
            VideoError: a video gives no frames.
        """
        frames = np.stack([self.read_frames(video) for video in videos])
        if "match" not in self.metadata.heads:
            return self.embed_frames(frames) @ self.embed_texts(texts).T
        return self.match_encoded(self.encode_frames(frames), self.encode_texts(texts))

    def match_encoded(self, videos: EncodedArrays, texts: EncodedArrays) -> NDArray[np.float32]:
        """The match head's logits (videos, texts) of what ``encode_frames`` and ``encode_texts`` gave."""
        self._need("match")
        rows = [self.score_fused("match", videos[i : i + 1], texts)[0] for i in range(len(videos))]
        return np.stack([row[:, 0] for row in rows])

    def answer(self, video: Video, question: str, choices: Sequence[str] = ()) -> Answer:
        """A question about a video, answered from the model's answers, or from ``choices`` of them.

        Raises:
            ConfigError: the model answers no questions, or knows none of the choices.
            VideoError, VocabularyError: the video gives no frames, the question no words.
        """
        self._need("answer")
        names = list(dict.fromkeys(choices)) or list(self.metadata.answers)
        unknown = [name for name in names if name not in self.metadata.answers]
        if unknown:
            raise ConfigError(
                f"this model does not know the answer {unknown[0]!r}; it knows {', '.join(self.metadata.answers[:12])}"
                f"{', ...' if len(self.metadata.answers) > 12 else ''}"
            )
        encoded = self.encode_frames(self.read_frames(video)[None])
        logits, looked = self.score_fused("answer", encoded, self.encode_texts([question]))
        columns = [self.metadata.answers.index(name) for name in names]
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
        logits, looked = self.score_choices(self.encode_frames(self.read_frames(video)[None]), names, question)
        return self._answer(video, names, logits, looked)

    def score_choices(
        self, video: EncodedArrays, choices: Sequence[str], question: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits (K,) of choices for one encoded video, and the attention (N,) of the best choice.

        By the match head; without one, by cosines in the temperature that they were trained with.

        Raises:
            ConfigError: the model has neither.
        """
        texts = self.encode_texts([join_question(question, name) for name in choices])
        if "match" in self.metadata.heads or not {"embed_video", "embed_text"} <= {*self.metadata.heads}:
            self._need("match")
            logits, looked = self.score_fused("match", video, texts)
            return logits[:, 0], looked[int(logits[:, 0].argmax())]
        cls, looked = self.runtime.fuse(video.tokens, video.mask)
        vector = self.runtime.apply_head("embed_video", cls, video.pooled)[0]
        vectors = self.runtime.apply_head("embed_text", self._fuse_alone(texts), texts.pooled)
        return (vectors @ vector) / self.temperature, looked[0]

    def ask(self, video: Video, question: str, choices: Sequence[str] = ()) -> Answer:
        """A question with or without choices, by whichever head can answer it.

        Raises:
            ConfigError, VideoError, VocabularyError: as ``answer`` and ``choose`` do.
        """
        if not question.strip():
            raise ConfigError("the question is empty: ask something, such as 'what color is the car?'")
        if "answer" in self.metadata.heads or not choices:
            return self.answer(video, question, choices)
        return self.choose(video, choices, question)

    def classify(self, videos: Sequence[Video], names: Sequence[str] = ()) -> list[tuple[tuple[str, float], ...]]:
        """Names with their probabilities for each video, best first.

        Args:
            videos: to be named.
            names: of classes, for a model that embeds (zero-shot); without any, the trained probe's own.

        Raises:
            ConfigError: neither a probe nor embeddings.
            VideoError: a video gives no frames.
        """
        frames = np.stack([self.read_frames(video) for video in videos])
        if names:
            self._need("embed_text")
            logits = self.embed_frames(frames) @ self.embed_texts(names).T / self.temperature
        else:
            logits = self.score_classes(frames)
        return [rank_names(list(names) or list(self.metadata.classes), softmax(row)) for row in logits]

    def score_classes(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits (n, K) of the trained probe's classes, from clips (n, T, size, size, 3).

        Raises:
            ConfigError: the model has no probe.
        """
        self._need("classify")
        return self.runtime.apply_head("classify", self.cls_of_frames(frames))

    # How

    def _need(self, head: Head) -> None:
        if head not in self.metadata.heads:
            what, how = _LACKS[head]
            raise ConfigError(f"this {self.metadata.task} model {what}: {how}")

    def score_fused(
        self, head: Head, videos: EncodedArrays, texts: EncodedArrays
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A head on h^CLS of both modalities, (n, K), and its attention on patches (n, N).

        Args:
            head: ``answer`` or ``match``.
            videos: n of them, or one for all texts.
            texts: n of them.
        """
        logits: list[NDArray[np.float32]] = []
        looked: list[NDArray[np.float32]] = []
        for i in range(0, len(texts), _AT_ONCE):
            text, video = texts[i : i + _AT_ONCE], videos if len(videos) == 1 else videos[i : i + _AT_ONCE]
            patches = np.broadcast_to(video.tokens, (len(text), *video.tokens.shape[1:]))
            seen = np.concatenate([text.mask, np.broadcast_to(video.mask, patches.shape[:2])], 1)
            cls, attention = self.runtime.fuse(np.concatenate([text.tokens, patches], 1), seen)
            logits.append(self.runtime.apply_head(head, cls))
            looked.append(attention[:, text.mask.shape[1] :])
        return np.concatenate(logits), np.concatenate(looked)

    def _fuse_alone(self, encoded: EncodedArrays) -> NDArray[np.float32]:
        """h^CLS of one modality alone, (n, D)."""
        parts = [encoded[i : i + _AT_ONCE] for i in range(0, len(encoded), _AT_ONCE)]
        states = [self.runtime.fuse(part.tokens, part.mask)[0] for part in parts]
        return np.concatenate(states) if states else np.zeros((0, self.metadata.hidden_dim), dtype=np.float32)

    def _answer(
        self, video: Video, names: list[str], logits: NDArray[np.float32], looked: NDArray[np.float32]
    ) -> Answer:
        order = rank_names(names, softmax(logits))
        (best, probability), threshold = order[0], self.metadata.answer_threshold
        height, width = self.metadata.grid
        return Answer(
            answer=best,
            probability=probability,
            confident=threshold is None or probability >= threshold.probability,
            threshold=None if threshold is None else threshold.probability,
            candidates=order[:5],
            times=frame_times(to_clip(video), self.num_frames, self.decoders),
            attention=(looked / max(1e-9, float(looked.sum()))).reshape(self.num_frames, height, width),
        )


_LACKS: dict[Head, tuple[str, str]] = {
    "embed_video": ("embeds nothing", "take a retrieval model, or one pre-trained with task.contrastive_weight > 0"),
    "embed_text": ("embeds no texts", "take a retrieval model, or one pre-trained with task.contrastive_weight > 0"),
    "match": (
        "matches no texts with videos",
        "take a multiple_choice model, or one pre-trained with task.vtm_weight > 0",
    ),
    "answer": ("answers no questions", "take a question_answering model, or name choices of a multiple_choice one"),
    "classify": ("has no classes of its own", "give names, or take a linear_probe model"),
}


def load(model: str | Path, *, device: Device = "auto", threads: int | None = None) -> Embedder:
    """Load a trained model.

    Args:
        model: the folder of an export, or of a run or checkpoint (needs torch); a bundled model (see
            ``loading.BUNDLED``); a name on the hub (``owner/name``); or a dual encoder of another library, such as
            ``open_clip:ViT-B-32:laion2b_s34b_b79k`` (see ``evilm.encoders``).
        device: where a checkpoint or a dual encoder runs; an export runs on the CPU.
        threads: of an export; None takes one for each core. Torch has its own setting.

    Raises:
        CheckpointError: no such model, or it is damaged or refused.
        DependencyError: the model needs a library that is not installed.
    """
    return Embedder(loading.open_runtime(model, device=device, threads=threads))
