"""Worker processes: one that dies or hangs costs one sample and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evilm.data.pixels import FilePixels, Job
from evilm.data.video import Limits
from evilm.data.workers import Workers
from evilm.errors import DataError, EvilmError, VideoError
from evilm.types import Clip
from films import write

if TYPE_CHECKING:
    from collections.abc import Iterator


def job(name: str) -> Job:
    return Job(Clip(Path(f"{name}.mp4")))


@pytest.fixture(scope="module")
def pool(odd: Any) -> Iterator[Workers]:
    made = Workers(2, partial(odd.OddPixels(8).read, count=2), timeout=1.0)
    yield made
    made.close()


def outcomes(pool: Workers, names: list[str]) -> list[int | str]:
    found = list(pool.map([job(name) for name in names]))
    return [each.status if isinstance(each, VideoError) else int(each[0, 1, 1, 1]) for each in found]


def test_results_come_in_the_order_of_the_jobs(pool: Workers) -> None:
    names = [f"{i}" if i % 3 else f"slow{i}" for i in range(12)]
    assert outcomes(pool, names) == list(range(12))


def test_each_failure_costs_one_sample(pool: Workers) -> None:
    began = time.monotonic()
    names = ["1", "die2", "3", "hang4", "5", "bad6", "odd7", "8", "die9", "10"]
    assert outcomes(pool, names) == [1, "crashed", 3, "timeout", 5, "encrypted", "crashed", 8, "crashed", 10]
    assert time.monotonic() - began < 10
    assert outcomes(pool, ["1", "2"]) == [1, 2]


def test_reason_names_the_file_and_the_setting(pool: Workers) -> None:
    with pytest.raises(VideoError, match=r"hang1\.mp4: timeout: not decoded within 1 s; .*data\.timeout"):
        pool.submit(job("hang1")).result()
    with pytest.raises(VideoError, match=r"die1\.mp4: crashed: the decoder has died of SIGKILL"):
        pool.submit(job("die1")).result()


def test_processes_stopped_or_killed_from_outside(pool: Workers) -> None:
    outcomes(pool, ["slow1", "slow2"])
    futures = [pool.submit(job(f"slow{i}")) for i in range(4)]
    futures[0].result()
    before = pool.pool.processes
    os.kill(before[0], signal.SIGSTOP)
    os.kill(before[-1], signal.SIGKILL)
    lost: list[str] = []
    for future in futures[1:]:
        try:
            future.result()
        except VideoError as error:
            lost.append(error.status)
    assert lost in (["timeout"], [])  # a process that was killed does not cost its sample
    assert outcomes(pool, ["5", "6", "7"]) == [5, 6, 7]
    assert before[-1] not in pool.pool.processes


def test_sample_of_a_killed_process_is_tried_again(pool: Workers, tmp_path: Path) -> None:
    assert outcomes(pool, ["1", f"{tmp_path}/once7", "3"]) == [1, 7, 3]


def test_memory_beyond_the_limit_costs_the_sample(odd: Any, tmp_path: Path) -> None:
    """A video of 3008x3008 pixels whose decoder needs more memory than allowed, and a plain allocation."""
    film = write(tmp_path / "large.mp4", range(4), second=25, size=(3008, 3008), preset="ultrafast")
    made = Workers(1, partial(FilePixels(8).read, count=2), limits=Limits(memory=24 << 20))
    found = list(made.map([Job(Clip(film)), Job(Clip(write(tmp_path / "small.mp4", range(4), second=25)))]))
    made.close()
    assert [each.status if isinstance(each, VideoError) else "ok" for each in found] == ["too_large", "ok"]
    greedy = Workers(1, partial(odd.OddPixels(8).read, count=2))
    assert outcomes(greedy, ["eat2", "3"]) == ["too_large", 3]
    greedy.close()


def test_process_that_keeps_memory_is_replaced(odd: Any) -> None:
    pool = Workers(1, partial(odd.OddPixels(8).read, count=2))
    assert outcomes(pool, ["1"]) == [1]
    before = pool.pool.processes
    assert outcomes(pool, ["keep4", "5", "6"]) == [4, 5, 6]
    assert pool.pool.processes != before
    pool.close()


def test_jobs_that_are_not_read_are_cancelled(pool: Workers) -> None:
    source = pool.map([job(f"slow{i}") for i in range(8)])
    next(source)
    source.close()
    began = time.monotonic()
    assert outcomes(pool, ["21", "22"]) == [21, 22]
    assert time.monotonic() - began < 2  # and not the 7 others first


def test_another_error_of_the_package_is_passed_on(pool: Workers) -> None:
    with pytest.raises(DataError, match=r"^no such clip$"):
        pool.submit(job("data1")).result()


def test_first_comes_before_all_that_wait(pool: Workers) -> None:
    waiting = [pool.submit(job(f"slow{i}")) for i in range(8)]
    pool.submit(job("1"), first=True).result()
    assert not waiting[-1].done()
    assert [int(future.result()[0, 1, 1, 1]) for future in waiting] == list(range(8))


def test_closing_ends_the_processes(odd: Any) -> None:
    pool = Workers(2, partial(odd.OddPixels(8).read, count=2))
    outcomes(pool, ["1", "slow2"])
    future = pool.submit(job("hang1"))
    time.sleep(0.5)
    ids = pool.pool.processes
    assert len(ids) == 2
    pool.close()
    pool.close()
    assert not any(Path(f"/proc/{number}").exists() for number in ids)
    assert isinstance(future.exception(timeout=5), VideoError)


def test_processes_that_cannot_start(odd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [folder for folder in sys.path if "odd" not in folder])
    pool = Workers(1, partial(odd.OddPixels(8).read, count=2))
    with pytest.raises(EvilmError, match=r"does not start"):
        pool.submit(job("1")).result()
    pool.close()


def test_processes_end_with_a_parent_that_is_killed(odd: Any) -> None:
    program = f"""
import sys, time
sys.path.insert(0, {str(Path(odd.__file__).parent)!r})
from pathlib import Path
from functools import partial
from odd_decoding import OddPixels
from evilm.data.pixels import Job
from evilm.data.workers import Workers
from evilm.types import Clip

if __name__ == "__main__":
    pool = Workers(1, partial(OddPixels(8).read, count=2))
    pool.submit(Job(Clip(Path("1.mp4")))).result()
    pool.submit(Job(Clip(Path("hang1.mp4"))))
    import time; time.sleep(0.5)
    print(pool.pool.processes[0], flush=True)
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
