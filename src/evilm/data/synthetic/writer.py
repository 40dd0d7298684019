"""Write a synthetic data set: videos by several processes, then annotations; ``world.json`` first and last."""

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

from evilm.data.synthetic.annotations import SPLITS, VIDEOS, Record, annotation_files
from evilm.data.synthetic.language import captions
from evilm.data.synthetic.questions import action_choice, choices, questions, transition
from evilm.data.synthetic.render import encode, render
from evilm.data.synthetic.scene import SIMPLE, Novelty, Scene, compose
from evilm.errors import OutputError
from evilm.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VERSION = 1
MAX_CLIPS = 1_000_000  # about 3 KB of memory for each
_CARD = "world.json"
_CHUNK = 32  # clips of a task for a process
_CAPTIONS, _QUESTIONS = 5, 6


@dataclass(frozen=True, slots=True)
class Plan:
    """The arguments of a data set; equal plans give equal annotations.

    Attributes:
        clips: number of clips in all splits.
        seed: of all random choices.
        val, test: number of clips in these splits; the others are train.
        novel: fraction of val and of test whose main actor is a combination that train never has.
        unseen: every clip, also in train, has a colour or an action that data sets without this never have.
    """

    clips: int
    seed: int
    val: int
    test: int
    novel: float
    unseen: bool = False

    def split(self, index: int) -> tuple[str, int]:
        """The split of a clip and its number in the split: train first, test last."""
        train = self.clips - self.val - self.test
        if index < train:
            return "train", index
        return ("val", index - train) if index < train + self.val else ("test", index - train - self.val)

    def novelty(self, index: int) -> Novelty | None:
        """The held-out combination or unseen property of a clip: an exact fraction, the two kinds in turn."""
        if self.unseen:
            return "colour" if index % 2 else "action"
        split, place = self.split(index)
        before, after = int(place * self.novel), int((place + 1) * self.novel)
        if split == "train" or before == after:
            return None
        return "colour-shape" if after % 2 else "shape-action"


