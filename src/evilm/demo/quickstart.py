"""A first try in ten seconds: render clips that the shipped model never saw, index them, search, ask, and count.

Nothing here needs torch or a network. The sentences and the questions are not picked by what the model does well with
them: the sentences are those that are true of the most clips, the questions are the first in the world's own file.
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
from evilm.data.readers.msrvtt import msrvtt_qa
from evilm.data.synthetic.scene import COLOURS
from evilm.errors import AnnotationError
from evilm.inference import load
from evilm.inference.loading import TINY
from evilm.search.held_out import index_held_out

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path

    from evilm.inference import Embedder
    from evilm.search.index import VideoIndex

    Say = Callable[[str], None]

KIND = "first try of evilm"
CLIPS = 200
SEED = 2026  # the shipped model was trained in the world of seed 0
HITS = 5  # shown of each search
SEARCHES = 3
CAPTIONS, QUESTIONS = 100, 20  # searched for and asked beside, to count
_KINDS = ("colour", "shape", "action")


@dataclass
class Trial:
    """What a first try found.

    Attributes:
        searches: for each of three sentences: ``text``, ``true`` (clips that it is true of), ``hits`` (path, score and
            whether it is true of that clip).
        first: share of first hits that are right over many captions, in percent, and the chance of it.
        question: one question: ``video, question, answer, probability, truth``.
        questions: share of right answers over many such questions, in percent, and the chance of it.
        seconds: of each part.
    """

    searches: list[dict[str, Any]] = field(default_factory=lambda: [])
    first: dict[str, float] = field(default_factory=lambda: {})
    question: dict[str, Any] = field(default_factory=lambda: {})
    questions: dict[str, float] = field(default_factory=lambda: {})
    seconds: dict[str, float] = field(default_factory=lambda: {})

    @contextmanager
    def timed(self, part: str) -> Generator[None]:
        """Note how long ``part`` takes."""
        began = time.perf_counter()
        yield
        self.seconds[part] = round(time.perf_counter() - began, 2)

    def as_json(self) -> dict[str, Any]:
        return {"searches": self.searches, "first hit": self.first, "question": self.question,
                "questions": self.questions, "seconds": self.seconds}  # fmt: skip


def trial(out: Path, model: str | Path = TINY, clips: int = CLIPS, say: Say = lambda _: None) -> Trial:
    """Render, index, search and ask.

    Args:
        out: its folder, new or of an earlier try, whose clips and index are then taken up.
        model: what ``evilm.load`` takes; it has to embed.
        clips: how many, each with a combination of colour, shape and action that training never showed.
        say: told what happens, a line at a time.

    Raises:
        OutputError: ``out`` holds something else.
        CheckpointError, ConfigError, VideoIndexError: no such model, one that does not embed, or not that of the index.
    """
    files.acquire_dir(out, KIND)
    found = Trial()
    folder = out / "world"
    with found.timed("rendering"):
        synthetic.build(
            folder, clips + 1, SEED, val=0, test=clips, novel=1.0
        )  # one clip has to be of the training split
    say(f"rendered {clips} clips that the model never saw, in combinations that it never saw either {_took(found)}")
    with found.timed("loading the model"):
        embedder = load(model)
    say(f"loaded {model}: {embedder.form} {_took(found)}")
    with found.timed("indexing"):
        index = index_held_out(folder, embedder if model != TINY else TINY, out)
    with index:
        say(f"indexed {index.files} clips {_took(found)}")
        scenes = _scenes(folder)
        with found.timed("searching"):
            found.searches = [_search(index, scenes, *sentence) for sentence in sentences(scenes)]
        for one in found.searches:
            _say_search(one, len(scenes), say)
        say(f"{SEARCHES} searches {_took(found)}")
        with found.timed("counting first hits"):
            found.first = _first_hits(index, folder, scenes)
    say(
        f"over {min(CAPTIONS, len(scenes))} sentences the first hit is right in {found.first['percent']:.0f} % "
        f"(chance {found.first['chance']:.1f} %) {_took(found)}"
    )
    with found.timed("asking"):
        found.question, found.questions = _ask(embedder, folder)
    asked = found.question
    say(f"asked of {asked['video']}: {asked['question']}")
    say(f"  {asked['answer']} ({100 * asked['probability']:.0f} %); the truth is {asked['truth']}")
    say(
        f"over {found.questions['count']:.0f} such questions it is right in {found.questions['percent']:.0f} % (chance "
        f"{found.questions['chance']:.1f} %) {_took(found)}"
    )
    return found


def sentences(scenes: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The sentences, with their meanings, that are true of the most clips; each of another shape."""
    said = Counter(tuple(thing[kind] for kind in _KINDS) for scene in scenes.values() for thing in scene["things"][:1])
    chosen: list[tuple[str, dict[str, Any]]] = []
    shapes: set[str] = set()
    for (colour, shape, action), _ in sorted(said.items(), key=lambda item: (-item[1], item[0])):
        if shape not in shapes and len(chosen) < SEARCHES:
            shapes.add(shape)
            meaning = {"things": [dict(zip(_KINDS, (colour, shape, action), strict=True))]}
            chosen.append((f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape} {action}", meaning))
    return chosen


def _scenes(folder: Path) -> dict[str, Any]:
    """What happens in each clip that is indexed, by its name."""
    records = [json.loads(line) for line in (folder / "world.jsonl").read_text(encoding="utf-8").splitlines()]
    return {record["video"]: record["scene"] for record in records if record["split"] == "test"}


def _search(index: VideoIndex, scenes: Mapping[str, Any], text: str, meaning: dict[str, Any]) -> dict[str, Any]:
    true = {name for name, scene in scenes.items() if synthetic.is_true(meaning, scene)}
    hits = [
        {"path": str(hit.path), "score": round(hit.score, 3), "true": hit.path.stem in true}
        for hit in index.search(text, HITS)
    ]
    return {"text": text, "true": len(true), "hits": hits}


def _say_search(one: dict[str, Any], clips: int, say: Say) -> None:
    right, chance = sum(hit["true"] for hit in one["hits"]), len(one["hits"]) * one["true"] / clips
    say(f'searched for "{one["text"]}": it is true of {right} of the first {len(one["hits"])} (chance {chance:.1f}; '
        f"of {one['true']} of all clips)")  # fmt: skip
    for hit in one["hits"]:
        say(f"  {hit['score']:4.2f}  {'true ' if hit['true'] else 'false'}  {hit['path']}")


def _first_hits(index: VideoIndex, folder: Path, scenes: Mapping[str, Any]) -> dict[str, float]:
    """How often the first hit for a clip's caption is a clip of which the caption is true."""
    records = [json.loads(line) for line in (folder / "world.jsonl").read_text(encoding="utf-8").splitlines()]
    said = [one["captions"][0] for one in records if one["split"] == "test"][:CAPTIONS]
    right = chance = 0.0
    for caption in said:
        true = {name for name, scene in scenes.items() if synthetic.is_true(caption["meaning"], scene)}
        [hit] = index.search(caption["text"], 1)
        right += hit.path.stem in true
        chance += len(true) / len(scenes)
    return {"percent": 100 * right / len(said), "chance": 100 * chance / len(said), "count": len(said)}


def _ask(model: Embedder, folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """The first questions for a colour, the first of them in full; answered by choosing among all colours."""
    asked = [row for row in msrvtt_qa(folder, None, "test") if row.kind == "colour"][:QUESTIONS]
    if not asked:
        raise AnnotationError(folder / "test_qa.json", "asks for no colour; make the world anew")
    answers = [model.ask(row.clip.path, row.question or "", COLOURS) for row in asked]
    one, row = answers[0], asked[0]
    right = sum(answer.answer == row.answer for answer, row in zip(answers, asked, strict=True))
    return {
        "video": os.fspath(row.clip.path), "question": row.question, "answer": one.answer,
        "probability": one.probability, "truth": row.answer,
    }, {"percent": 100 * right / len(asked), "chance": 100 / len(COLOURS), "count": len(asked)}  # fmt: skip


def _took(found: Trial) -> str:
    return f"({list(found.seconds.values())[-1]:.1f} s)"
