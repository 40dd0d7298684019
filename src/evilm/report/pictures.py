"""Frames as pictures inside the page: JPEG bytes in data addresses, nothing to fetch."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np

from evilm.report.markup import Html, tag

if TYPE_CHECKING:
    from av import Packet
    from numpy.typing import NDArray

GAP = 4  # pixels between frames
_FILM = 17  # the grey between them, dark on a light page and on a dark one
_QUALITY = 4  # of JPEG's quantiser, 2 (best) to 31


def jpeg(pixels: NDArray[np.uint8], quality: int = _QUALITY) -> bytes:
    """(H, W, 3) RGB as a JPEG file with colours at full resolution, as small bright shapes need."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, "yuvj444p"
    codec.options = {"flags": "qscale", "global_quality": str(quality * 118), "qmin": "2", "qmax": "31"}
    packets = cast("list[Packet[Any]]", [*codec.encode(frame.reformat(format="yuvj444p")), *codec.encode(None)])
    return b"".join(bytes(packet) for packet in packets)


def address(pixels: NDArray[np.uint8]) -> str:
    """(H, W, 3) RGB as a data address."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(pixels)).decode("ascii")


def film(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(T, H, W, 3) frames side by side with a dark gap around each, (H + 2 GAP, T (W + GAP) + GAP, 3)."""
    count, height, width, _ = frames.shape
    sheet = np.full((height + 2 * GAP, count * (width + GAP) + GAP, 3), _FILM, dtype=np.uint8)
    for place, frame in enumerate(frames):
        left = GAP + place * (width + GAP)
        sheet[GAP : GAP + height, left : left + width] = frame
    return sheet


def strip(frames: NDArray[np.uint8] | None, what: str, class_: str = "strip") -> Html:
    """A filmstrip; a word in its place where there are no frames."""
    if frames is None:
        return tag("div", "no frames", class_=f"{class_} absent")
    sheet = film(frames)
    height, width = sheet.shape[:2]
    return tag("img", src=address(sheet), alt=what, width=width, height=height, class_=class_, decoding="async")
