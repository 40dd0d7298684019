"""Searching through the interface: texts, examples, filters, order, paging, scores, exports."""

from __future__ import annotations

import csv
import io
import itertools
import json
import resource
import struct
import time
import zipfile
import zlib
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import av
import pytest

import evilm
from evilm.search.index import VideoIndex
from evilm.server.library import Library, Request

if TYPE_CHECKING:
    from pathlib import Path

QUERY = "a red square moves to the right"


def test_a_search_gives_the_same_hits_as_the_index(site: Any, world_index: Path) -> None:
    found = site.search(text=QUERY, limit=10)
    with VideoIndex.open(world_index) as index:
        hits = index.search(QUERY, k=10)
    assert [row["segment"] for row in found["hits"]] == [str(hit.segment_id) for hit in hits]
    assert [row["score"] for row in found["hits"]] == pytest.approx([hit.score for hit in hits], abs=1e-3)
    assert (found["total"], found["no_good_match"], found["good"]) == (hits.total, hits.no_good_match, hits.good)
    assert "/" not in found["hits"][0]["name"]


def test_a_minus_takes_away_and_a_plus_adds(site: Any) -> None:
    plain = site.search(text="red square", limit=60)
    without = site.search(text="red square -blue", limit=60)
    assert without["query"] == {"plus": ["red square"], "minus": ["blue"]}
    assert site.search(text='red +"blue circle" -"a ring"')["query"] == {
        "plus": ["red", "blue circle"],
        "minus": ["a ring"],
    }
    assert [row["segment"] for row in plain["hits"]] != [row["segment"] for row in without["hits"]]
    assert site.ask("POST", "/api/search", {"text": "-blue"}).status == 400


def test_words_of_the_query_that_a_segment_matches_are_listed(site: Any) -> None:
    rows = site.search(text="red square", filters={"name": "long"}, limit=3)["hits"]
    assert all(set(row["words"]) <= {"red", "square"} for row in rows)
    like = site.search(segment=site.hit("trip1.mp4")["segment"], text="circle square", limit=30)["hits"]
    assert not any(row["words"] for row in like if not row["good"]), "nothing is claimed of weak hits"
    library = site.services.catalog.library
    request = Request(plus=("green circle and the square",), count=40)
    [hits] = library.search([request])
    [words] = library.matching_words([(request, list(hits))])
    assert {word for row in words for word in row} <= {"green", "circle", "square"}
    assert any(words)


def test_more_like_a_segment_finds_it_first(site: Any) -> None:
    segment = site.search(text=QUERY, limit=1)["hits"][0]["segment"]
    found = site.search(segment=segment, limit=3)
    assert found["hits"][0]["segment"] == segment
    assert found["hits"][0]["score"] == pytest.approx(1.0, abs=1e-3)
    assert site.search(segment=segment, text="blue", limit=3)["total"] == found["total"]


def test_filters_narrow_a_search(site: Any) -> None:
    assert {row["folder"] for row in site.search(text=QUERY, filters={"folder": "trips"})["hits"]} == {"trips"}
    assert site.search(text=QUERY, filters={"name": "LONG"})["total"] == 3
    assert {row["name"] for row in site.search(filters={"min_seconds": 10}, limit=200)["hits"]} == {"long.mp4"}
    assert site.search(filters={"max_seconds": 10}, limit=1)["total"] + 3 == site.search(limit=1)["total"]
    assert site.search(text=QUERY, filters={"before": "2000-01-01"})["hits"] == []
    assert site.search(text=QUERY, filters={"after": "2000-01-01"})["total"] > 20
    assert site.search(filters={"name": "[ab]*"})["total"] == 0, "a name is no pattern"
    for wrong in ({"folder": "../.."}, {"folder": "/etc"}, {"folder": "a\0b"}, {"after": "yesterday"},
                  {"before": "9999-12-31"}, {"folder": "nowhere"}):  # fmt: skip
        assert site.ask("POST", "/api/search", {"text": QUERY, "filters": wrong}).status in (400, 422), wrong
    assert site.ask("POST", "/api/search", {"text": QUERY, "filter": {}}).status == 422, "an unknown field"


def test_results_are_sorted_by_date_or_name(site: Any) -> None:
    names = [row["name"].lower() for row in site.search(sort="name", limit=200)["hits"]]
    assert names == sorted(names)
    dates = [row["date"] for row in site.search(sort="date", limit=200)["hits"]]
    assert dates == sorted(dates, reverse=True)
    found = [row["name"].lower() for row in site.search(text=QUERY, sort="name", limit=200)["hits"]]
    assert found == sorted(found)


