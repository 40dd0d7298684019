"""Scans: started, watched, stopped; what a stop or a kill leaves; runs, folders and saved searches."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from evilm.search.index import VideoIndex

SOURCE = Path(__file__).resolve().parents[2] / "src"


def test_a_folder_is_chosen_scanned_and_searched(serve: Any, world: Path, tmp_path: Path) -> None:
    with serve(tmp_path / "new", world, roots=(world.parent,)) as site:
        assert site.ask("GET", "/api/index").json["ready"] is False
        assert site.ask("POST", "/api/search", {"text": "red"}).status == 400
        assert site.ask("PUT", "/api/saved", {"saved": []}).status == 400
        [top] = site.ask("GET", "/api/folders").json["folders"]
        inside = site.ask("GET", f"/api/folders?parent={top['folder']}").json["folders"]
        folder = next(one["folder"] for one in inside if one["name"] == "videos")
        events = listen(site)
        scan = site.ask("POST", "/api/scan", {"folder": folder}).json
        assert (scan["state"], scan["folder"]) == ("running", "videos")
        assert site.ask("POST", "/api/scan", {"folder": folder}).status == 409
        scan = site.wait_for_scan()
        assert (scan["state"], scan["unreadable"]) == ("done", 1), scan
        assert scan["added"] == scan["done"] == scan["total"] > 25
        index = site.ask("GET", "/api/index").json
        assert index["ready"]
        assert index["statuses"]["corrupt"] == 1
        assert {"", "trips"} <= set(index["folders"])
        assert site.search(text="a red square", limit=3)["hits"]
        seen = events.collect(until=lambda name, value: name == "scan" and value["state"] == "done")
        assert any(name == "scan" and value["state"] == "running" for name, value in seen)
        [row] = site.ask("GET", "/api/unreadable").json["files"]
        assert (row["name"], row["status"]) == ("broken.mp4", "corrupt")
        assert site.ask("POST", "/api/scan", {}).json["state"] == "running", "the same folder again"
        assert site.wait_for_scan()["added"] == 0
        saved = [{"name": "red", "query": "?q=red"}]
        assert site.ask("PUT", "/api/saved", {"saved": saved}).json["saved"] == saved
        assert site.ask("GET", "/api/saved").json["saved"] == saved


class listen:  # noqa: N801, used like a function
    """An open event stream."""

    def __init__(self, site: Any) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=60)
        self.connection.request("GET", "/api/events")
        self.answer = self.connection.getresponse()
        assert self.answer.getheader("content-type", "").startswith("text/event-stream")

    def collect(self, until: Any) -> list[tuple[str, Any]]:
        seen: list[tuple[str, Any]] = []
        name = ""
        while True:
            line = self.answer.readline().decode().strip()
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                seen.append((name, json.loads(line[6:])))
                if until(*seen[-1]):
                    self.connection.close()
                    return seen


def test_a_scan_stops_and_keeps_what_is_committed(serve: Any, world: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for number in range(12):
        shutil.copytree(world / "trips", videos / str(number))
        for path in (videos / str(number)).iterdir():
            path.write_bytes(path.read_bytes() + b"%d" % number)  # other content
    with serve(tmp_path / "index", videos, roots=(videos,)) as site:
        [top] = site.ask("GET", "/api/folders").json["folders"]
        site.ask("POST", "/api/scan", {"folder": top["folder"]})
        end = time.monotonic() + 60
        while time.monotonic() < end and not (site.ask("GET", "/api/index").json["scan"] or {}).get("done"):
            time.sleep(0.05)
        site.ask("DELETE", "/api/scan")
        scan = site.wait_for_scan()
        assert scan["state"] in ("stopped", "done")
        assert site.search(limit=1)["total"] > 0
    with VideoIndex.open(tmp_path / "index", "world-tiny") as index:
        assert len(index) >= 1


def test_folders_lead_nowhere_else(serve: Any, world: Path, world_index: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (root / "link").symlink_to("/etc")
    with serve(world_index, world, roots=(root,)) as site:
        [top] = site.ask("GET", "/api/folders").json["folders"]
        inside = site.ask("GET", f"/api/folders?parent={top['folder']}").json["folders"]
        assert [one["name"] for one in inside] == ["inside"]
        assert site.ask("GET", "/api/folders?parent=0123").status == 400


def test_runs_are_listed(site: Any) -> None:
    rows = site.ask("GET", "/api/runs").json["runs"]
    assert {row["name"] for row in rows} == {"retrieval", "pretrain"}
    run = site.ask("GET", f"/api/runs/{rows[0]['run']}").json
    assert len(run["metrics"]) >= 80  # another test adds a step
    assert len(run["validation"]) == 2


def start(index: Path, *options: str) -> tuple[subprocess.Popen[str], int]:
    """``evilm serve`` in a process of its own, once it answers."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen(
        [sys.executable, "-m", "evilm", "serve", str(index), "--port", "0", *options], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    port = int(line.split("127.0.0.1:")[1].split("/")[0])
    return process, port


