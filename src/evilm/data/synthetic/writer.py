"""Makes a world on disk: videos by several processes, annotations by one, ``world.json`` first and last."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilm.data.synthetic.layout import VIDEOS, Record, annotation_files
from evilm.data.synthetic.records import Plan, counts, record
from evilm.data.synthetic.render import encode, render
from evilm.data.synthetic.scene import SIMPLE, compose
from evilm.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VERSION = 1
_CARD = "world.json"
_CHUNK = 32
MOST = 1_000_000  # clips; about 3 KB of records each


@dataclass(frozen=True, slots=True)
class WorldSummary:
    """What was made.

    Attributes:
        path: the folder.
        plan: its arguments.
        splits: clips of each split.
        captions, questions, choices: rows over all splits.
        rendered: videos that this call encoded (0 where all were there).
    """

    path: Path
    plan: Plan
    splits: dict[str, int]
    captions: int
    questions: int
    choices: int
    rendered: int


def build(
    out: Path,
    clips: int,
    seed: int,
    *,
    val: int | None = None,
    test: int | None = None,
    novel: float = 0.5,
    unseen: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> WorldSummary:
    """Makes a world of ``clips`` videos in the folder ``out``, or goes on with one that was cut short.

    Args:
        out: a new or empty folder, or a world of the same arguments.
        clips: videos over all splits.
        seed: of everything random.
        val, test: clips of those splits; 5 % and 10 % when None.
        novel: share of val and test with combinations held out of train.
        unseen: each clip shows a colour or an action that no other world has: what a trained model never saw.
        workers: processes; the CPUs at hand when None, this process alone when 1.
        progress: called with (clips done, clips in all).

    Raises:
        OutputError: ``out`` holds something else or a world of other arguments, the arguments do not fit together,
            or the disk refuses.
    """
    out = Path(out)
    plan = _plan(clips, seed, val, test, novel, unseen=unseen)
    if workers is not None and workers < 1:
        raise OutputError(f"workers = {workers}: at least 1 process has to make the world")
    card = _claim(out, plan)
    if card is not None:
        if progress is not None:
            progress(clips, clips)
        return _summary(out, plan, card["counts"], 0)
    try:
        _write(out / _CARD, _card(plan, complete=False))
        (out / VIDEOS).mkdir(exist_ok=True)
        records, rendered = _make(out, plan, workers or _cpus(), progress)
        for leftover in (out / VIDEOS).glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        files = annotation_files(records)
        (out / "splits").mkdir(exist_ok=True)
        for name, content in files.items():
            _write(out / name, content)
        rows = counts(records)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
        _write(out / _CARD, _card(plan, complete=True, counts=rows, sha256=hashes, actions=list(SIMPLE)))
    except OSError as error:
        raise OutputError(f"{out}: cannot write the world: {error}; run again to go on from here") from None
    except BrokenProcessPool:
        raise OutputError(f"{out}: a rendering process was killed; run again to go on, or with one worker") from None
    return _summary(out, plan, rows, rendered)


def _plan(clips: int, seed: int, val: int | None, test: int | None, novel: float, *, unseen: bool) -> Plan:
    """The arguments, checked against each other."""
    val = max(1, round(clips * 0.05)) if val is None else val
    test = max(1, round(clips * 0.1)) if test is None else test
    if val < 0 or test < 0 or clips - val - test < 1:
        raise OutputError(f"a world of {clips} clips has no room for {val} val and {test} test clips: ask for more")
    if clips > MOST:
        raise OutputError(f"a world of {clips} clips is more than the {MOST} whose records fit in memory: make several")
    if not 0 <= novel <= 1:
        raise OutputError(f"novel = {novel} is a share of val and test: between 0 and 1")
    return Plan(clips, seed, val, test, float(novel), unseen)


def _claim(out: Path, plan: Plan) -> dict[str, Any] | None:
    """The card of a finished world of this plan; None where there is work to do, in a folder that is ours.

    Raises:
        OutputError: the folder is somebody else's.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; name a new folder for the world")
    try:
        out.mkdir(parents=True, exist_ok=True)
        empty = not any(out.iterdir())
        text = None if empty else (out / _CARD).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise OutputError(f"{out}: holds something that is not a world; name a new or empty folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{out}: cannot be used for a world: {error}") from None
    if text is None:
        return None
    try:
        card = json.loads(text)
        found = {"version": card["version"], "unseen": False, **card["plan"]}
    except (json.JSONDecodeError, KeyError, TypeError):
        raise OutputError(f"{out / _CARD}: not the card of a world; name a new or empty folder") from None
    wanted = {"version": VERSION, **asdict(plan)}
    differing = [f"{key} {found.get(key)!r}, not {value!r}" for key, value in wanted.items() if found.get(key) != value]
    if differing:
        raise OutputError(f"{out}: holds another world ({', '.join(differing)}); name a new or empty folder")
    return card if card.get("complete") is True and _whole(out, plan, card) else None


