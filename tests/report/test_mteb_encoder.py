"""The adapter for MTEB; what needs mteb, torchcodec or FFmpeg is skipped where it is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from evilm.errors import ConfigError, DataError, DependencyError
from evilm.report.mteb_encoder import MtebEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

needs_mteb = pytest.mark.skipif(importlib.util.find_spec("mteb") is None, reason="mteb is not installed: evilm[mteb]")


class Rows(list[dict[str, Any]]):
    """Rows as a data set of MTEB: a list with the names of its columns."""

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(self[0])


class Decoder:
    """What MTEB's FramesCollator uses of torchcodec, for frames in memory."""

    def __init__(self, frames: NDArray[np.uint8], axes: tuple[int, ...]) -> None:
        self.frames, self.axes = frames, axes
        self.metadata = SimpleNamespace(num_frames=len(frames))
        self.asked: list[int] = []

    def get_frames_at(self, indices: list[int]) -> SimpleNamespace:
        self.asked = indices
        return SimpleNamespace(data=torch.from_numpy(self.frames[indices].transpose(self.axes)))


def loader(rows: list[dict[str, Any]], batch_size: int = 2) -> Any:
    def collate(batch: list[dict[str, Any]]) -> dict[str, list[Any]]:
        return {key: [row[key] for row in batch] for key in batch[0]}

    return torch.utils.data.DataLoader(Rows(rows), batch_size=batch_size, collate_fn=collate)


@pytest.fixture(scope="module")
def encoder() -> MtebEncoder:
    pytest.importorskip("mteb", reason="mteb is not installed: evilm[mteb]")
    return MtebEncoder("evilm/world-tiny")


@pytest.fixture
def film() -> NDArray[np.uint8]:
    """18 frames (64, 64, 3), so that nothing is scaled: every axis and every frame differs from the others."""
    frames = np.zeros((18, 64, 64, 3), dtype=np.uint8)
    for i in range(18):
        frames[i, 4 : 4 + 2 * i + 2, :20] = (250, 40, 10 * i)
        frames[i, 40:, 30 + i :] = (10 * i, 20, 240)
    return frames


@needs_mteb
def test_frames_arrive_as_time_colour_height_width(encoder: MtebEncoder, film: NDArray[np.uint8]) -> None:
    decoder = Decoder(film, (0, 3, 1, 2))
    found = encoder.encode(loader([{"video": decoder}]))
    model = encoder.embedder
    middles = decoder.asked[1::2]
    assert len(middles) == model.num_frames
    # The middles of equal segments, to a frame.
    segments = (np.arange(model.num_frames) + 0.5) * len(film) / model.num_frames
    assert np.abs(np.array(middles) + 0.5 - segments).max() <= 1
    np.testing.assert_allclose(found, model.embed_frames(film[middles][None]), atol=1e-5)
    # Colours and axes matter to this model: another order gives another vector.
    for wrong in (film[middles][..., ::-1], film[middles].swapaxes(1, 2), film[middles][::-1]):
        assert float((model.embed_frames(np.ascontiguousarray(wrong)[None]) * found).sum()) < 0.995


@needs_mteb
@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (3, 0, 1, 2)], ids=["THWC", "CTHW"])
def test_another_order_of_axes_is_refused(encoder: MtebEncoder, film: NDArray[np.uint8], axes: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=re.escape("takes uint8 (T, C, H, W)")):
        encoder.encode(loader([{"video": Decoder(film, axes)}]))
    with pytest.raises(DataError, match="float32"):
        encoder.encode(loader([{"video": Decoder(film.astype(np.float32), (0, 3, 1, 2))}]))


