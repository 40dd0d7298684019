"""A dual encoder of another library: frames and texts to unit vectors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from evilm import distributed
from evilm.errors import CheckpointError, ConfigError, VocabularyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from evilm.data.video import Fit
    from evilm.distributed import Precision
    from evilm.encoders.names import EncoderName

_BATCH = 64  # images or texts that are encoded together


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a model's images are prepared.

    Attributes:
        image_size: pixels of the side that a frame is scaled to.
        crop_size: pixels of the side of the centre crop, at most ``image_size``.
        resize_mode: how an image becomes square, and by which interpolation.
        mean, std: of pixels between 0 and 1, one for each colour.
    """

    image_size: int
    crop_size: int
    resize_mode: Fit
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Towers:
    """The functions and settings of a library's model.

    Attributes:
        module: the whole model; its weights are part of the fingerprint.
        encode_images: (n, 3, H, W) prepared pixels to (n, d); None for a sentence encoder.
        encode_texts: (n, L) ids and their mask to (n, d).
        tokenize: texts to (n, L) ids and their mask, cut to the model's length as the library does.
        unknown_share: fraction of the pieces of texts that are not in the model's vocabulary.
        preprocessing: of images.
        max_text_len: the longest text, in word pieces.
        temperature: of cosines.
    """

    module: nn.Module
    encode_images: Callable[[Tensor], Tensor] | None
    encode_texts: Callable[[Tensor, Tensor], Tensor]
    tokenize: Callable[[list[str]], tuple[NDArray[np.int64], NDArray[np.bool_]]]
    unknown_share: Callable[[Sequence[str]], float]
    preprocessing: Preprocessing
    max_text_len: int
    temperature: float


class DualEncoder:
    """Texts and clips to one space; a clip's vector is the normalised mean of its frames' unit vectors.

    Args:
        name: see ``evilm.encoders``.
        towers: the library's model.
        device: where it runs.
        precision: ``auto`` takes bfloat16 where the hardware multiplies in it.
    """

    reads = True  # it encodes texts, too

    def __init__(self, name: EncoderName, towers: Towers, device: torch.device, precision: Precision = "auto") -> None:
        self.name, self.num_frames, self.device = name, name.num_frames, device
        self._towers = towers
        self._bf16 = distributed.uses_bf16(precision, device)
        self.sees = towers.encode_images is not None
        towers.module.eval().requires_grad_(False).to(device)
        self._mean, self._std = (
            torch.tensor(values, device=device).view(3, 1, 1)
            for values in (towers.preprocessing.mean, towers.preprocessing.std)
        )
        self.embed_dim = int(self.encode_tokens(*self.tokenize(["a video"])).shape[1])
        self.fingerprint = self._fingerprint()

    @property
    def image_size(self) -> int:
        """Pixels of a frame's side."""
        return self._towers.preprocessing.image_size

    @property
    def resize_mode(self) -> Fit:
        """How an image becomes square."""
        return self._towers.preprocessing.resize_mode

    @property
    def max_text_len(self) -> int:
        """The longest text, in word pieces."""
        return self._towers.max_text_len

    @property
    def temperature(self) -> float:
        """Of cosines."""
        return self._towers.temperature

    def embed_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Clips (n, T, size, size, 3) to unit vectors (n, d)."""
        return normalise_rows(self.encode_frames(frames).mean(1))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Sentences to unit vectors (n, d).

        Raises:
            VocabularyError: no text, or one that cannot be encoded.
        """
        return self.encode_tokens(*self.tokenize(texts))

    def encode_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Clips (n, T, size, size, 3) to a unit vector for each frame, (n, T, d)."""
        images = torch.from_numpy(np.ascontiguousarray(frames)).flatten(0, 1)
        vectors = [self._encode_images(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
        return np.concatenate(vectors).reshape(*frames.shape[:2], -1)

    def tokenize(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Ids and mask, (n, L) each.

        Raises:
            VocabularyError: no text, or one that cannot be encoded.
        """
        if isinstance(texts, str) or not texts:
            raise VocabularyError("encode takes a list of at least one text")
        try:
            for text in texts:
                text.encode()
        except UnicodeEncodeError as error:
            raise VocabularyError(f"{error.object!r}: holds half a surrogate pair, which is not a character") from None
        return self._towers.tokenize(list(texts))

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Fraction of the pieces of ``texts`` that are not in the model's vocabulary."""
        return self._towers.unknown_share(texts)

    def encode_tokens(self, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Ids and mask (n, L) to unit vectors (n, d)."""
        rows = range(0, len(ids), _BATCH)
        return np.concatenate([self._encode_texts(ids[i : i + _BATCH], mask[i : i + _BATCH]) for i in rows])

    @torch.inference_mode()
    def _encode_images(self, images: Tensor) -> NDArray[np.float32]:
        """Images (n, size, size, 3) uint8 to unit vectors (n, d)."""
        if self._towers.encode_images is None:
            raise ConfigError(f"{self.name}: encodes sentences only, no frames; it can teach texts (task distill)")
        margin = (self.image_size - self._towers.preprocessing.crop_size) // 2
        end = margin + self._towers.preprocessing.crop_size
        pixels = images[:, margin:end, margin:end].to(self.device).permute(0, 3, 1, 2).float() / 255
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            vectors = self._towers.encode_images((pixels - self._mean) / self._std)
        return F.normalize(vectors.float(), dim=-1).cpu().numpy()

    @torch.inference_mode()
    def _encode_texts(self, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            vectors = self._towers.encode_texts(
                torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)
            )
        return F.normalize(vectors.float(), dim=-1).cpu().numpy()

    def _fingerprint(self) -> str:
        """16 hex digits that change with whatever decides a vector: weights, preprocessing, tokenizer, frames."""
        digest = hashlib.sha256()
        ids, _ = self.tokenize(["A man's dog (2 years old) catches a red frisbee, naïvely."])
        facts: dict[str, Any] = {"library": self.name.library, "frames": self.num_frames, "length": self.max_text_len}
        facts |= {"preparation": asdict(self._towers.preprocessing), "words": ids.tolist()}
        digest.update(json.dumps(facts, sort_keys=True).encode())
        state = cast("dict[str, Tensor]", self._towers.module.state_dict())
        for key in sorted(state):
            digest.update(key.encode())
            digest.update(state[key].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


def normalise_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length one; rows of zeros are unchanged."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


# For the modules of the libraries.


def check_no_code(folder: Path, name: EncoderName) -> None:
    """Refuse a folder in the format of transformers whose files ask to run their own code.

    Raises:
        CheckpointError: one of them does, or is damaged.
    """
    for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        if not (folder / file).is_file():
            continue
        try:
            table: Any = json.loads((folder / file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{name}: {folder / file} is damaged: {short(error)}") from None
        if not isinstance(table, dict) or "auto_map" in table:
            raise CheckpointError(f"{name}: {folder / file} asks to run code of the model, which is never done")


def unknown_share(tokenizer: Any, texts: Sequence[str]) -> float:
    """Fraction of unknown pieces in texts; 0 for a tokenizer without an unknown piece, such as a byte-level one.

    Args:
        tokenizer: of transformers, or None.
        texts: any.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        return 0.0  # CLIP gives its end token this role, too
    ids = [piece for row in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for piece in row]
    return ids.count(unknown) / len(ids) if ids else 0.0


def short(error: Exception) -> str:
    """The beginning of a library's error message, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
