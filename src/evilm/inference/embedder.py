"""A trained model in use: embeddings, answers to questions, and classes of videos."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evilm.errors import ConfigError, OutputError
from evilm.inference import loading
from evilm.inference.embedding import BATCH, EmbeddingModel
from evilm.inference.results import Answer, join_question, rank_names, sampled_times, softmax, to_clip

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.inference.loading import Device
    from evilm.inference.results import Video
    from evilm.inference.runtime import EncodedArrays, Head


class Embedder(EmbeddingModel):
    """A video-language model, ready to use; see ``EmbeddingModel`` for embeddings, processes and threads."""

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: Device = "auto", threads: int | None = None) -> Embedder:
        """Same as ``load``, under the name that the libraries of the hub use."""
        return load(name, device=device, threads=threads)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Publish the model's folder with its card as ``owner/name`` on the hub; return its address.

        Raises:
            DependencyError: huggingface_hub is missing.
            OutputError: the hub cannot be reached or refuses, or the model belongs to another library.
        """
        from evilm.export import hub

        if self.runtime.folder is None:
            raise OutputError(f"{name}: {self.form} is a model of another library and cannot be published from here")
        return hub.upload(self.runtime.folder, name, self.metadata, private=private)

    def ask(self, video: Video, question: str, choices: Sequence[str] = ()) -> Answer:
        """Answer a question about a video, by the answer head if it knows the choices, else by choosing among them.

        Raises:
            ConfigError: the model cannot answer, or there are no choices and it needs them.
            VideoError, VocabularyError: the video has no readable frame, the question or a choice has no words.
        """
        if not question.strip():
            raise ConfigError("the question is empty: ask something, such as 'what color is the car?'")
        heads = {*self.metadata.heads}
        chooses = "match" in heads or {"embed_video", "embed_text"} <= heads
        if "answer" in heads and not (chooses and {*choices} - {*(self.metadata.answers or ())}):
            return self.answer(video, question, choices)
        if not choices and chooses:
            raise ConfigError(
                f"this {self.metadata.task} model has no answers of its own: give at least two choices, for example: "
                "evilm ask VIDEO 'what color is it?' --choices red green blue"
            )
        return self.choose(video, choices, question)

    def answer(self, video: Video, question: str, choices: Sequence[str] = ()) -> Answer:
        """Answer a question by the answer head, among all its answers or among ``choices`` of them.

        Raises:
            ConfigError: the model has no answer head, or a choice is not one of its answers.
            VideoError, VocabularyError: the video has no readable frame, the question has no words.
        """
        self.need("answer")
        answers = self.metadata.answers
        names = list(dict.fromkeys(choices)) or list(answers)
        for name in names:
            if name not in answers:
                shown = ", ".join(answers[:12]) + (", ..." if len(answers) > 12 else "")
                raise ConfigError(f"{name!r} is not an answer of this model; its answers are {shown}")
        videos = self.encode_frames(self.read_frames(video)[None])
        logits, attention = self.score_fused("answer", videos, self.encode_texts([question]))
        return self._answer(video, names, logits[0, [answers.index(name) for name in names]], attention[0])

    def choose(self, video: Video, choices: Sequence[str], question: str | None = None) -> Answer:
        """Choose the text that fits a video best, with the question before each choice if there is one.

        Raises:
            ConfigError: fewer than two choices, or the model has neither a match head nor embeddings.
            VideoError, VocabularyError: the video has no readable frame, a choice has no words.
        """
        names = list(dict.fromkeys(choices))
        if len(names) < 2:
            raise ConfigError(f"a choice needs at least two different options, and there are {len(names)}")
        videos = self.encode_frames(self.read_frames(video)[None])
        return self._answer(video, names, *self.score_choices(videos, names, question))

    def score_choices(
        self, video: EncodedArrays, choices: Sequence[str], question: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Logits (K,) of choices for one encoded video, and the attention (N,) of the best choice.

        The match head gives the logits; without one, cosines divided by the temperature. There is no attention where
        embeddings skip fusion.

        Raises:
            ConfigError: the model has neither a match head nor embeddings.
        """
        texts = self.encode_texts([join_question(question, name) for name in choices])
        if "match" in self.metadata.heads or not {"embed_video", "embed_text"} <= {*self.metadata.heads}:
            logits, attention = self.score_fused("match", video, texts)
            return logits[:, 0], attention[int(logits[:, 0].argmax())]
        logits = self.embed_encoded("embed_text", texts) @ self.embed_encoded("embed_video", video)[0]
        fuses = self.metadata.embedding != "pooled"
        return logits / self.temperature, self.runtime.fuse(video.tokens, video.mask)[1][0] if fuses else None

    def match(self, videos: Sequence[Video], texts: Sequence[str]) -> NDArray[np.float32]:
        """How well each text fits each video, (videos, texts): match logits, or cosines without a match head.

        Raises:
            VideoError: a video has no readable frame.
        """
        frames = np.stack([self.read_frames(video) for video in videos])
        if "match" not in self.metadata.heads:
            return self.embed_frames(frames) @ self.embed_texts(texts).T
        return self.match_encoded(self.encode_frames(frames), self.encode_texts(texts))

    def match_encoded(self, videos: EncodedArrays, texts: EncodedArrays) -> NDArray[np.float32]:
        """Match logits (videos, texts) of the results of ``encode_frames`` and ``encode_texts``."""
        rows = [self.score_fused("match", videos[i : i + 1], texts)[0][:, 0] for i in range(len(videos))]
        return np.stack(rows)

    def classify(self, videos: Sequence[Video], names: Sequence[str] = ()) -> list[tuple[tuple[str, float], ...]]:
        """Class names with their probabilities for each video, best first.

        Args:
            videos: n videos.
            names: of any classes, for a model with embeddings (zero-shot); none for the classes of a trained probe.

        Raises:
            ConfigError: the model has neither a probe nor embeddings.
            VideoError: a video has no readable frame.
        """
        frames = np.stack([self.read_frames(video) for video in videos])
        if names:
            return [rank_names(names, row) for row in self.label_vectors(self.embed_frames(frames), names)]
        return [rank_names(self.metadata.classes, softmax(row)) for row in self.score_classes(frames)]

    def label_vectors(self, vectors: NDArray[np.float32], names: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities (n, K) of K class names for embeddings (n, d), such as those of an index (zero-shot)."""
        logits = vectors @ self.embed_texts(names).T / self.temperature
        return np.stack([softmax(row) for row in logits]) if len(logits) else logits

    def score_classes(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits (n, K) of a trained probe's classes, of clips (n, T, H, W, 3).

        Raises:
            ConfigError: the model has no probe.
        """
        self.need("classify")
        return self.runtime.apply_head("classify", self.cls_of_frames(frames))

    def score_fused(
        self, head: Head, videos: EncodedArrays, texts: EncodedArrays
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits (n, K) of a head on h^CLS of both modalities, and the attention on patches (n, N).

        Args:
            head: ``answer`` or ``match``.
            videos: n clips, or one that goes with every text.
            texts: n texts.

        Raises:
            ConfigError: the model has no such head.
        """
        self.need(head)
        logits: list[NDArray[np.float32]] = []
        attentions: list[NDArray[np.float32]] = []
        for i in range(0, len(texts), BATCH):
            words, patches = texts[i : i + BATCH], videos if len(videos) == 1 else videos[i : i + BATCH]
            tokens = np.broadcast_to(patches.tokens, (len(words), *patches.tokens.shape[1:]))
            mask = np.broadcast_to(patches.mask, (len(words), patches.mask.shape[1]))
            cls, attention = self.runtime.fuse(
                np.concatenate([words.tokens, tokens], 1), np.concatenate([words.mask, mask], 1)
            )
            logits.append(self.runtime.apply_head(head, cls))
            attentions.append(attention[:, words.mask.shape[1] :])
        return np.concatenate(logits), np.concatenate(attentions)

    def _answer(
        self, video: Video, names: list[str], logits: NDArray[np.float32], attention: NDArray[np.float32] | None
    ) -> Answer:
        if attention is not None:
            shape = (self.num_frames, *self.metadata.grid)
            attention = (attention / max(1e-9, float(attention.sum()))).reshape(shape)
        ranked, threshold = rank_names(names, softmax(logits)), self.metadata.answer_threshold
        return Answer(
            answer=ranked[0][0],
            probability=ranked[0][1],
            confident=threshold is None or ranked[0][1] >= threshold.probability,
            threshold=None if threshold is None else threshold.probability,
            candidates=ranked[:5],
            times=sampled_times(to_clip(video), self.num_frames, self.decoders),
            attention=attention,
        )


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