@needs_mteb
def test_texts_videos_and_both(encoder: MtebEncoder, film: NDArray[np.uint8]) -> None:
    rows = [{"text": f"a red disc {i}", "video": Decoder(np.roll(film, i, 0), (0, 3, 1, 2))} for i in range(3)]
    texts = encoder.encode(loader([{"text": row["text"]} for row in rows]), task_metadata=None, hf_split="test")
    videos = encoder.encode(loader([{"video": row["video"]} for row in rows]))
    both = encoder.encode(loader(rows))
    np.testing.assert_allclose(texts, encoder.embedder.embed_texts([row["text"] for row in rows]), atol=1e-6)
    assert texts.shape == videos.shape == both.shape
    mean = texts + videos
    np.testing.assert_allclose(both, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(encoder.similarity(texts, videos), texts @ videos.T, atol=1e-6)
    np.testing.assert_allclose(encoder.similarity_pairwise(texts, videos), (texts * videos).sum(1), atol=1e-6)
    with pytest.raises(DataError, match="rows of audio; this model takes text and video"):
        encoder.encode(loader([{"audio": 1}]))


@needs_mteb
def test_the_metadata_of_the_model(encoder: MtebEncoder) -> None:
    from mteb.models import EncoderProtocol

    about = encoder.mteb_model_meta
    assert isinstance(encoder, EncoderProtocol)
    assert (about.name, about.revision) == ("evilm/world-tiny", encoder.embedder.fingerprint)
    assert about.modalities == ["text", "video"]
    assert about.training_datasets == set()
    assert about.embed_dim == encoder.embedder.embed_dim
    assert about.loader(about.name, about.revision).mteb_model_meta == about
    photo = MtebEncoder("evilm-photo").mteb_model_meta
    assert "MSRVTTT2V" in photo.training_datasets
    assert 2e6 < photo.n_embedding_parameters < photo.n_parameters < 20e6


@needs_mteb
def test_the_parameters_are_those_of_the_trained_model(trained: Callable[[str], Path]) -> None:
    from evilm.report.cost import count_parameters
    from evilm.training import build

    run = trained("retrieval")
    task: Any = build.restore(run)[0]
    about = MtebEncoder(str(run)).mteb_model_meta
    assert about.n_parameters == count_parameters(task.model, task.embed)
    assert about.training_datasets is None, "unknown"
    with pytest.raises(ConfigError, match=r"no (text )?embeddings"):
        MtebEncoder(str(trained("linear_probe")))


def test_without_mteb_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.setitem(sys.modules, "mteb.models", None)
    with pytest.raises(DependencyError, match=r"evaluating with MTEB needs mteb.*: pip install 'evilm\[mteb\]'"):
        MtebEncoder("world-tiny")


@needs_mteb
def test_without_a_decoder_one_sentence(encoder: MtebEncoder) -> None:
    class Broken:
        dataset = Rows([{"video": None}])

        def __iter__(self) -> Iterator[Any]:
            raise RuntimeError("Could not load libtorchcodec. Likely causes:\n1. FFmpeg is not installed")

    with pytest.raises(DependencyError, match=r"apt-get install ffmpeg \(Could not load libtorchcodec"):
        encoder.encode(Broken())


@needs_mteb
@pytest.mark.slow
def test_mock_tasks_and_real_clips(repository: Path, tmp_path: Path) -> None:
    """MTEB's own video tasks, and the bundled clips: torchcodec uses the FFmpeg of PyAV where there is no other."""
    av = importlib.util.find_spec("av")
    if importlib.util.find_spec("torchcodec") is None or av is None or av.origin is None:
        pytest.skip("torchcodec is not installed: evilm[mteb]")
    libraries = Path(av.origin).parents[1] / "av.libs"
    for file in libraries.glob("lib*.so*"):
        if name := re.fullmatch(r"(lib(?:av|sw)\w+)-\w+\.so\.(\d+)\..*", file.name):
            (tmp_path / f"{name[1]}.so.{name[2]}").symlink_to(file)
    paths = [str(tmp_path), str(libraries), os.environ.get("LD_LIBRARY_PATH", "")]
    done = subprocess.run(
        [sys.executable, repository / "benchmarks" / "mteb_clips.py"],
        capture_output=True, text=True, check=False, env=os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found["mock video tasks"]) == 7
    assert found["clips"] == 33
    # Both decoders see the same clips: at most one of 33 answers differs. Chance is 3 %.
    assert abs(found["ClipsT2V"]["hit_rate_at_1"] - found["R@1 by evilm's own decoder, text to video"]) < 3.1
    assert found["ClipsT2V"]["hit_rate_at_10"] > 50
