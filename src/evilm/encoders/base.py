"""A dual encoder of another library behind one face: frames and texts in, unit vectors out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from evilm import distributed
from evilm.encoders.names import Name
from evilm.errors import VocabularyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from evilm.data.video import Fit
    from evilm.distributed import DeviceName, Precision

_PICTURES = 64  # that go through a tower together
_TEXTS = 64


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a model wants its pictures.

    Attributes:
        size: pixels of the side that a frame is scaled to.
        centre: pixels of the middle that is looked at, at most ``size``.
        fit: how a picture becomes square, and by which interpolation.
        mean, std: of pixels between 0 and 1, one a colour.
    """

    size: int
    centre: int
    fit: Fit
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Towers:
    """What a library gives for a name.

    Attributes:
        module: the whole model.
        pictures: (n, 3, H, W) prepared pixels to (n, d).
        texts: (n, L) ids and their mask to (n, d).
        words: texts to (n, L) ids and their mask, cut to the model's length as the library does.
        unknown: the share of pieces in texts that the model does not know.
        preparation: of pictures.
        length: the longest text, in word pieces.
        temperature: of cosines.
    """

    module: nn.Module
    pictures: Callable[[Tensor], Tensor]
    texts: Callable[[Tensor, Tensor], Tensor]
    words: Callable[[list[str]], tuple[NDArray[np.int64], NDArray[np.bool_]]]
    unknown: Callable[[Sequence[str]], float]
    preparation: Preparation
    length: int
    temperature: float


class DualEncoder:
    """Texts and clips into one space. A clip is the mean of its frames' unit vectors, brought to length one again.

    Args:
        name: as ``evilm.encoders`` says.
        towers: of it.
        device: where it runs.
        precision: ``auto`` takes bfloat16 where the hardware multiplies in it.
    """

    reads = True  # texts, too

    def __init__(self, name: Name, towers: Towers, device: torch.device, precision: Precision = "auto") -> None:
        self.name, self.frames, self.device = name, name.frames, device
        self._towers = towers
        self._bf16 = distributed.uses_bf16(precision, device)
        towers.module.eval().requires_grad_(False).to(device)
        self._mean, self._std = (
            torch.tensor(values, device=device).view(3, 1, 1)
            for values in (towers.preparation.mean, towers.preparation.std)
        )
        self.width = int(self.encode_words(*self.words(["a video"])).shape[1])
        self.fingerprint = self._fingerprint()

    @property
    def size(self) -> int:
        """Pixels of the side of the frames that it takes."""
        return self._towers.preparation.size

    @property
    def fit(self) -> Fit:
        """How a picture becomes square."""
        return self._towers.preparation.fit

    @property
    def length(self) -> int:
        """The longest text, in word pieces."""
        return self._towers.length

    @property
    def temperature(self) -> float:
        """Of cosines."""
        return self._towers.temperature

    def embed_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Clips (n, T, size, size, 3) to unit vectors (n, d)."""
        return unit(self.encode_frames(frames).mean(1))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Sentences to unit vectors (n, d).

        Raises:
            VocabularyError: no text, or one that cannot be encoded.
        """
        return self.encode_words(*self.words(texts))

    def encode_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Clips (n, T, size, size, 3) to a unit vector for each frame, (n, T, d)."""
        pictures = torch.from_numpy(np.ascontiguousarray(frames)).flatten(0, 1)
        found = [self._seen(pictures[i : i + _PICTURES]) for i in range(0, len(pictures), _PICTURES)]
        return np.concatenate(found).reshape(*frames.shape[:2], -1)

    def words(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
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
            raise VocabularyError(f"{error.object!r}: holds half a character, which no model reads") from None
        return self._towers.words(list(texts))

    def unknown_share(self, texts: Sequence[str]) -> float:
        """The share of pieces in ``texts`` that the model does not know."""
        return self._towers.unknown(texts)

    def encode_words(self, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Ids and mask (n, L) to unit vectors (n, d)."""
        rows = range(0, len(ids), _TEXTS)
        return np.concatenate([self._read(ids[i : i + _TEXTS], mask[i : i + _TEXTS]) for i in rows])

    @torch.inference_mode()
    def _seen(self, pictures: Tensor) -> NDArray[np.float32]:
        """Pictures (n, size, size, 3) uint8 to unit vectors (n, d)."""
        rest = (self.size - self._towers.preparation.centre) // 2
        end = rest + self._towers.preparation.centre
        pixels = pictures[:, rest:end, rest:end].to(self.device).permute(0, 3, 1, 2).float() / 255
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            found = self._towers.pictures((pixels - self._mean) / self._std)
        return F.normalize(found.float(), dim=-1).cpu().numpy()

    @torch.inference_mode()
    def _read(self, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            found = self._towers.texts(torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device))
        return F.normalize(found.float(), dim=-1).cpu().numpy()

    def _fingerprint(self) -> str:
        """Of all that decides a vector: weights, how pictures and words are made ready, and T."""
        digest = hashlib.sha256()
        ids, _ = self.words(["A man's dog (2 years old) catches a red frisbee, naïvely."])
        facts: dict[str, Any] = {"library": self.name.library, "frames": self.frames, "length": self.length}
        facts |= {"preparation": asdict(self._towers.preparation), "words": ids.tolist()}
        digest.update(json.dumps(facts, sort_keys=True).encode())
        state = cast("dict[str, Tensor]", self._towers.module.state_dict())
        for key in sorted(state):
            digest.update(key.encode())
            digest.update(state[key].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length one; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def load(text: str, device: DeviceName = "auto", precision: Precision = "auto") -> DualEncoder:
    """The encoder of that name, from its library.

    Raises:
        CheckpointError: no such model, damaged or unsafe files, or no network for what has to be fetched.
        DependencyError: the library is missing.
        DeviceError: no such device.
    """
    name = Name.parse(text)
    where = distributed.device(device)
    if name.library == "open_clip":
        from evilm.encoders import open_clip

        return DualEncoder(name, open_clip.towers(name), where, precision)
    from evilm.encoders import transformers

    return DualEncoder(name, transformers.towers(name), where, precision)
