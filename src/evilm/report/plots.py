"""Geometry of the page's SVG plots, which its template draws, and frames as JPEG data URIs."""

from __future__ import annotations

import base64
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from av import Packet
    from numpy.typing import NDArray

    from evilm.report.run import Curve

GAP = 4  # pixels between the frames of a filmstrip


def jpeg(pixels: NDArray[np.uint8], quality: int = 4) -> bytes:
    """Encode (H, W, 3) RGB as a JPEG without chroma subsampling, which would blur small bright shapes.

    Args:
        pixels: the picture.
        quality: the quantizer, from 2 (best) to 31.
    """
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, "yuvj444p"
    codec.options = {"flags": "qscale", "global_quality": str(quality * 118), "qmin": "2", "qmax": "31"}
    packets = cast("list[Packet[Any]]", [*codec.encode(frame.reformat(format="yuvj444p")), *codec.encode(None)])
    return b"".join(bytes(packet) for packet in packets)


def image(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """(H, W, 3) RGB as ``src`` (a data URI), ``width`` and ``height``."""
    src = "data:image/jpeg;base64," + base64.b64encode(jpeg(pixels)).decode("ascii")
    return {"src": src, "width": pixels.shape[1], "height": pixels.shape[0]}


def filmstrip(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(T, H, W, 3) frames side by side with a dark gap around each: (H + 2 GAP, T (W + GAP) + GAP, 3)."""
    padded = np.pad(frames, ((0, 0), (GAP, GAP), (GAP, 0), (0, 0)), constant_values=17)
    return np.pad(np.concatenate(list(padded), axis=1), ((0, 0), (0, GAP), (0, 0)), constant_values=17)


def patch_box(index: int, grid: Sequence[int], side: int) -> tuple[float, float, float, float]:
    """x, y, width and height of a patch on a filmstrip.

    Args:
        index: of the patch, 0 to T h w - 1.
        grid: T, h, w.
        side: pixels of a frame's side.
    """
    frame, row, column = (int(place) for place in np.unravel_index(index, grid))
    width, height = side / grid[2], side / grid[1]
    return GAP + frame * (side + GAP) + column * width, GAP + row * height, width, height


def curve_plot(curves: Mapping[str, Curve]) -> dict[str, Any]:
    """Losses over steps, each named at its right end; ``loss``, the total, is drawn last.

    Args:
        curves: at least two points each.
    """
    width, height, left, right, top, bottom = 306, 190, 28, 206, 12, 166
    if len(curves) == 2 and "loss" in curves:  # the total equals its only part
        curves = {"loss": curves["loss"]}
    first = min(curve[0][0] for curve in curves.values())
    last = max(curve[-1][0] for curve in curves.values())
    ceiling = _ceiling([value for curve in curves.values() for _, value in curve])

    def y(value: float) -> float:
        return top + (bottom - top) * (1 - min(value, ceiling) / ceiling)

    names = [*(name for name in curves if name != "loss"), *(["loss"] if "loss" in curves else [])]
    labels = _spread({name: y(curves[name][-1][1]) for name in names}, 13, top + 4, bottom)
    series: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        points = [(left + (right - left) * (step - first) / max(1e-9, last - first), y(value))
                  for step, value in curves[name]]  # fmt: skip
        total = name == "loss"
        series.append({
            "kind": "total" if total else f"s{number % 4}",
            "points": " ".join(f"{across:.1f},{down:.1f}" for across, down in points),
            "label": f"{'total' if total else name} {curves[name][-1][1]:.2f}",
            "y": labels[name] + 4,
        })  # fmt: skip
    ticks = [(y(tick), f"{tick:g}") for tick in (0.0, ceiling / 2, ceiling)]
    return {"width": width, "height": height, "left": left, "right": right, "ticks": ticks, "steps": f"{last:g} steps",
            "series": series}  # fmt: skip


def _ceiling(values: Sequence[float]) -> float:
    """A round number above 98.5 % of the values: the first few may be far above the rest."""
    ordered = sorted(values)
    highest = ordered[min(len(ordered) - 1, int(0.985 * len(ordered)))]
    if highest <= 0:
        return 1.0
    unit = 10 ** math.floor(math.log10(highest))
    return next(step * unit for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * unit >= highest)


def _spread(places: Mapping[str, float], gap: float, top: float, bottom: float) -> dict[str, float]:
    """Move labels down, then up again, until no two overlap."""
    order = sorted(places, key=lambda name: places[name])
    moved = {name: max(top, places[name]) for name in order}
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + gap)
    limit = bottom
    for name in reversed(order):
        moved[name] = min(moved[name], limit)
        limit = moved[name] - gap
    return moved


def usage_plot(counts: Sequence[int]) -> dict[str, Any]:
    """How often each code occurs, most frequent first, on a logarithmic scale."""
    height, top, bottom = 240, 22, 214
    ordered = sorted(counts, reverse=True)
    used = sum(count > 0 for count in ordered)
    decades = max(1, math.ceil(math.log10(max(1, *ordered) + 1)))

    def y(count: float) -> float:
        return top + (bottom - top) * (1 - math.log10(count + 1) / decades)

    steps = " ".join(f"V{y(count):.1f} H{place}" for place, count in enumerate(ordered, 1))
    levels = [(y(10**power - 1), "0" if power == 0 else f"{10**power:,}") for power in range(decades + 1)]
    return {
        "height": height, "top": top, "bottom": bottom, "count": len(ordered), "used": used, "levels": levels,
        "area": f"M0 {y(0):.1f} {steps} V{y(0):.1f} Z", "even": y(sum(ordered) / len(ordered)),
        "edge": 100 * used / len(ordered),
    }  # fmt: skip
