"""Stills, files with Range, and versions that browsers play."""

from __future__ import annotations

import errno
import io
import itertools
import random
import re
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import pytest

import films
from evilm.data.video.clips import VideoFacts
from evilm.server.media import FullError, Job, Media, Part, playable
from evilm.server.video_routes import MAX_RANGES


def test_stills_of_a_segment_and_of_a_time(site: Any) -> None:
    hit = site.hit("long.mp4")
    pictures = {site.ask("GET", f"/api/thumbnails/{hit['segment']}?n={n}&height=90").body for n in range(8)}
    assert len(pictures) > 4
    reply = site.ask("GET", f"/api/thumbnails/{hit['segment']}")
    assert reply.headers["content-type"] == "image/jpeg"
    assert "immutable" in reply.headers["cache-control"]
    still = site.ask("GET", f"/api/videos/{hit['video']}/still?time=12&height=90")
    with av.open(io.BytesIO(still.body)) as container:
        assert next(container.decode(video=0)).height == 90
    assert site.ask("GET", f"/api/thumbnails/{hit['segment']}?n=8").status == 422
    assert site.ask("GET", f"/api/videos/{hit['video']}/still?time=nan").status == 422


def finished(job: Job) -> Job:
    """A job once it has ended."""
    end = time.monotonic() + 60
    while job.state in ("queued", "running") and time.monotonic() < end:
        time.sleep(0.02)
    return job


def oracle(value: str, size: int) -> list[tuple[int, int]] | str | None:
    """RFC 9110, section 14: the (first, last) bytes to send, None for the whole file, or ``unsatisfiable``."""
    matched = re.fullmatch(r"bytes=(.*)", value.strip(), re.IGNORECASE)
    if matched is None:
        return None
    spans: list[tuple[int, int]] = []
    for part in matched[1].split(","):
        one = re.fullmatch(r"\s*(\d*)-(\d*)\s*", part, re.ASCII)
        if one is None or one[0].strip() == "-" or (one[1] and one[2] and int(one[1]) > int(one[2])):
            return None
        if not one[1]:
            if int(one[2]):
                spans.append((max(0, size - int(one[2])), size - 1))
        elif int(one[1]) < size:
            spans.append((int(one[1]), min(int(one[2]) if one[2] else size - 1, size - 1)))
    return spans or "unsatisfiable"


RANGES = [
    "bytes=0-9", "bytes=0-0", "bytes=5-", "bytes=-7", "bytes=-0", "bytes=-999999999", "bytes=0-999999999",
    "bytes=999999999-", "bytes=999999999-9999999999", "bytes=9-5", "bytes=a-b", "bytes=", "bytes", "bytes=-", "0-9",
    "bytes=1-2-3", "pages=1-2", "items=0-5", "bytes=0-1,5-6", "bytes=0-1, -2", "bytes=0-9,999999999-",
    "bytes=1-2,x", "BYTES=0-3", "bytes=--5", "bytes=+1-2", "bytes=1.5-3", "bytes=0x0-0x9", "bytes= 0-4",
    f"bytes=0-{10**30}", "bytes=\xd9\xa0-\xd9\xa9",
]  # fmt: skip


@pytest.mark.parametrize("value", RANGES)
def test_ranges_follow_the_standard(site: Any, value: str) -> None:
    path = site.videos / "long.mp4"
    data, address = path.read_bytes(), f"/api/videos/{site.hit('long.mp4')['video']}/file"
    reply, expected = site.ask("GET", address, Range=value), oracle(value, path.stat().st_size)
    if expected is None:
        assert (reply.status, reply.body, reply.headers["accept-ranges"]) == (200, data, "bytes")
    elif expected == "unsatisfiable":
        assert (reply.status, reply.headers["content-range"]) == (416, f"bytes */{len(data)}")
    elif len(expected) == 1:
        first, last = expected[0]
        assert reply.status == 206
        assert reply.headers["content-range"] == f"bytes {first}-{last}/{len(data)}"
        assert reply.body == data[first : last + 1]
    else:
        assert reply.status == 206
        assert reply.headers["content-type"].startswith("multipart/byteranges")
        for first, last in expected:
            assert data[first : last + 1] in reply.body


