"""Still pictures on the server: searched, shown, exported; no player, no link that leads out of the folder."""

from __future__ import annotations

import csv
import io
import os
import shutil
import zipfile
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest

from pictures import jpeg

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def album(world: Path, tmp_path: Path) -> Path:
    """A folder of a video and a photograph that was taken upright."""
    folder = tmp_path / "album"
    shutil.copytree(world / "trips", folder / "trips")
    pixels = np.full((40, 60, 3), 90, np.uint8)
    pixels[10:30, 20:40] = (220, 40, 40)
    (folder / "red.jpg").write_bytes(jpeg(pixels, 6))
    os.utime(folder / "red.jpg", (0, 0))  # before zip files knew dates
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def gallery(serve: Any, album: Path, tmp_path: Path) -> Iterator[Any]:
    """A server whose first scan indexed the album."""
    with serve(tmp_path / "index", album, roots=(album.parent,), model="world-tiny") as site:
        [top] = site.ask("GET", "/api/folders").json["folders"]
        inside = site.ask("GET", f"/api/folders?parent={top['folder']}").json["folders"]
        folder = next(one["folder"] for one in inside if one["name"] == "album")
        assert site.ask("POST", "/api/scan", {"folder": folder, "pictures": True}).status == 200
        scan = site.wait_for_scan()
        assert (scan["state"], scan["added"], scan["unreadable"]) == ("done", 6, 1), scan
        yield site


def test_pictures_are_found_and_shown(gallery: Any) -> None:
    assert gallery.ask("GET", "/api/index").json["pictures"] is True
    hit = gallery.hit("red.jpg")
    assert (hit["picture"], hit["start"], hit["end"], hit["duration"]) == (True, 0, 0, 0)
    assert gallery.hit("trip1.mp4")["picture"] is False
    assert any(row["name"] == "red.jpg" and row["words"] for row in gallery.search(text="a red square")["hits"])
    for path in (f"thumbnails/{hit['segment']}?height=720", f"videos/{hit['video']}/still?time=0&height=720"):
        reply = gallery.ask("GET", f"/api/{path}")
        assert (reply.status, reply.headers["content-type"]) == (200, "image/jpeg")
        with av.open(io.BytesIO(reply.body)) as file:
            assert next(file.decode(video=0)).to_ndarray(format="rgb24").shape == (60, 40, 3)
    video = gallery.ask("GET", f"/api/videos/{hit['video']}").json
    assert (video["play"], video["width"], video["height"], video["codec"]) == ("picture", 40, 60, "jpeg")
    answer = gallery.ask(
        "POST", f"/api/videos/{hit['video']}/ask", {"question": "a square is", "choices": ["red", "blue"]}
    )
    assert answer.json["answer"] in ("red", "blue")
    assert gallery.ask("GET", f"/api/videos/{hit['video']}/scores?text=red").json["segments"][0]["score"] > 0
    assert gallery.ask("POST", "/api/scan", {}).json["state"] == "running"
    assert gallery.wait_for_scan()["removed"] == 0, "a scan remembers that pictures are wanted"


def test_pictures_are_exported(gallery: Any, album: Path, tmp_path: Path) -> None:
    parts = [{"segment": gallery.hit(name)["segment"]} for name in ("red.jpg", "trip1.mp4")]

    def export(kind: str) -> Any:
        return gallery.ask("POST", "/api/exports", {"segments": parts, "format": kind})

    rows = list(csv.DictReader(io.StringIO(export("csv").body.decode())))
    assert (rows[0]["name"], rows[0]["start"], rows[0]["end"]) == ("red.jpg", "0.000", "0.000")
    assert b"00:00:00:00 00:00:05:00 00:00:00:00 00:00:05:00\n* FROM CLIP NAME: red.jpg" in export("edl").body
    assert b'name="red.jpg" ref="r1" offset="0/25s" start="0/25s" duration="125/25s"' in export("fcpxml").body
    job = gallery.wait_for_job(export("clips").json)
    assert job["state"] == "done", job
    with zipfile.ZipFile(io.BytesIO(gallery.ask("GET", f"/api/jobs/{job['job']}/file").body)) as bundle:
        first, second = bundle.namelist()
        assert (first, second.endswith(".mp4")) == ("001 red.jpg", True)
        assert bundle.read(first) == (album / "red.jpg").read_bytes()
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    (album / "red.jpg").unlink()
    (album / "red.jpg").symlink_to(secret)
    assert export("clips").status == 404


def test_a_picture_that_broke_later_has_no_still(gallery: Any, album: Path) -> None:
    hit = gallery.hit("red.jpg")
    (album / "red.jpg").write_bytes(jpeg(np.zeros((40, 60, 3), np.uint8), 1)[:300])
    assert gallery.ask("GET", f"/api/videos/{hit['video']}/still?time=0").status in (404, 415)
    assert gallery.ask("GET", f"/api/videos/{hit['video']}").json["play"] == "none"
