"""A process that dies or hangs costs one sample, at once, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from evilm.data.pixels import Decoding, Job
from evilm.data.video import Limits
from evilm.data.worker_process import heard, said
from evilm.data.workers import Workers
from evilm.errors import DataError, VideoError
from evilm.types import Clip
from films import write

if TYPE_CHECKING:
    from collections.abc import Iterator


def job(name: str) -> Job:
    return Job(Clip(Path(f"{name}.mp4")))


@pytest.fixture(scope="module")
def pool(odd: Any) -> Iterator[Workers]:
    made = Workers(2, odd.OddDecoding(2, 8), timeout=1.0)
    yield made
    made.close()


def outcomes(pool: Workers, names: list[str]) -> list[int | str]:
    found = list(pool.map([job(name) for name in names]))
    return [each.status if isinstance(each, VideoError) else int(each[0, 1, 1, 1]) for each in found]


def test_results_come_in_the_order_of_the_jobs(pool: Workers) -> None:
    names = [f"{i}" if i % 3 else f"slow{i}" for i in range(12)]
    assert outcomes(pool, names) == list(range(12))


def test_whatever_befalls_a_process_costs_one_sample(pool: Workers) -> None:
    began = time.monotonic()
    names = ["1", "die2", "3", "hang4", "5", "bad6", "odd7", "8", "die9", "10"]
    assert outcomes(pool, names) == [1, "crashed", 3, "timeout", 5, "encrypted", "crashed", 8, "crashed", 10]
    assert time.monotonic() - began < 10
    assert outcomes(pool, ["1", "2"]) == [1, 2]


def test_a_reason_names_the_file_and_the_setting(pool: Workers) -> None:
    with pytest.raises(VideoError, match=r"hang1\.mp4: timeout: no frames after 1 s; data\.timeout allows more"):
        pool.take(pool.submit(job("hang1")))
    with pytest.raises(VideoError, match=r"die1\.mp4: crashed: two processes that decoded it died \(exit code -9\)"):
        pool.take(pool.submit(job("die1")))


def test_processes_stopped_or_killed_from_outside(pool: Workers) -> None:
    while not all(worker.ready for worker in pool._workers):  # one that is stopped at its start is given minutes
        pool._attend()
    tickets = [pool.submit(job(f"slow{i}")) for i in range(4)]
    pool.take(tickets[0])
    before = pool.processes
    os.kill(before[0], signal.SIGSTOP)
    os.kill(before[1], signal.SIGKILL)
    lost: list[str] = []
    for ticket in tickets[1:]:
        try:
            pool.take(ticket)
        except VideoError as error:
            lost.append(error.status)
    assert lost in (["timeout"], [])  # the one that was killed is no fault of what it was at
    assert outcomes(pool, ["5", "6", "7"]) == [5, 6, 7]
    assert not set(before) & set(pool.processes)


def test_what_kills_a_process_by_chance_is_tried_once_more(pool: Workers, tmp_path: Path) -> None:
    assert outcomes(pool, ["1", f"{tmp_path}/once7", "3"]) == [1, 7, 3]


def test_memory_beyond_the_limit_costs_the_sample(odd: Any, tmp_path: Path) -> None:
    """A film of 3008x3008, whose decoder alone wants more than a process may have; and what just takes memory."""
    film = write(tmp_path / "large.mp4", range(4), second=25, size=(3008, 3008), preset="ultrafast")
    made = Workers(1, Decoding(2, 8), limits=Limits(memory=24 << 20))
    found = list(made.map([Job(Clip(film)), Job(Clip(write(tmp_path / "small.mp4", range(4), second=25)))]))
    made.close()
    assert [each.status if isinstance(each, VideoError) else "ok" for each in found] == ["too_large", "ok"]
    greedy = Workers(1, odd.OddDecoding(2, 8))
    assert outcomes(greedy, ["eat2", "3"]) == ["too_large", 3]
    greedy.close()


def test_a_process_that_has_kept_much_is_replaced(odd: Any) -> None:
    pool = Workers(1, odd.OddDecoding(2, 8))
    assert outcomes(pool, ["1"]) == [1]
    before = pool.processes
    assert outcomes(pool, ["keep4", "5", "6"]) == [4, 5, 6]
    assert pool.processes != before
    pool.close()


@pytest.mark.parametrize(
    "answer", [b"", b"\x80\x04", b"[]", b"7", b"[" * 9999, b'{"spent": 1, "status": "fine"}', b'{"status": "ok"}'],
)  # fmt: skip
def test_an_answer_that_is_none(answer: bytes) -> None:
    with pytest.raises(ValueError, match=r"no answer|Expecting|decode|utf"):
        heard(answer)


def test_what_is_said_is_heard() -> None:
    error = VideoError("a\udc80.mp4", "corrupt", "is 'not' so")
    found, spent = heard(said(error, spent=True))
    assert isinstance(found, VideoError)
    assert (found.path, found.status, found.reason, spent) == (error.path, "corrupt", error.reason, True)
    other, _ = heard(said(DataError("no such clip"), spent=False))
    assert type(other) is DataError
    assert str(other) == "no such clip"
    assert heard(said(None, spent=False)) == (None, False)


def test_what_is_forgotten_is_never_handed_out(pool: Workers) -> None:
    source = pool.map([job(f"slow{i}") for i in range(8)])
    next(source)
    source.close()
    assert outcomes(pool, ["21", "22"]) == [21, 22]
    assert not pool._done
    assert not pool._jobs


def test_frames_are_copies(pool: Workers) -> None:
    first = pool.take(pool.submit(job("1")))
    kept = first.copy()
    outcomes(pool, ["2", "3", "4", "5"])
    assert np.array_equal(first, kept)


def test_closing_ends_the_processes(odd: Any) -> None:
    pool = Workers(2, odd.OddDecoding(2, 8))
    ids = pool.processes
    pool.close()
    pool.close()
    assert not any(Path(f"/proc/{number}").exists() for number in ids)


def test_processes_that_cannot_start_are_said(odd: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr("sys.path", [folder for folder in sys.path if "odd" not in folder])
    pool = Workers(1, odd.OddDecoding(2, 8))
    with pytest.raises(DataError, match=r"die at their start; data\.workers=0"):
        pool.take(pool.submit(job("1")))
    pool.close()
    capfd.readouterr()


def test_processes_end_with_a_parent_that_is_killed(odd: Any) -> None:
    program = f"""
import sys, time
sys.path.insert(0, {str(Path(odd.__file__).parent)!r})
from pathlib import Path
from odd_decoding import OddDecoding
from evilm.data.pixels import Job
from evilm.data.workers import Workers
from evilm.types import Clip

if __name__ == "__main__":
    pool = Workers(1, OddDecoding(2, 8))
    pool.take(pool.submit(Job(Clip(Path("1.mp4")))))
    pool.submit(Job(Clip(Path("hang1.mp4"))))
    print(pool.processes[0], flush=True)
    time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = Path("/proc") / parent.stdout.readline().strip()
    assert child.exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 8
    while child.exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not child.exists()
