"""An index survives being killed: what was committed is there, nothing is there twice, and searches are right."""

from __future__ import annotations

import itertools
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from evilm.search.index import VideoIndex

if TYPE_CHECKING:
    from collections.abc import Callable

DRIVER = Path(__file__).with_name("driver.py")
OPERATIONS = ("add", "update", "delete", "compact")
Content = list[tuple[float, float, bytes]]  # start, end and vector of each segment


class Folder:
    """A folder that changes, what its index must hold, and processes that are killed while they write it."""

    def __init__(self, home: Path, pool: Path, model: Any, seed: int) -> None:
        self.videos, self.place, self.model = home / "videos", home / "index", model
        self.videos.mkdir(parents=True)
        self.pool = sorted(pool.glob("*.mp4"))
        self.random = random.Random(seed)
        self.content = contents(VideoIndex.build(pool, model, home / "pool-index"))  # by the file's name in the pool
        self.now: dict[str, str] = {}  # name in the folder to name in the pool
        self.before: dict[str, set[str | None]] = {}  # what else may be in the index until an update is acknowledged
        self.stamp = itertools.count(1)
        self.slowest: dict[str, float] = {}  # seconds of an operation that was not killed

    def change(self, operation: str) -> None:
        """Change the folder, so that an update has something to do."""
        names = sorted(self.now)
        chosen = self.random.sample(names, min(3, len(names)))
        if operation == "add":
            chosen = [f"{next(self.stamp)}.mp4" for _ in range(4)]
        if operation in ("add", "update"):
            for name in chosen:
                other = self.random.choice([each for each in self.pool if each.name != self.now.get(name)])
                self.before.setdefault(name, set()).add(self.now.get(name))
                shutil.copyfile(other, self.videos / name)
                tick = next(self.stamp)
                os.utime(self.videos / name, ns=(tick * 10**9, tick * 10**9))
                self.now[name] = other.name
        elif operation == "delete" and len(names) > 6:
            for name in chosen:
                (self.videos / name).unlink()
                self.before.setdefault(name, set()).add(self.now.pop(name))

    def run(self, operation: str, *, kill: bool) -> bool:
        """Work on the index in a process that may be killed; returns whether it finished."""
        what = "compact" if operation == "compact" else "update"
        process = subprocess.Popen(
            [sys.executable, str(DRIVER), what, str(self.videos), str(self.place)], stdout=subprocess.PIPE, bufsize=0
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"begin\n"
        began = time.monotonic()
        # Half of the kills at any time, half just after something was acknowledged, where the next write is under way.
        lines = self.random.choice([None, self.random.randrange(3)]) if operation in ("add", "update") else None
        wait = self.random.uniform(0, 0.03 if what == "compact" else 1.2 * self.slowest.get(operation, 0.4))
        if lines is not None:
            wait = self.random.uniform(0, 0.02)
        said: list[bytes] = []
        deadline = None if lines is not None or not kill else began + wait
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([process.stdout], [], [], left)[0]:
                process.send_signal(signal.SIGKILL)
                said += process.stdout.read().splitlines()
                break
            line = process.stdout.readline()
            if not line:
                break
            said.append(line.strip())
            if kill and lines is not None and len(said) > lines and deadline is None:
                deadline = time.monotonic() + wait
        process.wait()
        process.stdout.close()
        done = b"end" in said
        if done:
            self.slowest[operation] = max(self.slowest.get(operation, 0.0), time.monotonic() - began)
        for path in said:
            self.before.pop(Path(os.fsdecode(path)).name, None)  # acknowledged: the new content must be there
        if done and what == "update":
            self.before.clear()
        return done

    def check(self) -> None:
        """Check what I1 of docs/reliability.md requires."""
        if not (self.place / "index.db").exists():
            assert not self.acknowledged()
            return
        with sqlite3.connect(self.place / "index.db") as base:
            assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            if not base.execute("SELECT count(*) FROM sqlite_master WHERE name = 'files'").fetchone()[0]:
                assert not self.acknowledged()
                return
            names = [Path(os.fsdecode(row[0])).name for row in base.execute("SELECT path FROM files")]
            bound = base.execute("SELECT count(*) FROM facts WHERE name = 'model'").fetchone()[0]
            ids = base.execute("SELECT count(DISTINCT id), count(*) FROM moments").fetchone()
        base.close()
        assert len(names) == len(set(names))
        assert ids[0] == ids[1]
        assert self.acknowledged() <= set(names)
        if not bound:
            assert not names
            return
        began = time.monotonic()
        with VideoIndex.open(self.place, self.model) as index:
            found = index.search("a red thing", k=10)
            assert time.monotonic() - began < 5
            for name, segments in contents(index).items():
                allowed = {self.now.get(name), *self.before.get(name, ())}
                assert any(source and segments == self.content[source] for source in allowed), name
            self.check_search(index, found)

    def acknowledged(self) -> set[str]:
        """Names that must be in the index, in whichever version."""
        return {name for name in self.now if None not in self.before.get(name, ())}

    def check_search(self, index: VideoIndex, found: Any) -> None:
        """Hits against every vector of the database, compared one by one in double precision."""
        query = self.model.embed_texts(["a red thing"])[0].astype(np.float64)
        every = [
            (name, start, end, float(np.frombuffer(vector, "<f4").astype(np.float64) @ query))
            for name, segments in contents(index).items()
            for start, end, vector in segments
        ]
        every.sort(key=lambda row: -row[3])
        assert [hit.cosine for hit in found] == pytest.approx([row[3] for row in every[:10]], abs=1e-5)
        known = {(name, start, end): cosine for name, start, end, cosine in every}
        for hit in found:
            assert hit.cosine == pytest.approx(known[hit.path.name, hit.start, hit.end], abs=1e-5)


def contents(index: VideoIndex) -> dict[str, Content]:
    """File name to its segments, read from the database and not from a cache."""
    base = sqlite3.connect(index.folder / "index.db")
    rows = base.execute(
        "SELECT path, start, end, vector FROM files f LEFT JOIN moments m ON m.file = f.id ORDER BY path, start"
    ).fetchall()
    base.close()
    result: dict[str, Content] = {}
    for path, start, end, vector in rows:
        result.setdefault(Path(os.fsdecode(path)).name, []).append((start, end, vector))
    return result


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory, painted: Callable[..., Path]) -> Path:
    """Twelve videos of one to three segments."""
    folder = tmp_path_factory.mktemp("pool")
    colours = ["red", "green", "blue", "yellow", "cyan", "magenta"]
    for i in range(12):
        painted(folder / f"pool{i}.mp4", [colours[i % 6], colours[(i * 5 + 1) % 6]], seconds=1.0 + 5 * (i % 3), rate=4)
    return folder


