"""Measure ``evilm serve`` under load on loopback: text searches over an index of random vectors.

    python benchmarks/serve.py --segments 100000 --clients 64 --seconds 60
    python benchmarks/serve.py --segments 100000 --clients 512 --seconds 20
    python benchmarks/serve.py --segments 100000 --clients 64 --seconds 300    # does the memory stay flat?

Server and clients share the machine. Each client sends its next search when it has the answer of the last one; every
query is another sentence. Prints one JSON object: requests a second, latencies, statuses, CPU time and
memory of the server: MiB at ten moments of the load.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import evilm
from evilm.search import vectors
from evilm.search.database import Database, NewFile
from evilm.search.model import bind_model
from evilm.search.update import KIND

if TYPE_CHECKING:
    from collections.abc import Iterator

EACH = 20  # segments of a video
WORDS = [
    "a the big small large little".split(), "red green blue pink orange white black yellow".split(),
    "square circle triangle ring heart star cross diamond".split(),
    ["moves left", "moves right", "jumps twice", "stays still", "grows", "goes up", "moves in a loop"],
    ["", "on a dotted background", "on a noisy background", "on the left", "on the right"],
]  # fmt: skip


def make_index(folder: Path, segments: int) -> None:
    """An index of ``segments`` random unit vectors, without videos."""
    model = evilm.load("world-tiny")
    width = int(model.embed_texts(["a"]).shape[1])
    matrix = np.random.default_rng(0).standard_normal((segments, width)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    folder.mkdir()
    (folder / ".evilm").write_text(KIND + "\n")
    spans = [(8.0 * i, 8.0 * i + 8) for i in range(EACH)]
    with Database(folder, write=True) as database:
        bind_model(database, model, None)
        with database.transaction():
            database.set_metadata("model", database.metadata("model") | {"path": "world-tiny"})
            for start in range(0, segments, EACH):
                some = matrix[start : start + EACH]
                path = f"/videos/{start // EACH % 100:02}/{start // EACH:07}.mp4".encode()
                database.put(NewFile(path, 1, 1, start, b"", "ok", "", 160.0, spans[: len(some)], some))
        vectors.save(folder, database.metadata("identity"), vectors.load(database, width))


async def request(port: int, body: bytes) -> tuple[int, bool]:
    """Status of one search, and whether a 503 said when to come back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = ("POST /api/search HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json",
                f"Content-Length: {len(body)}", "Connection: close", "", "")  # fmt: skip
        writer.write("\r\n".join(head).encode() + body)
        await writer.drain()
        answer = await reader.read(-1)
        return int(answer[9:12]), b"retry-after" in answer[:1500].lower()
    finally:
        writer.close()


async def load(port: int, clients: int, seconds: float) -> tuple[list[tuple[float, int, bool]], int]:
    """(latency, status, retry) of every request, and the number of broken connections."""
    texts = (" ".join(words) for words in itertools.cycle(itertools.product(*WORDS)))
    results: list[tuple[float, int, bool]] = []
    broken = 0
    end = time.monotonic() + seconds

    async def client() -> None:
        nonlocal broken
        while time.monotonic() < end:
            body = json.dumps({"text": next(texts), "limit": 24}).encode()
            began = time.perf_counter()
            try:
                status, retry = await asyncio.wait_for(request(port, body), 60)
            except (OSError, ValueError, TimeoutError):
                broken += 1
                await asyncio.sleep(0.5)
                continue
            results.append((time.perf_counter() - began, status, retry))
            if status == 503:
                await asyncio.sleep(1.0)

    await asyncio.gather(*(client() for _ in range(clients)))
    return results, broken


def resident(pid: int) -> int:
    """MiB of memory that a process uses."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) >> 10


@contextlib.contextmanager
def watched(pid: int, seconds: float) -> Iterator[list[int]]:
    """The memory of a process at ten moments of the next seconds."""
    samples: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(seconds / 10):
            samples.append(resident(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def processor_seconds(pid: int) -> float:
    """CPU time that a process used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Make an index, start the server, load it, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        make_index(Path(home) / "index", options.segments)
        began = time.perf_counter()
        server = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "evilm", "serve", f"{home}/index", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().split("127.0.0.1:")[1].split("/")[0])
            asyncio.run(request(port, b'{"text": "a red square", "limit": 24}'))
            first = time.perf_counter() - began
            asyncio.run(load(port, 4, 2.0))
            before, used = resident(server.pid), processor_seconds(server.pid)
            with watched(server.pid, options.seconds) as samples:
                results, broken = asyncio.run(load(port, options.clients, options.seconds))
            used = processor_seconds(server.pid) - used
            address = f"http://127.0.0.1:{port}/metrics"
            metrics = urllib.request.urlopen(address).read().decode()
        finally:
            server.terminate()
            server.wait(30)
    good = np.array([seconds for seconds, status, _ in results if status == 200]) * 1e3
    statuses = {str(code): sum(status == code for _, status, _ in results) for code in {row[1] for row in results}}
    values = dict(line.split() for line in metrics.splitlines() if not line.startswith("#"))
    print(json.dumps({  # noqa: T201
        "segments": options.segments, "clients": options.clients, "seconds": options.seconds,
        "start_to_first_answer_s": round(first, 2), "answers_per_s": round(len(good) / options.seconds, 1),
        "p50_ms": round(float(np.percentile(good, 50))), "p99_ms": round(float(np.percentile(good, 99))),
        "server_cpu_ms_per_request": round(1e3 * used / max(1, len(results)), 2),
        "statuses": statuses, "broken_connections": broken,
        "503_with_retry_after": sum(retry for _, status, retry in results if status == 503),
        "searches": values["evilm_searches_total"], "batches": values["evilm_search_batches_total"],
        "server_mib": [before, *samples], "load_average": round(os.getloadavg()[0], 1),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}",
    }))  # fmt: skip


if __name__ == "__main__":
    main()