@pytest.mark.parametrize("body", [{"text": QUERY}, {}, {"sort": "name"}], ids=["by score", "all", "by name"])
def test_paging_reaches_every_segment_once(site: Any, body: dict[str, Any]) -> None:
    seen: list[str] = []
    cursor = None
    for _ in range(40):
        page = site.search(**body, limit=7, cursor=cursor)
        seen += [row["segment"] for row in page["hits"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == page["total"] == len(site.services.catalog.library.need())


def test_a_text_without_known_words_is_refused_plainly(site: Any) -> None:
    reply = site.ask("POST", "/api/search", {"text": "ひらがな カタカナ"})
    assert reply.status == 400
    assert "does not know" in reply.json["error"]["message"]


def test_scores_cover_the_whole_video(site: Any) -> None:
    hit = site.hit("long.mp4")
    rows = site.ask("GET", f"/api/videos/{hit['video']}/scores?text=green").json["segments"]
    assert [round(row["start"]) for row in rows] == [0, 8, 16]
    assert all(0 <= row["score"] <= 1 for row in rows)
    same = site.ask("GET", f"/api/videos/{hit['video']}/scores?segment={hit['segment']}").json["segments"]
    assert same[0]["score"] == pytest.approx(1.0, abs=1e-3)
    assert site.ask("GET", f"/api/videos/{hit['video']}/scores").status == 400
    assert site.ask("GET", "/api/videos/99999/scores?text=red").status == 404


def test_a_picture_and_a_clip_can_be_searched_by(site: Any) -> None:
    hit, before = site.hit("long.mp4"), set(site.services.media.folder.iterdir())
    picture = site.ask("GET", f"/api/thumbnails/{hit['segment']}?height=180")
    answer = site.ask("POST", "/api/uploads", picture.body, X_Filename="still.jpg").json
    assert answer["kind"] == "picture"
    assert "long.mp4" in [hit["name"] for hit in site.search(upload=answer["upload"], limit=5)["hits"]]
    clip = (site.videos / "trips" / "trip1.mp4").read_bytes()
    answer = site.ask("POST", "/api/uploads", clip, X_Filename="..%2F..%2Fpasted").json
    assert (answer["kind"], answer["name"]) == ("video", "pasted")
    assert site.search(upload=answer["upload"], limit=1)["hits"][0]["name"] == "trip1.mp4"
    assert site.search(upload=answer["upload"], text="red", limit=1)["hits"]
    assert site.ask("POST", "/api/search", {"upload": "0" * 16}).status == 400
    assert set(site.services.media.folder.iterdir()) <= before, "uploads are kept as vectors only"


def test_uploads_that_are_no_pictures_are_refused(site: Any) -> None:
    for data, name in ((b"nonsense" * 100, "a.jpg"), (b"nonsense" * 100, "a.mp4"), (b"", "a.png"), (b"x", "../a")):
        reply = site.ask("POST", "/api/uploads", data, X_Filename=name)
        assert reply.status == 415, (name, reply.body)
        assert str(site.services.media.folder) not in reply.body.decode()
    assert site.ask("POST", "/api/uploads", b"x" * (4 << 20) + b"y", X_Filename="a.mp4").status == 413


def test_a_picture_bomb_is_refused(site: Any) -> None:
    """16,000 x 16,000 pixels in 31 kB: 768 MB as RGB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(2001) * 16_000, 9)
    header = struct.pack(">IIBBBBB", 16_000, 16_000, 1, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert len(bomb) < 64_000
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    for name in ("bomb.png", "bomb.mp4"):
        reply = site.ask("POST", "/api/uploads", bomb, X_Filename=name)
        assert reply.status == 415, reply.body
    assert time.monotonic() - began < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 200_000, "KiB of this process"


def test_an_unknown_segment_or_video_is_404(site: Any) -> None:
    for path in ("/api/segments/999999", "/api/videos/999999", "/api/videos/999999/file", "/api/thumbnails/999999",
                 "/api/videos/999999/proxy", "/api/videos/999999/still?time=1", "/api/jobs/abc", "/api/jobs/abc/file",
                 "/api/runs/abc", "/api/nothing", "/nothing.js"):  # fmt: skip
        reply = site.ask("GET", path)
        assert reply.status == 404, path
        assert set(reply.json["error"]) == {"code", "message"}


def export(site: Any, form: str, **options: Any) -> Any:
    hits = [site.hit("long.mp4"), site.hit("boat.mkv")]
    segments = [{"segment": hits[0]["segment"], "start": 1.0, "end": 3.0}, {"segment": hits[1]["segment"]}]
    return site.ask("POST", "/api/exports", {"segments": segments, "format": form, **options})


def test_lists_are_exported(site: Any) -> None:
    rows = list(csv.DictReader(io.StringIO(export(site, "csv").body.decode())))
    assert next((row["name"], row["start"], row["end"]) for row in rows) == ("long.mp4", "1.000", "3.000")
    reply = export(site, "json")
    assert [row["name"] for row in json.loads(reply.body)["segments"]] == ["long.mp4", "boat.mkv"]
    assert reply.headers["content-disposition"] == 'attachment; filename="segments.json"'
    assert b"FROM CLIP NAME: boat.mkv" in export(site, "edl").body
    text = export(site, "fcpxml").body
    assert len(ET.fromstring(text.split(b"<!DOCTYPE fcpxml>\n")[1]).findall(".//asset-clip")) == 2  # noqa: S314
    assert str(site.videos).encode() not in text
    wrong = {"segments": [{"segment": "1", "start": 5, "end": 2}], "format": "csv"}
    assert site.ask("POST", "/api/exports", wrong).status == 400


@pytest.mark.parametrize("exact", [False, True])
def test_clips_are_cut_into_a_zip_that_plays(site: Any, exact: bool, tmp_path: Path) -> None:
    reply = export(site, "clips", exact=exact)
    assert reply.status == 202
    job = site.wait_for_job(reply.json)
    assert (job["state"], job["progress"], job["download"]) == ("done", 1.0, True), job
    saved = site.ask("GET", f"/api/jobs/{job['job']}/file")
    with zipfile.ZipFile(io.BytesIO(saved.body)) as bundle:
        assert len(bundle.namelist()) == 2
        bundle.extractall(tmp_path)
    for path, seconds in itertools.zip_longest(sorted(tmp_path.iterdir()), (2.0, 3.0)):
        with av.open(str(path)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert container.duration / 1e6 == pytest.approx(seconds, abs=0.6)


def test_the_python_client(site: Any) -> None:
    client = evilm.Client(site.address)
    hits = client.search(QUERY, k=5, name="video")
    assert len(hits) == 5
    assert hits[0].score >= hits[-1].score
    assert client.thumbnail(hits[0].segment)[:2] == b"\xff\xd8"
    assert client.index()["ready"]
    upload = client.upload(site.videos / "trips" / "trip2.mp4")
    assert client.call("POST", "/api/search", {"upload": upload})["hits"][0]["name"] == "trip2.mp4"
    with pytest.raises(evilm.EvilmError, match="no such video"):
        client.ask("99999", "what is it?")
    with pytest.raises(evilm.EvilmError, match="no server answers"):
        evilm.Client("http://127.0.0.1:9", timeout=2).index()


def test_a_model_without_attention_shows_how_well_each_frame_fits(world: Path, tmp_path: Path) -> None:
    """The film is red for 8 s and green for 8 s: the frames of the right colour have the greater weights."""
    VideoIndex.build(world / "trips", "evilm-photo", tmp_path / "index", workers=1).close()
    library = Library(tmp_path / "index", None)
    try:
        assert library.model.metadata.embedding == "pooled"
        found = library.ask(world / "long.mp4", 0.0, 16.0, "a square that is", ["red", "green"])
        times = [frame["time"] for frame in found["frames"]]
        assert times == sorted(times)
        assert sum(frame["weight"] for frame in found["frames"]) == pytest.approx(1, abs=1e-3)
        first = sum(frame["weight"] for frame in found["frames"] if frame["time"] < 8)
        assert first > 0.5 if found["answer"] == "red" else first < 0.5
    finally:
        library.close()


def test_a_question_needs_choices_where_the_model_has_no_answers(site: Any) -> None:
    video = site.hit("long.mp4")["video"]
    assert site.ask("GET", "/api/index").json["model"]["asks"] is False
    reply = site.ask("POST", f"/api/videos/{video}/ask", {"question": "what color is the square?"})
    assert (reply.status, reply.json["error"]["code"]) == (400, "refused")
    body = {"question": "a square is", "choices": ["red", "green", "blue"], "start": 0, "end": 8}
    answer = site.ask("POST", f"/api/videos/{video}/ask", body).json
    assert answer["answer"] in body["choices"]
    assert sum(row["probability"] for row in answer["answers"]) == pytest.approx(1, abs=1e-3)
    assert sum(frame["weight"] for frame in answer["frames"]) == pytest.approx(1, abs=1e-3)
    assert all(0 <= frame["time"] <= 8 for frame in answer["frames"])
