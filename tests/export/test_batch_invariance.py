"""A vector does not depend on what is computed beside it, in every form of an export."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import evilm

if TYPE_CHECKING:
    from pathlib import Path

    from evilm.inference import Embedder

TEXTS = [
    "a red disc moves left",
    "a disc",
    "in front of a striped background a small blue star jumps three times",
    "a blue star and a green square grow",
    "what color is it?",
] * 7


@pytest.fixture(scope="module", params=["fp32", "int8", "world-tiny"])
def model(request: pytest.FixtureRequest, exported: Path, exported_fp32: Path) -> Embedder:
    folder = {"fp32": exported_fp32, "int8": exported, "world-tiny": "world-tiny"}[request.param]
    return evilm.load(folder, threads=2)


def clips(model: Embedder, count: int) -> np.ndarray:
    """Clips of very different brightness, so that a batch has another range than a clip."""
    random = np.random.default_rng(0)
    shape = (count, model.num_frames, model.image_size, model.image_size, 3)
    noise = random.integers(0, 256, shape) * random.random((count, 1, 1, 1, 1)) ** 2
    return noise.astype(np.uint8)


@pytest.mark.parametrize("size", [2, 7, 32])
def test_a_clip_has_one_vector_in_every_batch(model: Embedder, size: int) -> None:
    frames = clips(model, 32)
    alone = np.concatenate([model.embed_frames(frames[i : i + 1]) for i in range(32)])
    batches = np.concatenate([model.embed_frames(frames[i : i + size]) for i in range(0, 32, size)])
    np.testing.assert_allclose(batches, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [2, 7, 35])
def test_a_text_has_one_vector_beside_longer_texts(model: Embedder, size: int) -> None:
    alone = np.concatenate([model.embed_texts([text]) for text in TEXTS])
    batches = np.concatenate([model.embed_texts(TEXTS[i : i + size]) for i in range(0, len(TEXTS), size)])
    np.testing.assert_allclose(batches, alone, rtol=0, atol=1e-5)


def test_a_match_score_does_not_depend_on_other_texts(model: Embedder) -> None:
    if "match" not in model.metadata.heads:
        pytest.skip("no match head")
    videos = model.encode_frames(clips(model, 3))
    together = model.match_encoded(videos, model.encode_texts(TEXTS[:5]))
    for i, text in enumerate(TEXTS[:5]):
        alone = model.match_encoded(videos[1:2], model.encode_texts([text]))
        np.testing.assert_allclose(alone[0, 0], together[1, i], rtol=0, atol=1e-4)