def survive(home: Path, pool: Path, model: Any, kills: int, seed: int) -> dict[str, int]:
    """Change the folder, kill the writer and check, until there were so many kills; returns those of each operation.

    Each operation has at least a tenth of them.
    """
    folder = Folder(home, pool, model, seed)
    killed = dict.fromkeys(OPERATIONS, 0)
    folder.change("add")
    folder.run("add", kill=False)
    folder.check()
    for operation in itertools.cycle(OPERATIONS):
        if sum(killed.values()) >= kills and min(killed.values()) >= kills // 10:
            break
        folder.change(operation)
        if not folder.run(operation, kill=True):
            killed[operation] += 1
        folder.check()
    assert folder.run("update", kill=False)
    folder.check()
    with VideoIndex.open(folder.place, model) as index:
        assert contents(index) == {name: folder.content[source] for name, source in folder.now.items()}
    return killed


def test_killed_a_few_times(tmp_path: Path, pool: Path, model: Any) -> None:
    killed = survive(tmp_path, pool, model, kills=4, seed=1)
    assert sum(killed.values()) == 4


@pytest.mark.slow
def test_killed_a_hundred_times(tmp_path: Path, pool: Path, model: Any) -> None:
    """I1 of docs/reliability.md."""
    killed = survive(tmp_path, pool, model, kills=100, seed=0)
    print("kills survived:", killed)  # noqa: T201 - `pytest -s` shows how they were spread


def test_the_lock_of_a_killed_writer_is_released(tmp_path: Path, pool: Path, model: Any) -> None:
    folder = Folder(tmp_path, pool, model, 2)
    folder.change("add")
    process = subprocess.Popen(
        [sys.executable, str(DRIVER), "update", str(folder.videos), str(folder.place)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.readline()  # it writes
    process.kill()
    process.wait()
    process.stdout.close()
    assert folder.run("update", kill=False)
    folder.check()


def test_committed_files_are_there_when_a_kill_comes_after_three_seconds(
    tmp_path: Path, painted: Callable[..., Path], model: Any
) -> None:
    """Encoding 100 files takes 5 s; a commit comes at least every 2 s or 16 files."""
    (tmp_path / "videos").mkdir()
    one = painted(tmp_path / "one.mp4", ["red"])
    for i in range(100):
        shutil.copyfile(one, tmp_path / "videos" / f"{i}.mp4")
    with subprocess.Popen(
        [sys.executable, str(DRIVER), "slow", str(tmp_path / "videos"), str(tmp_path / "index")], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline() != b"encoding\n":
            assert process.poll() is None
        time.sleep(3)
        process.kill()
        committed = [line for line in process.stdout.read().splitlines() if line != b"end"]
    with VideoIndex.open(tmp_path / "index", model) as index:
        saved = index.num_videos
        assert 0 < len(committed) <= saved < 100
        assert len(index.search("red", k=100)) == saved
    with VideoIndex.build(tmp_path / "videos", model, tmp_path / "index") as index:
        assert index.report is not None
        assert (index.num_videos, index.report.new, index.report.same) == (100, 100 - saved, saved)