def _whole(out: Path, plan: Plan, card: dict[str, Any]) -> bool:
    """Whether everything that a finished card promises is there, annotations to the byte."""
    try:
        right = all(
            hashlib.sha256((out / name).read_bytes()).hexdigest() == digest for name, digest in card["sha256"].items()
        )
    except (OSError, KeyError):
        return False
    return right and all(_video(out, index).is_file() for index in range(plan.clips))


def _video(out: Path, index: int) -> Path:
    return out / VIDEOS / f"video{index}.mp4"


def _make(out: Path, plan: Plan, workers: int, progress: Callable[[int, int], None] | None) -> tuple[list[Record], int]:
    """Every record in order, and how many videos had to be rendered."""
    records: dict[int, Record] = {}
    rendered = 0
    for made, new in _chunks(out, plan, workers):
        rendered += new
        records.update((one["index"], one) for one in made)
        if progress is not None:
            progress(len(records), plan.clips)
    return [records[index] for index in range(plan.clips)], rendered


def _chunks(out: Path, plan: Plan, workers: int) -> Iterator[tuple[list[Record], int]]:
    """Chunks of clips as they get done, by this process or by several."""
    spans = [range(start, min(start + _CHUNK, plan.clips)) for start in range(0, plan.clips, _CHUNK)]
    if workers == 1 or len(spans) == 1:
        for span in spans:
            yield make_clips(out, plan, span)
        return
    # Spawned, not forked: the caller may hold threads (a progress bar, torch) that a fork would copy half-alive.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_ignore_interrupts) as pool:
        try:
            waiting = {pool.submit(make_clips, out, plan, span) for span in spans}
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; only the caller's answers it, and stops the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_clips(out: Path, plan: Plan, span: range) -> tuple[list[Record], int]:
    """The records of some clips, and how many of their videos were missing and are now there."""
    records: list[Record] = []
    rendered = 0
    for index in span:
        scene = compose(plan.seed, index, plan.novelty(index))
        records.append(record(plan, index, scene))
        path = _video(out, index)
        if not path.is_file():
            pixels = random.Random(f"evilm pixels {plan.seed} {index}")
            encode(render(scene, pixels.getrandbits(63)), path)
            rendered += 1
    return records, rendered


def _summary(out: Path, plan: Plan, rows: dict[str, Any], rendered: int) -> WorldSummary:
    return WorldSummary(out, plan, rows["splits"], rows["captions"], rows["questions"], rows["choices"], rendered)


def _card(plan: Plan, *, complete: bool, **more: Any) -> bytes:
    told = asdict(plan)
    if not plan.unseen:  # what the cards of usual worlds never held
        del told["unseen"]
    card = {"format": "evilm-world", "version": VERSION, "complete": complete, "plan": told} | more
    return (json.dumps(card, indent=2) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    """The file appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
