"""The part of a trained model in use that makes vectors: videos, pictures and texts to embeddings."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from evilm.data.video import DecoderPool
from evilm.errors import ConfigError, DataError, VideoError
from evilm.inference import loading
from evilm.inference.results import VideoEmbeddings, to_clip
from evilm.inference.runtime import EncodedArrays

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from evilm.data.video import Fit, Mode
    from evilm.errors import VideoStatus
    from evilm.inference.results import Picture, Video
    from evilm.inference.runtime import Head, Metadata, Runtime

BATCH = 16  # clips in one call of a graph, and a quarter of the texts
_MAX_DECODERS = 4  # processes; with more, the model is the bottleneck

# What to do about a head that is missing.
_MISSING: dict[Head, tuple[str, str]] = {
    "embed_video": ("has no embeddings", "use a retrieval model, or one pre-trained with task.contrastive_weight > 0"),
    "embed_text": (
        "has no text embeddings",
        "use a retrieval model, or one pre-trained with task.contrastive_weight > 0",
    ),
    "match": ("has no match head", "use a multiple_choice model, or one pre-trained with task.vtm_weight > 0"),
    "answer": ("has no answers of its own", "use a question_answering model"),
    "classify": ("has no classes of its own", "give class names, or use a linear_probe model"),
}


class EmbeddingModel:
    """A video-language model that embeds; ``Embedder`` adds questions and classes.

    Files are decoded in separate processes that start with the first video. A file that crashes the decoder, hangs or
    needs too much memory raises a VideoError and has no other effect. ``close``, or a ``with`` block, ends the
    processes. All methods may be called from several threads at once, except ``close``.

    Args:
        runtime: the model in one of its forms.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.decoders = DecoderPool(min(_MAX_DECODERS, os.cpu_count() or 1))
        self._pools_frames = runtime.metadata.embedding == "pooled"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the decoder processes; the next video starts new ones."""
        self.decoders.close()

    def __repr__(self) -> str:
        heads = ", ".join(self.metadata.heads)
        return f"{type(self).__name__}({self.metadata.task}, {self.form}, heads: {heads}, {self.fingerprint})"

    @property
    def metadata(self) -> Metadata:
        """What the model takes and gives."""
        return self.runtime.metadata

    @property
    def description(self) -> str:
        """One line: what the model was trained on, if that is known, else its task."""
        name = loading.bundled_name(self.runtime.folder)
        return loading.BUNDLED[name] if name else f"{self.metadata.task.replace('_', ' ')} model"

    @property
    def fingerprint(self) -> str:
        """Identifies the weights and their precision. Vectors of equal fingerprints are comparable."""
        return self.runtime.fingerprint

    @property
    def form(self) -> str:
        """How the model is run, such as ``onnxruntime int8``."""
        return self.runtime.form

    @property
    def num_frames(self) -> int:
        """T, frames of a clip: one from the middle of each of T equal parts."""
        return self.metadata.num_frames

    @property
    def image_size(self) -> int:
        """H = W of a frame in pixels."""
        return self.metadata.image_size

    @property
    def resize_mode(self) -> Fit:
        """How a picture becomes square, see ``pictures.to_rgb``."""
        return self.metadata.resize_mode

    @property
    def embed_dim(self) -> int:
        """d, the width of the embeddings.

        Raises:
            ConfigError: the model has no embeddings.
        """
        self.need("embed_video")
        return int(self.metadata.embed_dim or 0)

    @property
    def temperature(self) -> float:
        """Temperature of training: ``softmax(cosines / temperature)`` are probabilities."""
        return float(self.metadata.temperature or 1.0)

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Fraction of the word pieces of ``texts`` that are not in the vocabulary."""
        return self.runtime.vocabulary.unknown_share(texts)

    # Pixels

    def read_frames(self, video: Video, mode: Mode = "exact") -> NDArray[np.uint8]:
        """The frames that the model takes of a video, (T, H, W, 3).

        Raises:
            VideoError: the video has no readable frame.
        """
        return self.decoders.read(to_clip(video), self.num_frames, self.image_size, mode=mode, fit=self.resize_mode)

    def read_picture(self, picture: Picture) -> NDArray[np.uint8]:
        """A still picture as a clip of T equal frames, (T, H, W, 3).

        Args:
            picture: a file, its content, a PIL image, or an array (H, W, 3) uint8 RGB.

        Raises:
            VideoError: the picture is missing, damaged, too large or not supported.
        """
        if isinstance(picture, bytes):
            with tempfile.TemporaryDirectory(prefix="evilm-picture-") as folder:
                path = Path(folder) / "picture"
                path.write_bytes(picture)
                return self.read_picture(path)
        if isinstance(picture, str | Path):
            frame = self.decoders.read_picture(Path(picture), self.image_size, self.resize_mode)
        else:
            from av import VideoFrame
            from av.video.reformatter import VideoReformatter

            from evilm.data.video.pictures import to_rgb

            pixels: Any = picture if isinstance(picture, np.ndarray) else np.asarray(picture.convert("RGB"))
            still = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = to_rgb(still, self.image_size, self.resize_mode, VideoReformatter())[None]
        return np.repeat(frame, self.num_frames, axis=0)

    # Vectors

    def embed_videos(
        self, videos: Sequence[Video], *, mode: Mode = "exact", progress: Callable[[int], None] | None = None
    ) -> VideoEmbeddings:
        """Videos to unit vectors.

        Args:
            videos: paths, (path, start, end) in seconds, or clips.
            mode: ``exact`` frames, or ``fast`` for keyframes only.
            progress: called with the number of videos done.

        Returns:
            one row a video, also for those that could not be read.
        """
        vectors = np.zeros((len(videos), self.embed_dim), dtype=np.float32)
        statuses: list[VideoStatus] = []
        problems: list[str] = []

        def read(video: Video) -> NDArray[np.uint8] | VideoError:
            try:
                return self.read_frames(video, mode)
            except VideoError as error:
                return error

        for start in range(0, len(videos), BATCH):
            with ThreadPoolExecutor(self.decoders.count) as threads:
                try:
                    clips = list(threads.map(read, videos[start : start + BATCH]))
                except BaseException:  # Ctrl-C: skip the videos that wait
                    threads.shutdown(wait=False, cancel_futures=True)
                    raise
            readable: dict[int, NDArray[np.uint8]] = {}
            for row, clip in enumerate(clips, start):
                if isinstance(clip, VideoError):
                    statuses.append(clip.status)
                    problems.append(str(clip))
                else:
                    statuses.append("ok")
                    problems.append("")
                    readable[row] = clip
            if readable:
                vectors[list(readable)] = self.embed_frames(np.stack(list(readable.values())))
            if progress is not None:
                progress(start + len(clips))
        return VideoEmbeddings(vectors, tuple(statuses), tuple(problems))

    def embed_pictures(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Still pictures to unit vectors (n, d), in the same space as videos; see ``read_picture``."""
        frames = [self.read_picture(picture) for picture in pictures]
        return self.embed_frames(np.stack(frames)) if frames else np.zeros((0, self.embed_dim), np.float32)

    def embed_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Clips (n, T, H, W, 3) to unit vectors (n, d). Of equal frames in a row, pooled features are computed once.

        Raises:
            DataError: pixels of another shape or type.
        """
        self.need("embed_video")
        if self._pools_frames and len(frames) and frames.ndim == 5 and frames.shape[1] == self.num_frames:
            single = frames.reshape(-1, *frames.shape[2:])
            new = np.array([i == 0 or not np.array_equal(single[i], single[i - 1]) for i in range(len(single))])
            clips = -(-int(new.sum()) // self.num_frames)
            distinct = single[np.resize(np.flatnonzero(new), clips * self.num_frames)]
            pooled = self.encode_frames(distinct.reshape(clips, *frames.shape[1:])).pooled
            if pooled is not None and pooled.ndim == 3:
                places = (np.cumsum(new) - 1).reshape(frames.shape[:2])
                pooled = pooled.reshape(-1, pooled.shape[-1])[places].mean(1)
                return self.runtime.apply_head("embed_video", None, pooled)
            self._pools_frames = False  # an older export, which has only the mean of a clip
        return self.embed_encoded("embed_video", self.encode_frames(frames))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Sentences to unit vectors (n, d), in the same space as videos.

        Raises:
            VocabularyError: no text, or one that cannot be encoded.
        """
        self.need("embed_text")
        encoded = self.encode_texts(texts)
        return self.embed_encoded("embed_text", encoded)

    def embed_encoded(self, head: Literal["embed_video", "embed_text"], encoded: EncodedArrays) -> NDArray[np.float32]:
        """Encoded videos or texts (n) to unit vectors (n, d); fusion is skipped where embeddings do not use it."""
        cls = None if self.metadata.embedding == "pooled" else self.fuse_alone(encoded)
        pooled = encoded.pooled
        return self.runtime.apply_head(head, cls, pooled.mean(1) if pooled is not None and pooled.ndim == 3 else pooled)

    def cls_of_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """h^CLS of clips alone, (n, D), which probes classify."""
        return self.fuse_alone(self.encode_frames(frames))

    def cls_of_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """h^CLS of sentences alone, (n, D)."""
        return self.fuse_alone(self.encode_texts(texts))

    def encode_frames(self, frames: NDArray[np.uint8]) -> EncodedArrays:
        """Clips (n, T, H, W, 3) to patches (n, N, D), for ``match_encoded`` and ``score_choices``.

        Raises:
            DataError: pixels of another shape or type.
        """
        shape = (self.num_frames, self.image_size, self.image_size, 3)
        if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[1:] != shape:
            wanted = f"(n, {', '.join(map(str, shape))})"
            raise DataError(f"frames are {frames.dtype} {frames.shape}, and this model takes uint8 {wanted}")
        if not len(frames):
            return self.encode_frames(np.zeros((1, *shape), np.uint8))[:0]
        rows = range(0, len(frames), BATCH)
        return EncodedArrays.concatenate([self.runtime.encode_video(frames[i : i + BATCH]) for i in rows])

    def encode_texts(self, texts: Sequence[str]) -> EncodedArrays:
        """Sentences to words (n, L, D), for ``match_encoded`` and ``score_fused``.

        Raises:
            VocabularyError: no text, or one that cannot be encoded.
        """
        ids, mask = self.runtime.vocabulary.encode_arrays(texts, self.metadata.max_text_len)
        step = 4 * BATCH
        parts = [self.runtime.encode_text(ids[i : i + step], mask[i : i + step]) for i in range(0, len(ids), step)]
        return EncodedArrays.concatenate(parts)

    def need(self, head: Head) -> None:
        """Raise a ConfigError with the remedy if the model has no such head."""
        if head not in self.metadata.heads:
            problem, remedy = _MISSING[head]
            raise ConfigError(f"this {self.metadata.task} model {problem}: {remedy}")

    def fuse_alone(self, encoded: EncodedArrays) -> NDArray[np.float32]:
        """h^CLS of one modality alone, (n, D)."""
        rows = range(0, len(encoded), BATCH)
        parts = [self.runtime.fuse(encoded.tokens[i : i + BATCH], encoded.mask[i : i + BATCH])[0] for i in rows]
        return np.concatenate(parts) if parts else np.zeros((0, self.metadata.hidden_dim), dtype=np.float32)