def test_random_ranges_follow_the_standard(site: Any) -> None:
    path = site.videos / "long.mp4"
    data, address, draw = path.read_bytes(), f"/api/videos/{site.hit('long.mp4')['video']}/file", random.Random(5)
    size = len(data)

    def number() -> str:
        return str(draw.choice([0, 1, draw.randrange(size), size - 1, size, size + 1, draw.randrange(2 * size)]))

    def part() -> str:
        return draw.choice(
            [f"{number()}-{number()}", f"{number()}-", f"-{number()}", draw.choice(["x", "", "--", "1"])]
        )

    for _ in range(400):
        value = "bytes=" + ",".join(part() for _ in range(draw.choice([1, 1, 1, 2, 3, MAX_RANGES + 1])))
        expected = None if value.count(",") >= MAX_RANGES else oracle(value, size)
        reply = site.ask("GET", address, Range=value)
        if expected is None:
            assert (reply.status, len(reply.body)) == (200, size), value
        elif expected == "unsatisfiable":
            assert reply.status == 416, value
        else:
            assert reply.status == 206, value
            if reply.headers["content-type"].startswith("multipart/"):
                assert all(data[first : last + 1] in reply.body for first, last in expected), value
            else:  # one range, or several that touch each other
                first, last = min(first for first, _ in expected), max(last for _, last in expected)
                assert reply.headers["content-range"] == f"bytes {first}-{last}/{size}", value
                assert reply.body == data[first : last + 1], value


def test_if_range_sends_the_part_only_of_the_same_file(site: Any) -> None:
    address = f"/api/videos/{site.hit('long.mp4')['video']}/file"
    first = site.ask("GET", address, Range="bytes=0-9")
    for name in ("etag", "last-modified"):
        same = site.ask("GET", address, Range="bytes=0-9", If_Range=first.headers[name])
        assert (same.status, len(same.body)) == (206, 10)
    for other in ('"other"', "Wed, 01 Jan 2020 00:00:00 GMT"):
        assert site.ask("GET", address, Range="bytes=0-9", If_Range=other).status == 200
    head = site.ask("HEAD", address)
    assert (head.status, head.body, int(head.headers["content-length"])) == (
        200,
        b"",
        (site.videos / "long.mp4").stat().st_size,
    )
    many = "bytes=" + ",".join(f"{n}-{n}" for n in range(0, 2000, 2))
    assert site.ask("GET", address, Range=many).status == 200, "hundreds of ranges are ignored"


