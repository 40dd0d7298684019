"""Still pictures for tests: JPEG with an EXIF orientation, and HEIC as telephones write it."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from typing import TYPE_CHECKING

import av

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


def jpeg(pixels: NDArray[np.uint8], orientation: int, order: str = "little") -> bytes:
    """A JPEG whose EXIF block holds an orientation, in either byte order."""
    context = av.CodecContext.create("mjpeg", "w")
    context.height, context.width, context.pix_fmt = *pixels.shape[:2], "yuvj420p"
    context.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuvj420p")
    data = b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])
    sign, mark = ("<", b"II*\0") if order == "little" else (">", b"MM\0*")
    entry = struct.pack(sign + "HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = mark + struct.pack(sign + "IH", 8, 1) + entry + bytes(4)
    block = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def box(kind: bytes, *parts: bytes) -> bytes:
    """A box of an ISO base media file."""
    data = b"".join(parts)
    return (8 + len(data)).to_bytes(4) + kind + data


def _full(kind: bytes, version: int, *parts: bytes) -> bytes:
    return box(kind, bytes([version, 0, 0, 0]), *parts)


def heic(
    path: Path, tiles: list[NDArray[np.uint8]], rows: int = 1, columns: int = 1,
    shape: tuple[int, int] | None = None, properties: bytes = b"",
) -> Path:  # fmt: skip
    """A HEIC picture of one item or of a grid of tiles of one size.

    Args:
        path: the file to write.
        tiles: (H, W, 3) each, row by row.
        rows, columns: of the grid.
        shape: (H, W) of the picture; the tiles may be larger together.
        properties: boxes such as ``irot`` that hold for the picture, 9 bytes each.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:  # for its hvcC box and its samples
        options = {"x265-params": "log-level=none:keyint=1:bframes=0"}
        stream = container.add_stream("libx265", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt, stream.codec_tag = *tiles[0].shape[:2], "yuv420p", "hvc1"
        for tile in tiles:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(tile, format="rgb24")))
        container.mux(stream.encode(None))
    data = buffer.getvalue()
    at = data.index(b"hvcC") - 4
    hvcc = data[at : at + int.from_bytes(data[at : at + 4])]
    with av.open(io.BytesIO(data)) as container:
        samples = [bytes(packet) for packet in container.demux(video=0) if packet.size]

    height, width = tiles[0].shape[:2]
    full_height, full_width = shape or (rows * height, columns * width)
    grid = rows * columns > 1
    items = list(range(1, len(samples) + 1))
    primary = len(samples) + 1 if grid else 1
    kinds = [(item, b"hvc1") for item in items] + ([(primary, b"grid")] if grid else [])
    infos = [_full(b"infe", 2, struct.pack(">HH", item, 0), kind, b"\0") for item, kind in kinds]
    sizes = [_full(b"ispe", 0, struct.pack(">II", *size)) for size in ((width, height), (full_width, full_height))]
    extra = list(range(4, 4 + len(properties) // 9))  # numbers of the properties in ipco
    links = [(item, [0x81, 2]) for item in items]
    if grid:
        links.append((primary, [3, *(0x80 | number for number in extra)]))
    ipma = [struct.pack(">HB", item, len(numbers)) + bytes(numbers) for item, numbers in links]
    iprp = box(
        b"iprp",
        box(b"ipco", hvcc, *sizes, properties),
        _full(b"ipma", 0, struct.pack(">I", len(ipma)), *ipma),
    )
    iref, idat = b"", b""
    if grid:
        iref = _full(b"iref", 0, box(b"dimg", struct.pack(f">HH{len(items)}H", primary, len(items), *items)))
        idat = box(b"idat", struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, full_width, full_height))

    def head(start: int) -> bytes:
        places: list[bytes] = []
        for item, sample in zip(items, samples, strict=True):
            places.append(struct.pack(">HHHHII", item, 0, 0, 1, start, len(sample)))
            start += len(sample)
        if grid:
            places.append(struct.pack(">HHHHII", primary, 1, 0, 1, 0, 8))
        iloc = _full(b"iloc", 1, b"\x44\0", struct.pack(">H", len(places)), *places)
        hdlr = _full(b"hdlr", 0, bytes(4), b"pict", bytes(13))
        iinf = _full(b"iinf", 0, struct.pack(">H", len(infos)), *infos)
        meta = _full(b"meta", 0, hdlr, _full(b"pitm", 0, struct.pack(">H", primary)), iloc, iinf, iref, iprp, idat)
        return box(b"ftyp", b"heic", bytes(4), b"mif1", b"heic") + meta

    path.write_bytes(head(len(head(0)) + 8) + box(b"mdat", *samples))
    return path
