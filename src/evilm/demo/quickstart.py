"""The quickstart: generate synthetic clips that the bundled model was not trained on, index them, search, and ask.

It needs neither torch nor a network. Searches and questions are not chosen by how well the model does: the searches are
the sentences that describe the most clips, the questions are the first ones in the annotations.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evilm import files
from evilm.data import synthetic
from evilm.data.readers.msrvtt import msrvtt_qa, msrvtt_retrieval
from evilm.data.synthetic.language import relevance
from evilm.data.synthetic.scene import COLOURS
from evilm.errors import AnnotationError
from evilm.inference import load
from evilm.inference.loading import TINY
from evilm.search.index import VideoIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path

    from evilm.inference import Embedder

    Say = Callable[[str], None]

KIND = "quickstart of evilm"
CLIPS = 200
SEED = 2026  # the bundled model was trained on the world of seed 0
HITS = 5  # printed for each search
SEARCHES = 3
CAPTIONS, QUESTIONS = 100, 20  # from which the accuracies are computed
_KINDS = ("colour", "shape", "action")


@dataclass
class Quickstart:
    """Results of the quickstart.

    Attributes:
        searches: for each of three sentences: ``text``, ``true`` (number of clips that it describes), ``hits`` (path,
            score, and whether the sentence describes the clip).
        first_hit: percentage of captions whose first hit is a clip that they describe, its chance level and the count.
        question: one question: ``video, question, answer, probability, truth``.
        questions: percentage of questions answered correctly, its chance level and the count.
        seconds: of each step.
    """

    searches: list[dict[str, Any]] = field(default_factory=lambda: [])
    first_hit: dict[str, float] = field(default_factory=lambda: {})
    question: dict[str, Any] = field(default_factory=lambda: {})
    questions: dict[str, float] = field(default_factory=lambda: {})
    seconds: dict[str, float] = field(default_factory=lambda: {})

    @contextmanager
    def timed(self, step: str) -> Generator[None]:
        """Measure the seconds of a step."""
        began = time.perf_counter()
        yield
        self.seconds[step] = round(time.perf_counter() - began, 2)

    @property
    def last_time(self) -> str:
        """The seconds of the last step, as text."""
        return f"({list(self.seconds.values())[-1]:.1f} s)"

    def as_json(self) -> dict[str, Any]:
        return {"searches": self.searches, "first hit": self.first_hit, "question": self.question,
                "questions": self.questions, "seconds": self.seconds}  # fmt: skip


def run(out: Path, model: str | Path = TINY, clips: int = CLIPS, say: Say = lambda _: None) -> Quickstart:
    """Generate clips, index them, search and ask.

    Args:
        out: folder, new or of an earlier quickstart, whose clips and index are used again.
        model: what ``evilm.load`` takes; it must embed videos and texts, and answer questions.
        clips: number of clips, each with a combination of colour, shape and action that no training clip has.
        say: called with each line of progress.

    Raises:
        OutputError: ``out`` holds something else.
        CheckpointError, ConfigError, VideoIndexError: there is no such model, it cannot embed or answer, or another
            model made the index.
    """
    files.acquire_dir(out, KIND)
    result = Quickstart()
    world = out / "world"
    with result.timed("rendering"):  # a world needs at least one training clip
        synthetic.build(world, clips + 1, SEED, val=0, test=clips, novel=1.0)
    say(f"generated {clips} clips with combinations that the model was not trained on {result.last_time}")
    with result.timed("loading the model"):
        embedder = load(model)
    say(f"loaded {model}: {embedder.form} {result.last_time}")
    with result.timed("indexing"):
        index = index_test_split(world, embedder if model != TINY else TINY, out)
    with index:
        say(f"indexed {index.num_videos} clips {result.last_time}")
        lines = (world / "world.jsonl").read_text(encoding="utf-8").splitlines()
        records = [record for record in map(json.loads, lines) if record["split"] == "test"]
        scenes = {record["video"]: record["scene"] for record in records}
        with result.timed("searching"):
            result.searches = [_search(index, scenes, *sentence) for sentence in sentences(scenes)]
        for search in result.searches:
            _print_search(search, len(scenes), say)
        say(f"{SEARCHES} searches {result.last_time}")
        with result.timed("counting first hits"):
            result.first_hit = _first_hits(index, [record["captions"][0] for record in records[:CAPTIONS]], scenes)
    say(
        f"the first hit is right for {result.first_hit['percent']:.0f} % of {result.first_hit['count']} captions "
        f"(chance {result.first_hit['chance']:.1f} %) {result.last_time}"
    )
    with result.timed("asking"):
        result.question, result.questions = _ask(embedder, world)
    asked = result.question
    say(f"question about {asked['video']}: {asked['question']}")
    say(f"  answer: {asked['answer']} ({100 * asked['probability']:.0f} %); truth: {asked['truth']}")
    say(
        f"{result.questions['percent']:.0f} % of {result.questions['count']:.0f} such answers are right (chance "
        f"{result.questions['chance']:.1f} %) {result.last_time}"
    )
    return result


def index_test_split(world: Path, model: Embedder | str | Path, out: Path, split: str = "test") -> VideoIndex:
    """Index the clips of one split of a synthetic world, and calibrate the index with their captions.

    Args:
        world: folder that ``evilm data synthetic`` made.
        model: an ``Embedder``, or what ``evilm.load`` takes.
        out: new folder, or one that this function made: it gets ``clips`` (links to the videos) and ``index``.
        split: name of the split.

    Returns:
        the open index, in ``out / "index"``.

    Raises:
        VideoIndexError: another model made the index, or no clip could be read.
    """
    examples = list(msrvtt_retrieval(world, None, split))
    clips = {example.video: example.clip.path for example in examples}
    links = out / "clips"
    links.mkdir(parents=True, exist_ok=True)
    for path in clips.values():
        link = links / path.name
        if not link.is_symlink():
            link.symlink_to(path.resolve())
    index = VideoIndex.build(links, model, out / "index")
    captions = list(dict.fromkeys(example.captions[0] for example in examples))
    true = relevance(world / "world.jsonl", captions, list(clips))
    paths = [links / path.name for path in clips.values()]
    index.calibrate([
        (text, path) for text, row in zip(captions, true, strict=True)
        for path, is_true in zip(paths, row, strict=True) if is_true
    ])  # fmt: skip
    return index


def sentences(scenes: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The sentences, with their meanings, that describe the most clips; each names another shape."""
    counts = Counter(
        tuple(thing[kind] for kind in _KINDS) for scene in scenes.values() for thing in scene["things"][:1]
    )
    chosen: list[tuple[str, dict[str, Any]]] = []
    shapes: set[str] = set()
    for (colour, shape, action), _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if shape not in shapes and len(chosen) < SEARCHES:
            shapes.add(shape)
            meaning = {"things": [dict(zip(_KINDS, (colour, shape, action), strict=True))]}
            chosen.append((f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape} {action}", meaning))
    return chosen


def _search(index: VideoIndex, scenes: Mapping[str, Any], text: str, meaning: dict[str, Any]) -> dict[str, Any]:
    true = {name for name, scene in scenes.items() if synthetic.is_true(meaning, scene)}
    hits = [
        {"path": str(hit.path), "score": round(hit.score, 3), "true": hit.path.stem in true}
        for hit in index.search(text, HITS)
    ]
    return {"text": text, "true": len(true), "hits": hits}


def _print_search(search: dict[str, Any], clips: int, say: Say) -> None:
    hits = search["hits"]
    right, chance = sum(hit["true"] for hit in hits), len(hits) * search["true"] / clips
    say(
        f'searched for "{search["text"]}": right for {right} of the first {len(hits)} hits (chance {chance:.1f}; it '
        f"describes {search['true']} of all clips)"
    )
    for hit in hits:
        say(f"  {hit['score']:4.2f}  {'true ' if hit['true'] else 'false'}  {hit['path']}")


def _first_hits(index: VideoIndex, captions: list[dict[str, Any]], scenes: Mapping[str, Any]) -> dict[str, float]:
    """How often the first hit for a caption is a clip that the caption describes."""
    right = chance = 0.0
    for caption in captions:
        true = {name for name, scene in scenes.items() if synthetic.is_true(caption["meaning"], scene)}
        [hit] = index.search(caption["text"], 1)
        right += hit.path.stem in true
        chance += len(true) / len(scenes)
    count = len(captions)
    return {"percent": 100 * right / count, "chance": 100 * chance / count, "count": count}


def _ask(model: Embedder, world: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Ask the first questions for a colour, with all colours as choices; returns the first one and the accuracy."""
    rows = [row for row in msrvtt_qa(world, None, "test") if row.kind == "colour"][:QUESTIONS]
    if not rows:
        raise AnnotationError(world / "test_qa.json", "has no question for a colour; delete the folder and run again")
    answers = [model.ask(row.clip.path, row.question or "", COLOURS) for row in rows]
    right = sum(answer.answer == row.answer for answer, row in zip(answers, rows, strict=True))
    return {
        "video": os.fspath(rows[0].clip.path), "question": rows[0].question, "answer": answers[0].answer,
        "probability": answers[0].probability, "truth": rows[0].answer,
    }, {"percent": 100 * right / len(rows), "chance": 100 / len(COLOURS), "count": len(rows)}  # fmt: skip
