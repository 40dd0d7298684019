"""Hostile requests: traversal, markup in names, random bodies; no answer shows a path or a trace."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PLACES = ("/api/segments/{}", "/api/thumbnails/{}", "/api/videos/{}", "/api/videos/{}/file", "/api/videos/{}/proxy",
          "/api/videos/{}/still?time=1", "/api/videos/{}/scores?text=red", "/api/jobs/{}", "/api/jobs/{}/file",
          "/api/runs/{}", "/api/folders?parent={}", "/{}", "/js/{}", "/vendor/{}")  # fmt: skip
TARGETS = ("etc/passwd", "proc/self/environ", "proc/self/cmdline", "index.db", "../index/index.db", "pyproject.toml")


def payloads() -> list[str]:
    """Ways to write a path that leads out of a folder."""
    dots = ("../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "..\\", "....//", "..;/", "%252e%252e%252f", "..%c0%af",
            "%c0%ae%c0%ae/", "..%00/", "%2e%2e%5c", ".%2e/", "..//")  # fmt: skip
    chains = [dot * depth + target for dot, depth, target in itertools.product(dots, (1, 4, 9), TARGETS)]
    plain = ["/" + target for target in TARGETS] + [
        "file:///etc/passwd", "//etc/passwd", "%2fetc%2fpasswd", "1/../../etc/passwd", "1%2f..%2f..%2fetc%2fpasswd",
        "~/.ssh/id_rsa", "C:%5cboot.ini", "%00", "-1", "1e9", "0x1", "%D9%A1", "1" * 30,
    ]  # fmt: skip
    return chains + plain


def test_no_payload_leads_out(site: Any) -> None:
    """2,000 requests; none of them answers with a file of the machine."""
    every = list(itertools.product(PLACES, payloads()))
    random.Random(0).shuffle(every)
    for place, payload in every[:2000]:
        path = place.format(payload if "?" not in payload else quote(payload))
        reply = site.ask("GET", path)
        assert reply.status in (200, 307, 400, 404, 405, 422), (path, reply.status, reply.body[:200])
        for secret in (b"root:x:0", b"PATH=", b"SQLite format", b"[project]", b"pytest"):
            assert secret not in reply.body, path
        assert reply.status != 200 or payload == "%D9%A1", (path, reply.body[:100])


def test_a_file_name_with_markup_stays_text(site: Any) -> None:
    hit = site.hit("script>.mp4")
    reply = site.ask("GET", f"/api/segments/{hit['segment']}")
    assert (reply.json["folder"], reply.json["name"]) == ("<script>alert(1)<", "script>.mp4")
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-content-type-options"] == "nosniff"
    page = site.ask("GET", "/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]


def test_errors_show_no_paths_and_no_traces(site: Any) -> None:
    video = site.hit("long.mp4")["video"]
    requests = [
        ("POST", "/api/search", b"{"), ("POST", "/api/search", {"text": "red", "filters": {"folder": "nowhere"}}),
        ("POST", "/api/search", {"text": ""}), ("POST", "/api/search", {"segment": "99999"}), ("GET", "/api/x", None),
        ("POST", f"/api/videos/{video}/ask", {"question": " "}), ("POST", "/api/scan", {"folder": "f" * 24}),
        ("POST", "/api/scan", {"samples": True}), ("DELETE", "/api/search", None),
        ("GET", "/api/folders?parent=x", None),
        ("POST", "/api/uploads", b"nonsense"), ("PUT", "/api/saved", {"saved": [{"name": "a" * 300, "query": ""}]}),
        ("POST", "/api/exports", {"segments": [{"segment": "99999"}], "format": "csv"}),
    ]  # fmt: skip
    for method, path, body in requests:
        reply = site.ask(method, path, body)
        if reply.status >= 400:
            assert set(reply.json["error"]) == {"code", "message"}, (path, reply.body)
        text = reply.body.decode()
        assert reply.status < 500, (path, text)
        assert "Traceback" not in text
        assert str(site.index.parent) not in text, (path, text)
        assert "/tmp" not in text, (path, text)  # noqa: S108


def test_a_failure_inside_the_server_is_answered_plainly(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("secret /home/somebody/videos")

    monkeypatch.setattr(site.services.runs, "list", fail)
    reply = site.ask("GET", "/api/runs")
    assert (reply.status, reply.json["error"]["code"]) == (500, "fault")
    assert b"somebody" not in reply.body
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_other_hosts_origins_and_large_bodies_are_refused(site: Any) -> None:
    assert site.ask("GET", "/api/health", Host="evil.example").status == 421
    assert site.ask("GET", "/api/health", Origin="http://evil.example").status == 403
    assert site.ask("POST", "/api/search", b" " * (2 << 20)).status == 413
    assert site.ask("GET", "/docs").status == 404
    text = site.ask("GET", "/metrics").body.decode()
    assert "evilm_searches_total" in text


def test_random_bodies_never_fail_the_server(site: Any) -> None:
    draw = random.Random(1)
    values = [
        None,
        True,
        -1,
        0,
        1,
        1e308,
        "",
        "red",
        "a" * 3000,
        "\ud800",
        "\0",
        "\u202e",
        [],
        {},
        [[[]]],
        {"a": 1},
        "-1",
    ]
    names = (
        "text",
        "segment",
        "upload",
        "filters",
        "sort",
        "limit",
        "cursor",
        "question",
        "segments",
        "format",
        "saved",
    )
    for _ in range(150):
        body = {draw.choice(names): draw.choice(values) for _ in range(draw.randint(1, 4))}
        for method, path in (
            ("POST", "/api/search"),
            ("POST", "/api/exports"),
            ("PUT", "/api/saved"),
            ("POST", "/api/videos/1/ask"),
        ):
            reply = site.ask(method, path, json.dumps(body).encode(), Content_Type="application/json")
            assert reply.status < 500, (path, body, reply.body)


@pytest.mark.slow
def test_the_documented_interface_never_fails(serve: Any, world: Path, world_index: Path, tmp_path: Path) -> None:
    """On a copy of the index: some requests replace the saved searches."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import HealthCheck, Phase, given, settings

    limits = settings(
        max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], database=None
    )
    shutil.copytree(world_index, tmp_path / "index")
    with serve(tmp_path / "index", world, roots=(world.parent,)) as site:
        schema = schemathesis.openapi.from_url(f"{site.address}/openapi.json").exclude(path_regex="/api/(events|scan)")
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) >= 18
        for operation in operations:

            @limits
            @given(case=operation.as_strategy())
            def fuzz(case: Any) -> None:
                reply = case.call(timeout=30)
                assert reply.status_code < 500 or reply.status_code == 503, (case.method, case.path, reply.text[:300])

            fuzz()
