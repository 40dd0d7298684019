"""Encoders of other libraries behind search: index, search, and refusals, as with a model of ours."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import evilm
from evilm import cli
from evilm.encoders.base import DualEncoder, Preprocessing, Towers
from evilm.encoders.names import EncoderName
from evilm.errors import QueryError, VideoIndexError
from evilm.inference import Embedder
from evilm.inference.dual_encoder import DualEncoderRuntime

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

COLOURS = ("red", "green", "blue")


def colours(seed: int = 0, frames: int = 2) -> Embedder:
    """A dual encoder without any library: a picture is its mean colour, a text the colour that it names."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((4, 4)))[0]
            self.register_buffer("turn", torch.tensor(turn, dtype=torch.float32))

    module = Module()

    def space(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, 1), value=0.1) @ module.get_buffer("turn")

    def words(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        ids = np.array([[int(colour in text) for colour in COLOURS] for text in texts], dtype=np.int64)
        return ids, np.ones(ids.shape, dtype=np.bool_)

    towers = Towers(
        module, lambda pixels: space(pixels.mean((2, 3))), lambda ids, _: space(ids.float()), words,
        lambda _: 0.0, Preprocessing(32, 24, "crop-bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 3, 0.05,
    )  # fmt: skip
    return Embedder(
        DualEncoderRuntime(
            DualEncoder(EncoderName("open_clip", "colours", None, frames), towers, torch.device("cpu"), "fp32")
        )
    )


@pytest.fixture
def videos(small_world: Path, tmp_path: Path) -> Path:
    """A folder of twelve clips of the world."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in sorted((small_world / "videos").glob("*.mp4"))[:12]:
        (folder / path.name).symlink_to(path)
    return folder


def test_the_seam_holds_without_any_library(videos: Path, tmp_path: Path) -> None:
    model = colours()
    with evilm.VideoIndex.build(videos, model, tmp_path / "index") as index:
        vectors = model.embed_videos(sorted(videos.glob("*.mp4"))).vectors
        best = float((vectors @ model.embed_texts(["blue"])[0]).max())
        hits = index.search("blue", k=3)
        assert len(hits) == 3
        assert hits[0].cosine == pytest.approx(best, abs=1e-5)
        like = index.search(hits[1].path, k=1)
        assert like[0].path == hits[1].path
        with pytest.raises(QueryError, match="no fusion decoder"):
            index.search("blue", rerank=2)
    for other in (colours(1), colours(0, 3)):
        with pytest.raises(VideoIndexError, match="was made by another model"):
            evilm.VideoIndex.build(videos, other, tmp_path / "index")


def test_a_vector_of_a_clip_is_the_mean_of_its_frames() -> None:
    model = colours()
    frames = np.zeros((1, 2, 32, 32, 3), dtype=np.uint8)
    frames[0, 0, ..., 0], frames[0, 1, ..., 2] = 255, 51
    frames[:, :, :4], frames[:, :, -4:], frames[:, :, :, :4], frames[:, :, :, -4:] = 77, 77, 77, 77  # beyond the centre
    red, blue = np.array([1.0, 0, 0, 0.1]), np.array([0, 0, 0.2, 0.1])
    mean = red / np.linalg.norm(red) + blue / np.linalg.norm(blue)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    np.testing.assert_allclose(model.embed_frames(frames)[0], mean / np.linalg.norm(mean) @ turn, atol=1e-6)


def test_the_commands_take_them_by_name(
    open_clip_folder: Path, transformers_folder: dict[str, Path], videos: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def run(*arguments: str, code: int = 0) -> str:
        assert cli.run(list(arguments)) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    monkeypatch.chdir(open_clip_folder.parent)
    own, at = "open_clip:tiny@2", str(tmp_path / "index")
    report: dict[str, Any] = json.loads(run("index", str(videos), at, "--model", own, "--json"))
    assert (report["new"], report["segments"]) == (12, 12)
    monkeypatch.chdir(tmp_path)  # the index knows the folder of its model, wherever it is searched from
    found: dict[str, Any] = json.loads(run("search", at, "a red disc", "-k", "3", "--json"))
    model = evilm.load(f"open_clip:{open_clip_folder}@2")
    paths = sorted(videos.glob("*.mp4"))
    cosines = model.embed_videos(paths).vectors @ model.embed_texts(["a red disc"])[0]
    assert found["hits"][0]["path"] in [str(paths[i]) for i in np.argsort(-cosines)[:2]]
    other = f"transformers:{transformers_folder['siglip']}"
    assert "was made by another model" in run("search", at, "a red disc", "--model", other, code=2)
    assert "was made by another model" in run("search", at, "x", "--model", f"open_clip:{open_clip_folder}", code=2)
    line = run("ask", str(paths[0]), "what color?", "--model", f"open_clip:{open_clip_folder}", code=2)
    assert line.count("\n") == 1
    assert "dual encoder model has no answers of its own" in line
    assert "names no weights" in run(
        "index", str(videos), str(tmp_path / "new"), "--model", "open_clip:ViT-B-32", code=2
    )
    assert not (tmp_path / "new").exists()
