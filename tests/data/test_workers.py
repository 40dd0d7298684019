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

from evilm.data.pixels import Job
from evilm.data.workers import Workers
from evilm.errors import DataError, VideoError
from evilm.types import Clip

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
    with pytest.raises(VideoError, match=r"die1\.mp4: crashed: the process that decoded it died \(exit code -9\)"):
        pool.take(pool.submit(job("die1")))


def test_processes_stopped_or_killed_from_outside(pool: Workers) -> None:
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
    assert sorted(lost) in (["crashed", "timeout"], ["crashed"], ["timeout"], [])
    assert outcomes(pool, ["5", "6", "7"]) == [5, 6, 7]
    assert not set(before) & set(pool.processes)


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
