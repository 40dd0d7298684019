"""Decoder processes: the same pixels as in this process; a crash, a hang or a lie costs one file."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from evilm.data.video import LIMITS, DecoderPool, Limits, read_clip
from evilm.errors import EvilmError, VideoError
from evilm.types import Clip
from films import number_of, write

# The real decoder, except for files whose name asks for a failure.
ODD = """
import os, time
from evilm.data.video import child

def odd(real):
    def answer(path, question, limits):
        name = path.name
        if "hang" in name: time.sleep(600)
        if "spin" in name:
            while True: pass
        if "die" in name: os.kill(os.getpid(), 11)
        if "once" in name and not os.path.lexists(path.with_suffix(".died")):
            path.with_suffix(".died").symlink_to("x")
            os.kill(os.getpid(), 6)
        if "eat" in name: return bytearray(1 << 31)
        if "odd" in name: raise RuntimeError("an unexpected error")
        if "lie" in name: return {"status": "fine"}
        if "shape" in name: return {"status": "ok", "shape": [7]}
        if "babble" in name: os.write(1, b"x" * 9)
        return real(path, question, limits)
    return answer

child.ANSWERS = {name: odd(real) for name, real in child.ANSWERS.items()}
child.main()
"""
PROGRAM = ("-P", "-c", ODD)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pool") / "a.mp4", range(100), second=25, sc_threshold="0")


def named(film: Path, folder: Path, name: str) -> Path:
    path = folder / f"{name}.mp4"
    path.write_bytes(film.read_bytes())
    return path


def status_of(pool: DecoderPool, path: Path) -> str:
    with pytest.raises(VideoError) as caught:
        pool.read(Clip(path), 2, 16)
    assert caught.value.path == str(path)
    return caught.value.status


def test_same_pixels_as_in_this_process(film: Path) -> None:
    with DecoderPool() as pool:
        for seed in range(3):
            rng = lambda: np.random.default_rng(seed)  # noqa: B023, E731 - called at once
            there, here = pool.read(Clip(film), 4, 32, rng()), read_clip(Clip(film), 4, 32, rng())
            assert (there == here).all()
        part = Clip(film, 1.0, 2.0)
        assert (pool.read(part, 4, 32, fit="squash") == read_clip(part, 4, 32, fit="squash")).all()
        pictures = pool.frames_at(film, [1.02, 0.02])
        assert [number_of(p) for p in pictures] == [25, 0]
        pictures[:] = 0  # they are the caller's own
        assert number_of(pool.frames_at(film, np.array([1.02]), mode="fast")[0]) == 20
        assert pool.frames_at(film, []).shape == (0, 64, 64, 3)
        assert pool.duration(film) == pytest.approx(4.0)
        assert len(pool.processes) == 1
        os.chdir(film.parent)
        assert pool.check(Path(film.name)).status == "ok"


def test_each_failure_costs_one_file(film: Path, tmp_path: Path) -> None:
    names = ("hang", "spin", "die", "odd", "lie", "shape", "babble", "eat", "once")
    paths = {name: named(film, tmp_path, name) for name in names}
    with DecoderPool(limits=Limits(timeout=2.0, memory=1 << 29), program=PROGRAM) as pool:
        for name, status in (("hang", "timeout"), ("spin", "timeout"), ("die", "crashed"), ("odd", "crashed"),
                             ("lie", "crashed"), ("shape", "crashed"), ("eat", "too_large")):  # fmt: skip
            began = time.monotonic()
            assert status_of(pool, paths[name]) == status
            # A hang ends within 10 s; a process that computes gets more time on a busy machine.
            assert name != "hang" or time.monotonic() - began < 10
            assert pool.read(Clip(film), 1, 16).shape == (1, 16, 16, 3)
        # Prints do not mix with the answers.
        assert pool.read(Clip(paths["babble"]), 1, 16).shape == (1, 16, 16, 3)
        # A crash only counts if a fresh process crashes as well.
        assert pool.read(Clip(paths["once"]), 1, 16).shape == (1, 16, 16, 3)
        assert pool.check(paths["die"]).status == "crashed"
        assert "SIGSEGV" in pool.check(paths["die"]).reason
        left = pool.processes
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)


def test_large_frames_get_more_time_and_memory(tmp_path: Path) -> None:
    """A request for frames of 3840x2160 may take four times as long, and their decoder more memory."""
    slow = """
import time
from evilm.data.video import child, clips
def check(path, question, limits):
    with clips.VideoReader(path, limits): time.sleep(1.5)
    return {"status": "ok"}