@dataclass(frozen=True, slots=True)
class WorldSummary:
    """The result of ``build``.

    Attributes:
        path: the folder.
        plan: its arguments.
        splits: number of clips in each split.
        captions, questions, choices: number of rows in all splits.
        rendered: videos that this call encoded; 0 if all existed.
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
    """Generate ``clips`` videos with annotations in the folder ``out``, or continue an interrupted call.

    Args:
        out: a new or empty folder, or a data set with the same arguments.
        clips: number of videos in all splits.
        seed: of all random choices.
        val, test: number of clips in these splits; None for 5 % and 10 %.
        novel: fraction of val and test with combinations held out of train.
        unseen: each clip has a colour or an action that no other data set has, unknown to a trained model.
        workers: processes; None for one per CPU, 1 for this process alone.
        progress: called with the number of clips done and of all clips.

    Raises:
        OutputError: ``out`` holds something else or was made with other arguments, the arguments do not fit together,
            or the disk is full.
    """
    out = Path(out)
    val = max(1, round(clips * 0.05)) if val is None else val
    test = max(1, round(clips * 0.1)) if test is None else test
    plan = Plan(clips, seed, val, test, float(novel), unseen)
    _check(plan, workers)
    card = _open_folder(out, plan)
    if card is not None:
        if progress is not None:
            progress(clips, clips)
        return _summary(out, plan, card["counts"], 0)
    try:
        write_atomic(out / _CARD, _card(plan, complete=False))
        (out / VIDEOS).mkdir(exist_ok=True)
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        records, rendered = _make_all(out, plan, workers or cpus, progress)
        for leftover in (out / VIDEOS).glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        files = annotation_files(records)
        (out / "splits").mkdir(exist_ok=True)
        for name, content in files.items():
            write_atomic(out / name, content)
        rows = _counts(records)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
        write_atomic(out / _CARD, _card(plan, complete=True, counts=rows, sha256=hashes, actions=list(SIMPLE)))
    except OSError as error:
        raise OutputError(f"{out}: cannot write the data set: {error}; run again to continue") from None
    except BrokenProcessPool:
        raise OutputError(f"{out}: a rendering process was killed; run again to continue, or with one worker") from None
    return _summary(out, plan, rows, rendered)


def _check(plan: Plan, workers: int | None) -> None:
    if plan.val < 0 or plan.test < 0 or plan.clips - plan.val - plan.test < 1:
        raise OutputError(
            f"{plan.clips} clips are too few for {plan.val} val and {plan.test} test clips: set a larger number"
        )
    if plan.clips > MAX_CLIPS:
        raise OutputError(f"{plan.clips} clips are more than {MAX_CLIPS}, whose records fit in memory: make several")
    if not 0 <= plan.novel <= 1:
        raise OutputError(f"novel = {plan.novel} is not a fraction of val and test between 0 and 1")
    if workers is not None and workers < 1:
        raise OutputError(f"workers = {workers}: at least 1 process is needed")


def _open_folder(out: Path, plan: Plan) -> dict[str, Any] | None:
    """The card of a finished data set of this plan; None if there is work to do in the folder.

    Raises:
        OutputError: the folder holds something else.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; name a new folder for the data set")
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = (out / _CARD).read_text(encoding="utf-8") if any(out.iterdir()) else None
    except FileNotFoundError:
        raise OutputError(
            f"{out}: holds something that is not a synthetic data set; name a new or empty folder"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{out}: cannot be used for a synthetic data set: {error}") from None
    if text is None:
        return None
    try:
        card = json.loads(text)
        found = {"version": card["version"], "unseen": False, **card["plan"]}
    except (json.JSONDecodeError, KeyError, TypeError):
        raise OutputError(f"{out / _CARD}: is not of a synthetic data set; name a new or empty folder") from None
    wanted = {"version": VERSION, **asdict(plan)}
    differing = [f"{key} {found.get(key)!r}, not {value!r}" for key, value in wanted.items() if found.get(key) != value]
    if differing:
        raise OutputError(f"{out}: holds another data set ({', '.join(differing)}); name a new or empty folder")
    return card if card.get("complete") is True and _intact(out, plan, card) else None


def _intact(out: Path, plan: Plan, card: dict[str, Any]) -> bool:
    """Whether all videos exist and the annotations have the hashes of the card."""
    try:
        same = all(
            hashlib.sha256((out / name).read_bytes()).hexdigest() == digest for name, digest in card["sha256"].items()
        )
    except (OSError, KeyError):
        return False
    return same and all(_video(out, index).is_file() for index in range(plan.clips))


def _video(out: Path, index: int) -> Path:
    return out / VIDEOS / f"video{index}.mp4"


def _make_all(
    out: Path, plan: Plan, workers: int, progress: Callable[[int, int], None] | None
) -> tuple[list[Record], int]:
    """All records in order, and the number of videos that were rendered."""
    records: dict[int, Record] = {}
    rendered = 0
    for made, new in _chunks(out, plan, workers):
        rendered += new
        records.update((record["index"], record) for record in made)
        if progress is not None:
            progress(len(records), plan.clips)
    return [records[index] for index in range(plan.clips)], rendered


def _chunks(out: Path, plan: Plan, workers: int) -> Iterator[tuple[list[Record], int]]:
    """Chunks of clips as they are done, by this process or by several."""
    spans = [range(start, min(start + _CHUNK, plan.clips)) for start in range(0, plan.clips, _CHUNK)]
    if workers == 1 or len(spans) == 1:
        for span in spans:
            yield make_clips(out, plan, span)
        return
    # Spawned, not forked: the caller may have threads (a progress bar, torch), which a fork would break.
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
    """Ignore Ctrl-C, which a terminal sends to every process: the caller's process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_clips(out: Path, plan: Plan, span: range) -> tuple[list[Record], int]:
    """The records of some clips, and the number of their videos that were missing and are now rendered."""
    records: list[Record] = []
    rendered = 0
    for index in span:
        scene = compose(plan.seed, index, plan.novelty(index))
        records.append(record_of(plan, index, scene))
        path = _video(out, index)
        if not path.is_file():
            pixels = random.Random(f"evilm pixels {plan.seed} {index}")
            encode(render(scene, pixels.getrandbits(63)), path)
            rendered += 1
    return records, rendered


def record_of(plan: Plan, index: int, scene: Scene) -> Record:
    """Everything in the annotation files about one clip, as JSON."""
    rng = random.Random(f"evilm words {plan.seed} {index}")
    open_questions = questions(scene, _QUESTIONS, rng)
    action = action_choice(scene, rng)
    sentences = choices(scene, action, rng)
    after = transition(scene.main, rng)
    numbered = [
        {"id": index * 10 + number, "question": item.text, "answer": item.answer, "kind": item.kind,
         "temporal": item.temporal}
        for number, item in enumerate(open_questions)
    ]  # fmt: skip
    return {
        "index": index,
        "video": f"video{index}",
        "split": plan.split(index)[0],
        "novelty": scene.novelty,
        "action": scene.main.action,
        "scene": scene.facts(),
        "captions": [asdict(caption) for caption in captions(scene, _CAPTIONS, rng)],
        "questions": numbered,
        "choices": [{"id": index * 10 + number, **asdict(choice)} for number, choice in enumerate(sentences)],
        "actions": [{"id": index, **asdict(action)}],
        "transitions": [{"id": index, **asdict(choice)} for choice in ([after] if after is not None else [])],
    }


def _counts(records: list[Record]) -> dict[str, Any]:
    """Number of rows of each kind, for the card."""
    counts: dict[str, Any] = {kind: sum(len(r[kind]) for r in records) for kind in ("captions", "questions", "choices")}
    counts["splits"] = {split: sum(r["split"] == split for r in records) for split in SPLITS}
    counts["novel"] = {
        split: sum(r["split"] == split and r["novelty"] is not None for r in records) for split in SPLITS
    }
    return counts


def _summary(out: Path, plan: Plan, rows: dict[str, Any], rendered: int) -> WorldSummary:
    return WorldSummary(out, plan, rows["splits"], rows["captions"], rows["questions"], rows["choices"], rendered)


def _card(plan: Plan, *, complete: bool, **more: Any) -> bytes:
    arguments = asdict(plan)
    if not plan.unseen:  # absent from the cards of earlier versions
        del arguments["unseen"]
    card = {"format": "evilm-world", "version": VERSION, "complete": complete, "plan": arguments} | more
    return (json.dumps(card, indent=2) + "\n").encode()
