"""Lists of segments for other programs: CSV, JSON, EDL and FCPXML. None of them holds a folder of this machine."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from evilm.server.media import Part


STILL_SECONDS = 5.0  # that a picture is shown in a timeline


def to_csv(parts: Sequence[Part]) -> bytes:
    """One row a segment: file, folder, start, end, date, score."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["name", "folder", "start", "end", "date", "score"], extrasaction="ignore")
    writer.writeheader()
    # A leading quote keeps spreadsheets from taking a file name for a formula.
    for part in parts:
        row = {
            name: f"'{value}" if isinstance(value, str) and value[:1] in "=+-@" else value
            for name, value in part.row.items()
        }
        writer.writerow(row | {"start": f"{part.start:.3f}", "end": f"{part.end:.3f}"})
    return out.getvalue().encode()


def to_json(parts: Sequence[Part]) -> bytes:
    """All fields of each segment."""
    rows = [part.row | {"start": round(part.start, 3), "end": round(part.end, 3)} for part in parts]
    return (json.dumps({"segments": rows}, indent=2, ensure_ascii=False) + "\n").encode()


def timecode(seconds: float, rate: int = 25) -> str:
    """``hh:mm:ss:ff`` at a whole frame rate."""
    frames = round(seconds * rate)
    whole, rest = divmod(frames, rate)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}:{rest:02d}"


def to_edl(parts: Sequence[Part], rate: int = 25) -> bytes:
    """A CMX 3600 edit decision list: segments one after the other, at 25 frames a second."""
    lines = ["TITLE: E-ViLM segments", "FCM: NON-DROP FRAME", ""]
    at = 0.0
    for number, part in enumerate(parts, 1):
        length = _shown(part)
        times = " ".join(timecode(value, rate) for value in (part.start, part.start + length, at, at + length))
        lines += [f"{number:03d}  AX       V     C        {times}", f"* FROM CLIP NAME: {part.path.name}", ""]
        at += length
    return "\n".join(lines).encode()


def to_fcpxml(parts: Sequence[Part], rate: int = 25) -> bytes:
    """An FCPXML 1.9 timeline: segments one after the other."""

    def span(seconds: float) -> str:
        return f"{round(seconds * rate)}/{rate}s"

    root = ET.Element("fcpxml", version="1.9")
    resources = ET.SubElement(root, "resources")
    ET.SubElement(resources, "format", id="r0", frameDuration=f"1/{rate}s", width="1920", height="1080")
    event = ET.SubElement(ET.SubElement(root, "library"), "event", name="E-ViLM")
    project = ET.SubElement(event, "project", name="Segments")
    total = sum(_shown(part) for part in parts)
    sequence = ET.SubElement(project, "sequence", format="r0", duration=span(total))
    spine = ET.SubElement(sequence, "spine")
    assets: dict[Path, str] = {}
    at = 0.0
    for part in parts:
        if part.path not in assets:
            assets[part.path] = name = f"r{len(assets) + 1}"
            asset = ET.SubElement(
                resources, "asset", id=name, name=part.path.name, hasVideo="1", format="r0", start="0s"
            )
            ET.SubElement(asset, "media-rep", kind="original-media", src=part.path.name)
        clip = {"name": part.path.name, "ref": assets[part.path], "offset": span(at), "start": span(part.start),
                "duration": span(_shown(part))}  # fmt: skip
        ET.SubElement(spine, "asset-clip", clip)
        at += _shown(part)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE fcpxml>\n' + ET.tostring(root)


def _shown(part: Part) -> float:
    """Seconds of a part in a timeline."""
    return part.end - part.start or STILL_SECONDS


WRITERS: dict[str, tuple[Callable[[Sequence[Part]], bytes], str]] = {
    "csv": (to_csv, "text/csv; charset=utf-8"), "json": (to_json, "application/json"),
    "edl": (to_edl, "text/plain; charset=utf-8"), "fcpxml": (to_fcpxml, "application/xml"),
}  # fmt: skip