def ask(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    return connection.getresponse().status


def call(port: int, method: str, path: str, body: Any = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    return json.loads(answer.read())


def test_sigterm_ends_the_server_in_order(world_index: Path) -> None:
    process, port = start(world_index)
    assert ask(port, "/api/index") == 200
    stream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    stream.request("GET", "/api/events")
    answer = stream.getresponse()
    assert answer.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    while answer.readline():  # the open stream ends
        pass
    process.wait(20)
    assert time.monotonic() - began < 8
    assert not list(Path(f"/proc/{process.pid}").glob("task")), "it is gone"


def test_searches_in_work_are_answered_when_the_server_stops(world_index: Path) -> None:
    process, port = start(world_index)
    assert ask(port, "/api/index") == 200
    outcomes: list[Any] = []
    stopping = threading.Event()

    def client(number: int) -> None:
        for n in itertools.count():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            try:
                connection.connect()
                body = json.dumps({"text": f"a red square {number} {n}", "limit": 24})
                connection.request("POST", "/api/search", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                outcomes.append((answer.status, len(json.loads(answer.read())["hits"])))
            except (ConnectionError, http.client.RemoteDisconnected):
                if stopping.is_set():  # not accepted any more
                    return
                outcomes.append("broken")
            except (http.client.HTTPException, OSError, ValueError) as error:
                outcomes.append(repr(error))  # such as an answer that was cut off
                return

    clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for each in clients:
        each.start()
    time.sleep(1.0)
    stopping.set()
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    for each in clients:
        each.join(20)
    assert len(outcomes) > 8
    assert {*outcomes} == {(200, 24)}, {*outcomes}


def test_a_killed_server_leaves_the_index_whole(world: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    VideoIndex.build(world / "trips", "world-tiny", index, workers=1).close()
    process, port = start(index, "--root", str(world))
    call(port, "POST", "/api/scan", {"folder": call(port, "GET", "/api/folders")["folders"][0]["folder"]})
    time.sleep(1.5)
    process.kill()
    process.wait(10)
    end = time.monotonic() + 60
    while True:  # the scan may still hold the lock until its next commit
        try:
            with VideoIndex.build(world, None, index, workers=1) as after:
                assert len(after.search("a red square", k=3)) == 3
                break
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


@pytest.mark.slow
def test_kills_at_eight_moments_of_a_scan_lose_nothing(world: Path, tmp_path: Path) -> None:
    """The server, or the server and its scan: what the page showed as indexed stays, and nothing is there twice."""
    index, films = tmp_path / "index", tmp_path / "films"
    for number in range(4):
        shutil.copytree(world, films / str(number))
    shown = 0
    for number in range(8):
        process, port = start(index, "--root", str(films))
        call(port, "POST", "/api/scan", {"folder": call(port, "GET", "/api/folders")["folders"][0]["folder"]})
        time.sleep(0.5 + 0.4 * number)
        shown = max(shown, call(port, "GET", "/api/index")["files"])
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [int(child) for path in tasks for child in path.read_text().split()]
        process.kill()
        process.wait(10)
        if number % 2:
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        end = time.monotonic() + 60
        while any(running(child) for child in children) and time.monotonic() < end:
            time.sleep(0.05)  # a scan ends with the next line that it writes to the server
        if shown:
            with VideoIndex.open(index) as after:
                paths = [video.path for video in after.videos()]
                assert len(paths) == len({*paths}) >= shown
                assert len(after.search("a red square", k=3)) == 3
    with VideoIndex.build(films, None if shown else "world-tiny", index, workers=1) as after:
        assert after.num_videos == 4 * 28
        assert after.report is not None
        assert after.report.same >= shown, "what was shown is not read again"


def running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "--token"),  # noqa: S104
        (["--token", "short"], "12 characters"),
        (["--host", "203.0.113.1", "--token", "new"], "cannot listen"),
    ],
)
def test_wrong_options_are_refused(world_index: Path, options: list[str], message: str, capsys: Any) -> None:
    from evilm import cli

    assert cli.run(["serve", str(world_index), "--port", "0", *options]) == 2
    assert message in capsys.readouterr().err