@pytest.mark.parametrize(("name", "play"), [("long.mp4", "direct"), ("boat.mkv", "remux"), ("cliff.mp4", "transcode")])
def test_every_video_can_be_played(site: Any, name: str, play: str) -> None:
    video = site.hit(name)["video"]
    about = site.ask("GET", f"/api/videos/{video}").json
    assert (about["play"], about["name"], len(about["segments"]) > 0) == (play, name, True)
    reply = site.ask("GET", f"/api/videos/{video}/proxy")
    assert reply.status in (200, 202)
    job = site.wait_for_job(site.ask("GET", f"/api/videos/{video}/proxy?state=1").json)
    assert job["state"] == "done", job
    made = site.ask("GET", f"/api/videos/{video}/proxy", Range="bytes=0-99")
    assert (made.status, made.headers["content-type"], len(made.body)) == (206, "video/mp4", 100)
    with av.open(io.BytesIO(site.ask("GET", f"/api/videos/{video}/proxy").body)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


@pytest.mark.parametrize(
    ("facts", "name", "play"),
    [
        (("h264", "yuv420p", "mov", "aac"), "a.mp4", "direct"),
        (("h264", "yuv420p", "mov", "ac3"), "a.mp4", "remux"),
        (("h264", "yuv420p", "matroska", None), "a.mkv", "remux"),
        (("vp9", "yuv420p", "matroska", "opus"), "a.webm", "direct"),
        (("h264", "yuv420p10le", "mov", None), "a.mp4", "transcode"),
        (("h264", "yuv422p", "mov", None), "a.mp4", "transcode"),
        (("hevc", "yuv420p", "mov", "aac"), "a.mp4", "transcode"),
        (("mpeg2video", "yuv420p", "mpeg", "mp2"), "a.mpg", "transcode"),
    ],
)
def test_how_a_browser_plays_a_file(facts: tuple[str, str, str, str | None], name: str, play: str) -> None:
    codec, pixels, container, sound = facts
    assert playable(VideoFacts(64, 64, codec, pixels, container, 1.0, 25.0, sound), Path(name)) == play


@pytest.mark.parametrize(
    ("name", "options"),
    [("old.mpg", {"codec": "mpeg2video", "second": 25}), ("ten.mp4", {"profile": "high10", "pix_fmt": "yuv420p10le"})],
)
def test_old_codecs_and_ten_bits_are_converted(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    path = films.write(tmp_path / name, list(range(50) if "second" in options else range(0, 200, 4)), **options)
    media = Media()
    try:
        job = finished(media.proxy(path))
        assert (job.state, job.message) == ("done", "")
        with av.open(str(media.file(job.job))) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            shown = [films.number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        assert shown == list(range(50))
    finally:
        media.close()


def test_a_full_disk_ends_an_export_and_leaves_nothing(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", write)
    media = Media()
    try:
        job = finished(media.clips([Part(site.videos / "long.mp4", 0.0, 2.0, {})], exact=False))
        assert (job.state, job.message) == ("failed", "the file cannot be written: No space left on device")
        assert not list(media.folder.iterdir())
        monkeypatch.undo()
        again = finished(media.clips([Part(site.videos / "long.mp4", 0.0, 2.0, {})], exact=False))
        assert again.state == "done", "the next export works"
    finally:
        media.close()


def test_playable_versions_are_bounded(tmp_path: Path, site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evilm.server.media.MAX_JOBS", 3)
    monkeypatch.setattr("evilm.server.media.MAX_BYTES", 30_000)
    media = Media()
    try:
        paths = []
        for number in range(5):
            paths.append(tmp_path / f"{number}.mkv")
            paths[-1].write_bytes((site.videos / "boat.mkv").read_bytes())
        jobs = [media.proxy(path) for path in paths[:3]]
        full = 0
        for path in paths[3:]:
            try:
                jobs.append(media.proxy(path))
            except FullError:
                full += 1
        assert full or len(jobs) == 5
        assert media.proxy(paths[0]).job == jobs[0].job, "one job for one file"
        media._work.shutdown(wait=True)
        kept = sum(path.stat().st_size for path in media.folder.glob("*.mp4"))
        assert kept <= max(30000, *(path.stat().st_size for path in media.folder.glob("*.mp4")))
    finally:
        media.close()
    assert not media.folder.exists()


def test_exports_are_bounded_in_size_time_and_number(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [Part(site.videos / "long.mp4", 0.0, 2.0, {})] * 3

    def made(media: Media) -> Job:
        return finished(media.clips(parts, exact=False))

    media = Media()
    try:
        for name, value, message in (("MAX_BYTES", 1000, "MiB together"), ("EXPORT_SECONDS", 0.0, "minutes")):
            with monkeypatch.context() as patch:
                patch.setattr(f"evilm.server.media.{name}", value)
                job = made(media)
            assert (job.state, job.download) == ("failed", False)
            assert message in job.message
            assert not list(media.folder.iterdir()), "nothing is left of it"
        monkeypatch.setattr("evilm.server.media.MAX_FILES", 2)
        jobs = [made(media) for _ in range(4)]
        assert [media.file(job.job) is not None for job in jobs] == [False, False, True, True]
        assert len(list(media.folder.iterdir())) == 2
    finally:
        media.close()


def test_a_file_that_a_link_replaced_is_not_served(serve: Any, world: Path, tmp_path: Path) -> None:
    from evilm.search.index import VideoIndex

    folder, secret = tmp_path / "videos", tmp_path / "secret.mp4"
    folder.mkdir()
    secret.write_bytes(b"secret " * 50)
    (folder / "clip.mp4").write_bytes((world / "long.mp4").read_bytes())
    (folder / "other.mp4").write_bytes((world / "trips" / "trip1.mp4").read_bytes())
    VideoIndex.build(folder, "world-tiny", tmp_path / "index", workers=1).close()
    with serve(tmp_path / "index", folder) as own:
        video = own.hit("clip.mp4")["video"]
        assert own.ask("GET", f"/api/videos/{video}/file").status == 200
        (folder / "clip.mp4").unlink()
        (folder / "clip.mp4").symlink_to(secret)
        for part in ("file", "proxy", "still?time=0"):
            reply = own.ask("GET", f"/api/videos/{video}/{part}")
            assert reply.status == 404, part
            assert b"secret " not in reply.body
        (folder / "clip.mp4").unlink()
        assert own.ask("GET", f"/api/videos/{video}/file").status == 404
        assert own.search(limit=10)["total"] == 4, "it can still be found"


def test_equal_stills_are_decoded_once(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    media = site.services.media
    decode = media.pool.thumbnails

    def counted(*arguments: Any) -> Any:
        next(calls)
        return decode(*arguments)

    monkeypatch.setattr(media.pool, "thumbnails", counted)
    segment = site.hit("trip3.mp4")["segment"]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda n: site.ask("GET", f"/api/thumbnails/{segment}?n={n}&height=720"), range(8)))
    assert {reply.status for reply in replies} == {200}
    assert next(calls) == 1
