"""Videos of plain colours, and the model that knows them."""

from __future__ import annotations

import importlib.util
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE = Path(__file__).resolve().parent


def _load(name: str) -> Any:
    """A module of this folder, which is no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


fake = _load("fake")


def paint(path: Path, colours: Sequence[str], seconds: float = 1.0, rate: int = 8, side: int = 48) -> Path:
    """A video that shows each colour for so many seconds, with a mark that tells it from others of the same colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 30, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast"}
        for colour in colours:
            picture = np.empty((side, side, 3), dtype=np.uint8)
            picture[:] = np.clip(np.array(fake.COLOURS[colour]) + mark - 15, 0, 255)
            for _ in range(round(seconds * rate)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def painted() -> Callable[..., Path]:
    """``painted(path, colours, seconds=1.0)``."""
    return paint


@pytest.fixture
def model() -> Any:
    """The model; ``model.encoded`` counts segments."""
    return fake.Fake()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """``make_model(seed)``: another model."""
    return fake.Fake


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of four videos, one of them in a folder below, and a text."""
    folder = tmp_path / "clips"
    paint(folder / "red.mp4", ["red"])
    paint(folder / "green.mp4", ["green"])
    paint(folder / "deep" / "blue.mkv", ["blue"])
    paint(folder / "yellow.webm.mp4", ["yellow"])
    (folder / "notes.txt").write_text("no video")
    return folder