child.ANSWERS["check"] = check
child.main()
"""
    large = write(tmp_path / "large.mp4", range(2), second=25, size=(2160, 3840), preset="ultrafast")
    small = write(tmp_path / "small.mp4", range(2), second=25)
    with DecoderPool(limits=Limits(timeout=0.9), program=("-P", "-c", slow)) as pool:
        assert pool.check(large).status == "ok"
        found = pool.check(small)
        assert (found.status, found.reason.partition(";")[0]) == ("timeout", "not decoded within 0.9 s")
    limits = Limits()
    assert limits.timeout_factor(7680 * 4320) == 16
    assert limits.timeout_factor(10**9) == 16  # a decoder cannot claim more
    assert limits.memory_for(3840 * 2160) == limits.memory
    assert limits.memory_for(7680 * 4320) == pytest.approx(1.98 * limits.memory, rel=0.01)


def test_8k_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "8k.mp4", range(2), second=25, size=(4320, 7680), preset="ultrafast", threads="1")
    with DecoderPool(limits=Limits(timeout=60)) as pool:
        assert pool.check(path).status == "ok"
        assert number_of(pool.frames_at(path, [0.05], size=64, fit="squash")[0]) == 1


def test_process_killed_or_stopped_from_outside(film: Path) -> None:
    with DecoderPool(limits=Limits(timeout=1.5)) as pool:
        pool.check(film)
        os.kill(pool.processes[0], signal.SIGKILL)
        assert pool.check(film).status == "ok"
        os.kill(pool.processes[0], signal.SIGSTOP)
        began = time.monotonic()
        assert pool.check(film).status == "timeout"
        assert time.monotonic() - began < 10
        assert pool.check(film).status == "ok"


def test_several_threads_share_the_processes(film: Path) -> None:
    with DecoderPool(2) as pool, ThreadPoolExecutor(4) as threads:
        assert [f.status for f in threads.map(pool.check, [film] * 12)] == ["ok"] * 12
        assert 1 <= len(pool.processes) <= 2


def test_pool_works_after_a_fork(film: Path) -> None:
    with DecoderPool() as pool:
        pool.check(film)
        before = pool.processes
        context = multiprocessing.get_context("fork")
        answers = context.Queue()

        def child() -> None:
            answers.put((pool.check(film).status, pool.processes != before))
            pool.close()

        process = context.Process(target=child, daemon=True)  # daemons may not have children of multiprocessing's
        process.start()
        assert answers.get(timeout=60) == ("ok", True)
        process.join(10)
        assert pool.processes == before
        assert pool.check(film).status == "ok"


def test_process_ends_after_its_parent(film: Path, tmp_path: Path) -> None:
    """An idle process ends with its input, a busy one by its own timer."""
    pool = DecoderPool(limits=Limits(timeout=0.5), program=PROGRAM)
    pool.check(film)
    (process,) = pool._idle
    question = {"ask": "check", "path": str(named(film, tmp_path, "spin")), "timeout": 0.5, "bytes": 0}
    text = json.dumps(question).encode()
    process._write(len(text).to_bytes(4) + text, time.monotonic(), 5)
    process.forget()
    assert process._process.wait(30) == -signal.SIGALRM
    pool._idle.clear()


def test_process_that_cannot_start() -> None:
    with pytest.raises(EvilmError, match=r"does not start \(the decoder has ended with exit code 3\)"):
        DecoderPool(program=("-c", "raise SystemExit(3)")).check(Path(__file__))


def test_limits_of_memory_and_files_hold(film: Path, tmp_path: Path) -> None:
    program = """
import json, os, resource
from evilm.data.video import child
def answer(path, question, limits):
    refused = []
    for what, attempt in (("write", lambda: path.with_suffix(".new").write_bytes(b"x")),
                          ("memory", lambda: bytearray(limits.memory + (64 << 20))),
                          ("files", lambda: [open(path) for _ in range(100)])):
        try: attempt()
        except (OSError, MemoryError): refused.append(what)
    return {"status": "corrupt", "reason": " ".join(refused)}
child.ANSWERS["check"] = answer
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
child.main()
"""
    with DecoderPool(program=("-P", "-c", program)) as pool:
        assert pool.check(named(film, tmp_path, "a")).reason == "write memory files"


def test_closing_leaks_no_descriptor(film: Path) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before, threads = count(), threading.active_count()
    for _ in range(3):
        with DecoderPool(2, LIMITS) as pool:
            pool.check(film)
    assert (count(), threading.active_count()) == (before, threads)
