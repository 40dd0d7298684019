"""E-ViLM as a model of MTEB, the benchmark library of embeddings (extra ``evilm[mteb]``).

    import mteb
    from evilm.report.mteb_encoder import MtebEncoder

    mteb.evaluate(MtebEncoder("evilm-photo"), mteb.get_tasks(tasks=["MSVDT2VRetrieval"]))

A checkpoint, an export or a dual encoder of another library is named as for ``evilm.load``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from evilm import config
from evilm.errors import DataError, DependencyError
from evilm.inference import loading
from evilm.inference.embedder import load
from evilm.inference.embedding import BATCH

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from evilm.inference.embedder import Embedder

_OWNER = "evilm/"  # MTEB's names have the form owner/name
# Tasks of MTEB whose training data a bundled model has seen, if only as texts; they are not zero-shot for it.
_SEEN = {
    loading.TINY: set[str](),
    loading.PHOTO: {
        "Flickr30kI2TRetrieval", "Flickr30kT2IRetrieval", "MSCOCOI2TRetrieval", "MSCOCOT2IRetrieval", "MSRVTTT2V",
        "MSRVTTV2T", "MSVDT2VRetrieval", "MSVDV2TRetrieval",
    },
}  # fmt: skip


class MtebEncoder:
    """``mteb.models.EncoderProtocol``: texts and videos to unit vectors that are compared by their cosine.

    Args:
        model_name: as for ``evilm.load``, or ``evilm/`` and the name of a bundled model.
        revision: what MTEB passes; the model in hand is used, and its fingerprint is the revision reported.
        device: as for ``evilm.load``; None chooses.

    Raises:
        CheckpointError: no such model, or it is damaged.
        ConfigError: the model has no embeddings.
        DependencyError: mteb is missing.
    """

    def __init__(self, model_name: str, revision: str | None = None, *, device: str | None = None) -> None:
        try:
            from mteb.models import ModelMeta
        except ModuleNotFoundError as error:
            raise DependencyError(f"evaluating with MTEB needs {error.name}: pip install 'evilm[mteb]'") from None
        short = model_name.removeprefix(_OWNER)
        self.embedder: Embedder = load(
            short if short in loading.BUNDLED else model_name, device=cast("loading.Device", device or "auto")
        )
        self.embedder.need("embed_text")
        folder = self.embedder.runtime.folder
        bundled = loading.bundled_name(folder)
        name = bundled or (folder.name if folder else model_name)
        values, word_values = _count_parameters(self.embedder)
        self.mteb_model_meta: Any = ModelMeta(
            loader=cast("Any", MtebEncoder),
            name=name if "/" in name else _OWNER + name,
            revision=self.embedder.fingerprint,
            release_date=None,
            languages=["eng-Latn"],
            n_parameters=values,
            n_embedding_parameters=word_values,
            memory_usage_mb=None,
            max_tokens=self.embedder.metadata.max_text_len,
            embed_dim=self.embedder.embed_dim,
            license="not specified",
            open_weights=True,
            public_training_code=None,
            public_training_data=None,
            framework=["ONNX"] if "onnx" in self.embedder.form else ["PyTorch"],
            similarity_fn_name=cast("Any", "cosine"),
            use_instructions=False,
            training_datasets=_SEEN.get(bundled or ""),  # None: unknown
            modalities=["text", "video"],
        )

    def encode(self, inputs: Any, **_context: object) -> NDArray[np.float32]:
        """Unit vectors (n, d) of the rows of a DataLoader; a row of a text and a video gets the mean of both.

        Args:
            inputs: its batches have lists ``text`` or ``video``, or both; ``FramesCollator`` decodes the videos.
            _context: what MTEB says about the task; the model does not use it.

        Raises:
            DataError: rows without text and video, or frames of another form.
            DependencyError: torchcodec, which decodes for MTEB, is missing or finds no FFmpeg.
        """
        from mteb.models.modality_collators import FramesCollator

        if "video" in inputs.dataset.features:
            # Of 2 T + 1 evenly spaced frames, every second one is the middle of one of T equal segments.
            inputs.collate_fn = FramesCollator(num_frames=2 * self.embedder.num_frames + 1)
        try:
            return np.concatenate([self._encode_batch(batch) for batch in inputs])
        except (ImportError, RuntimeError) as error:
            if "torchcodec" not in str(error):
                raise
            raise DependencyError(
                "the videos of MTEB need torchcodec and the shared libraries of FFmpeg: pip install 'evilm[mteb]', and "
                f"apt-get install ffmpeg ({str(error).strip().splitlines()[0]})"
            ) from None

    def _encode_batch(self, batch: dict[str, Any]) -> NDArray[np.float32]:
        parts: list[NDArray[np.float32]] = []
        if "text" in batch:
            parts.append(self.embedder.embed_texts(batch["text"]))
        if "video" in batch:
            rows: Sequence[Any] = batch["video"]
            clips = [np.stack([self._prepare(v) for v in rows[i : i + BATCH]]) for i in range(0, len(rows), BATCH)]
            parts.append(np.concatenate([self.embedder.embed_frames(clip) for clip in clips]))
        if not parts:
            raise DataError(f"MTEB gives rows of {', '.join(batch)}; this model takes text and video")
        mean = np.mean(parts, axis=0)
        return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)

    def _prepare(self, video: Any) -> NDArray[np.uint8]:
        """Frames (2 T + 1, 3, H, W) of a video as a tensor, colours before rows, to the model's (T, S, S, 3)."""
        from av import VideoFrame
        from av.video.reformatter import VideoReformatter

        from evilm.data.video.pictures import to_rgb

        pixels = np.asarray(video)
        wanted = (2 * self.embedder.num_frames + 1, 3)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:2] != wanted:
            raise DataError(
                f"MTEB gives frames {pixels.dtype} {pixels.shape}, and this model takes uint8 (T, C, H, W) with T = "
                f"{wanted[0]} and C = 3; tested with mteb 2.26"
            )
        scaler, size, fit = VideoReformatter(), self.embedder.image_size, self.embedder.resize_mode
        frames: Iterable[NDArray[np.uint8]] = np.ascontiguousarray(pixels[1::2].transpose(0, 2, 3, 1))
        return np.stack([to_rgb(VideoFrame.from_ndarray(f, format="rgb24"), size, fit, scaler) for f in frames])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines (n, m) as a tensor."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines (n,) of pairs of rows as a tensor."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


def _count_parameters(embedder: Embedder) -> tuple[int | None, int | None]:
    """Parameters of a model with its embedding head, and of its word embeddings; None where its shape is unknown."""
    from evilm.model.evilm import EViLM
    from evilm.model.heads import EmbeddingHead
    from evilm.model.presets import ModelConfig
    from evilm.report.cost import count_parameters

    source, vocabulary = embedder.metadata.source, cast("Any", embedder.runtime.vocabulary)
    settings = source.get("model") or source.get("recipe", {}).get("model")  # older exports have the second at most
    if settings is None:
        return None, None
    shape = config.check(ModelConfig, settings | {"backbone_weights": "none", "text_weights": "none"}, "recipe.model")
    model = EViLM(shape, vocabulary.size)
    head = EmbeddingHead.for_model(model, embedder.embed_dim)
    return count_parameters(model, head), model.text_encoder.word_embeddings.numel()
