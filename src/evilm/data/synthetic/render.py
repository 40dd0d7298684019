"""Render a scene to frames, and encode frames as an H.264 file."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.error import FFmpegError

from evilm.data.synthetic.scene import FRAME, FRAMES, RATE
from evilm.errors import DependencyError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.data.synthetic.scene import Scene, Thing

    Floats = NDArray[np.float32]

_RGB = {
    "red": (214, 20, 32), "orange": (255, 128, 0), "yellow": (255, 236, 40), "green": (12, 165, 48),
    "blue": (24, 64, 235), "pink": (255, 110, 205), "white": (252, 252, 252), "black": (8, 8, 8),
    "purple": (112, 20, 150),
}  # fmt: skip
_MARGIN = 32  # pixels around the frame, so that a sprite at the edge needs no clipping
_SUPERSAMPLE = 4


def render(scene: Scene, seed: int) -> NDArray[np.uint8]:
    """The frames of a scene, (T, H, W, 3) uint8.

    Args:
        scene: the scene.
        seed: draws the tones, scale and pattern of the background.
    """
    background = backdrop(scene.background, np.random.default_rng(seed))
    side = FRAME + 2 * _MARGIN
    canvas = np.zeros((FRAMES, side, side, 3), dtype=np.float32)
    inside = slice(_MARGIN, _MARGIN + FRAME)
    canvas[:, inside, inside] = background
    for thing in scene.things:
        _draw(canvas, thing)
    return (canvas[:, inside, inside] + 0.5).astype(np.uint8)


def _draw(canvas: Floats, thing: Thing) -> None:
    """Blend one shape into every frame."""
    path, colour = thing.track, np.asarray(_RGB[thing.colour], dtype=np.float32)
    for frame in range(FRAMES):
        if not path.visible[frame]:
            continue
        alpha = sprite(thing.shape, round(2 * float(path.radius[frame])), round(float(path.angle[frame]) / 5) * 5)
        half = alpha.shape[0] // 2
        top = round(float(path.y[frame])) + _MARGIN - half
        left = round(float(path.x[frame])) + _MARGIN - half
        patch = canvas[frame, top : top + alpha.shape[0], left : left + alpha.shape[1]]
        patch += alpha * (colour - patch)


@lru_cache(maxsize=4096)
def sprite(shape: str, diameter: int, angle: int) -> Floats:
    """The coverage of each pixel by a shape, (k, k, 1) in 0 to 1; ``diameter`` in pixels, ``angle`` in degrees."""
    half = diameter // 2 + diameter // 8 + 2
    count = (2 * half + 1) * _SUPERSAMPLE
    axis = ((np.arange(count) + 0.5) / _SUPERSAMPLE - half - 0.5) / (diameter / 2)
    across, down = np.meshgrid(axis, axis)
    turn = np.deg2rad(angle)
    u, v = across * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - across * np.sin(turn)
    filled = _inside(shape, u, v).reshape(2 * half + 1, _SUPERSAMPLE, 2 * half + 1, _SUPERSAMPLE)
    return filled.mean(axis=(1, 3), dtype=np.float32)[..., None]


def _inside(shape: str, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points of the plane a shape of radius 1 covers; v points down."""
    distance = np.hypot(u, v)
    match shape:
        case "circle":
            return distance <= 0.95
        case "square":
            return np.maximum(abs(u), abs(v)) <= 0.82
        case "triangle":
            return (v <= 0.68) & (abs(u) <= 0.62 * (v + 1.0))
        case "cross":
            return (np.minimum(abs(u), abs(v)) <= 0.27) & (np.maximum(abs(u), abs(v)) <= 1.0)
        case "ring":
            return (distance <= 1.0) & (distance >= 0.55)
        case "diamond":
            return abs(u) / 0.62 + abs(v) / 1.1 <= 1
        case "heart":
            x, y = u * 1.2, 0.12 - v * 1.2
            return (x * x + y * y - 1) ** 3 - x * x * y**3 <= 0
        case "star":
            # Fold the plane into one of the ten mirror sectors; there the edge is one straight line.
            turn = np.arctan2(u, -v) % (2 * np.pi / 5)
            turn = np.minimum(turn, 2 * np.pi / 5 - turn)
            tip, notch = (1.12, 0.0), (0.46 * np.cos(np.pi / 5), 0.46 * np.sin(np.pi / 5))
            x, y = distance * np.cos(turn), distance * np.sin(turn)
            return (notch[0] - tip[0]) * (y - tip[1]) - (notch[1] - tip[1]) * (x - tip[0]) >= 0
        case _:
            raise AssertionError(shape)


def backdrop(kind: str, rng: np.random.Generator) -> Floats:
    """A background of muted middle tones, (H, W, 3) in 0 to 255, distinct from every colour."""
    level, contrast = rng.uniform(95, 150), rng.uniform(16, 26) * rng.choice((-1, 1))
    base = level + rng.uniform(-16, 16, 3)
    other = base + contrast + rng.uniform(-6, 6, 3)
    grid = np.arange(FRAME)
    across, down = np.meshgrid(grid, grid)
    scale, shift = int(rng.integers(8, 15)), int(rng.integers(0, 16))
    match kind:
        case "plain":
            weight = np.zeros((FRAME, FRAME))
        case "striped":
            ways = (across, down, across + down, across - down)
            weight = ((ways[int(rng.integers(4))] + shift) // scale % 2).astype(np.float64)
        case "checkered":
            weight = (((across + shift) // scale + (down + shift) // scale) % 2).astype(np.float64)
        case "shaded":
            turn = rng.uniform(0, 2 * np.pi)
            weight = 0.5 + 1.4 * ((across / FRAME - 0.5) * np.cos(turn) + (down / FRAME - 0.5) * np.sin(turn))
        case "noisy":
            coarse = rng.normal(0.5, 0.45, (FRAME // 3, FRAME // 3))
            weight = np.kron(coarse, np.ones((3, 3)))
        case "dotted":
            x, y = (across + shift) % scale - scale / 2, (down + shift) % scale - scale / 2
            weight = (np.hypot(x, y) < scale * 0.28).astype(np.float64)
        case _:
            raise AssertionError(kind)
    return (base + weight[..., None] * (other - base)).clip(60, 195).astype(np.float32)


def encode(frames: NDArray[np.uint8], path: Path) -> None:
    """Write frames (T, H, W, 3) as H.264 in MP4; the file appears complete or not at all.

    Raises:
        OSError: the disk is full or not writable.
        DependencyError: this PyAV has no H.264 encoder.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    options = {"preset": "ultrafast", "crf": "20", "threads": "1"}
    try:
        with av.open(str(temporary), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=RATE, options=options)
            stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
            for image in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    except UnknownCodecError:
        raise DependencyError("this PyAV has no libx264 encoder; install the published wheel: pip install av") from None
    except FFmpegError as error:
        raise OSError(f"{path}: {error}") from None
    os.replace(temporary, path)
