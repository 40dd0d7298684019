"""How long an export takes beside the checkpoint that it was made from."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evilm.types import Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from evilm.inference import Embedder
    from evilm.inference.runtime import Metadata
    from evilm.inference.runtime_torch import TorchRuntime

_ROUNDS = 9  # one after the other in turn


def latency(engine: TorchRuntime, export: Embedder, clip: NDArray[np.uint8], text: str) -> dict[str, Any]:
    """Milliseconds for one clip and one text, in torch (eager, fp32) and as exported, taken in turns.

    A video is encoded and fused alone or, where the model embeds nothing, with the text. A student of videos alone is
    asked for no text.
    """
    threads = torch.get_num_threads()
    timed = {"torch": as_torch(engine, clip, text), "export": as_exported(export, clip, text)}
    calls = {f"{form} {what}": call for form, each in timed.items() for what, call in each.items()}
    took: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            took[name].append(time.perf_counter() - began)
    middle = {name: 1000 * float(np.median(times)) for name, times in took.items()}
    return {
        "milliseconds": middle,
        "times faster": {what: middle[f"torch {what}"] / middle[f"export {what}"] for what in timed["torch"]},
        "threads": threads,
    }


def as_torch(engine: TorchRuntime, clip: NDArray[np.uint8], text: str) -> dict[str, Callable[[], None]]:
    """What the checkpoint does for one ``video``, and for one ``text``, to be timed: eager, fp32, all of ``fuse``."""
    model = engine.model
    frames = torch.from_numpy(clip[None]).permute(0, 1, 4, 2, 3)
    ids, mask = (
        torch.from_numpy(array) for array in engine.vocabulary.encode_arrays([text], engine.metadata.max_text_len)
    )
    words = Text(ids, mask, mask)
    apart = "embed_video" in engine.metadata.heads

    @torch.inference_mode()
    def video() -> None:
        encoded = model.encode_video(model.normalise(frames))
        model.fuse(video=encoded, text=None if apart else model.encode_text(words))

    @torch.inference_mode()
    def sentence() -> None:
        model.fuse(text=model.encode_text(words))

    return {"video": video, "text": sentence} if _reads(engine.metadata) else {"video": video}


def as_exported(export: Embedder, clip: NDArray[np.uint8], text: str) -> dict[str, Callable[[], None]]:
    """What an export does for one ``video``, and for one ``text``, as calls to be timed."""

    def video() -> None:
        if "embed_video" in export.metadata.heads:
            export.embed_frames(clip[None])
        else:
            words, patches = export.encode_texts([text]), export.encode_frames(clip[None])
            seen = np.concatenate([words.mask, patches.mask], 1)
            export.runtime.fuse(np.concatenate([words.tokens, patches.tokens], 1), seen)

    def sentence() -> None:
        export.cls_of_texts([text])

    return {"video": video, "text": sentence} if _reads(export.metadata) else {"video": video}


def _reads(about: Metadata) -> bool:
    """Whether texts mean anything to a model: not to a student of videos alone."""
    return "embed_text" in about.heads or "embed_video" not in about.heads
