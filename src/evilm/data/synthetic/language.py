"""Captions of a scene with their meanings, and the scenes of which a meaning is true.

A caption's meaning is JSON: ``things`` (each with some of colour, shape, size, action, place), and optionally ``count``
and ``background``. It is true of a scene if its things can be matched with different things of the scene. A count is
exact. An action is the whole action of a thing: "moves right" is false of a thing that first moves right and then
grows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.data.synthetic.scene import parts
from evilm.errors import AnnotationError

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.data.synthetic.scene import Scene, Thing

    Meaning = Mapping[str, Any]

# Phrases for each action: (it ..., a shape ...ing).
_VERBS: dict[str, tuple[tuple[str, str], ...]] = {
    "moves left": (("moves left", "moving left"), ("slides to the left", "sliding to the left"),
                   ("goes left", "going left")),
    "moves right": (("moves right", "moving right"), ("slides to the right", "sliding to the right"),
                    ("goes right", "going right")),
    "moves up": (("moves up", "moving up"), ("rises", "rising"), ("goes up", "going up")),
    "moves down": (("moves down", "moving down"), ("sinks", "sinking"), ("goes down", "going down")),
    "grows": (("grows", "growing"), ("gets bigger", "getting bigger"), ("becomes larger", "becoming larger")),
    "shrinks": (("shrinks", "shrinking"), ("gets smaller", "getting smaller"),
                ("becomes smaller", "becoming smaller")),
    "jumps once": (("jumps once", "jumping once"), ("hops one time", "hopping one time")),
    "jumps twice": (("jumps twice", "jumping twice"), ("hops two times", "hopping two times")),
    "jumps three times": (("jumps three times", "jumping three times"), ("hops three times", "hopping three times")),
    "spins": (("spins", "spinning"), ("turns around", "turning around"), ("rotates", "rotating")),
    "blinks": (("blinks", "blinking"), ("flashes", "flashing")),
    "moves in a loop": (("moves in a loop", "moving in a loop"), ("goes round and round", "going round and round")),
    "sways": (("sways", "swaying"), ("swings from side to side", "swinging from side to side")),
    "stays still": (("stays still", "staying still"), ("does not move", "resting"), ("rests", "resting")),
}  # fmt: skip
_NOUNS = {
    "circle": ("circle", "disc"), "square": ("square", "box"), "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
}  # fmt: skip
_SIZES = {"small": ("small", "little"), "large": ("large", "big")}
_SPOTS = {
    "left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom",
    "middle": "in the middle",
}  # fmt: skip
COUNTS = {1: "one", 2: "two", 3: "three"}
_ORDERS = (("first {0}, then {1}", "first {0}, then {1}"), ("{0} and then {1}", "{0} and then {1}"))
_TEMPLATES = (
    "{a} {verb}", "there is {a} that {verb}", "{a} is {doing}", "a video of {a} {doing}", "we see {a} that {verb}",
    "{a} {spot} {verb}", "there is {a} {spot}, it {verb}",
    "{a} {verb} on a {background} background", "in front of a {background} background {a} is {doing}",
    "{a} {verb} while {b} {other}", "{b} {other}, and {a} {verb}", "{a} and {b}: the {shape} {verb}",
    "{count}, and {a} {verb}", "{count}: {a} is {doing}",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence and its meaning."""

    text: str
    meaning: dict[str, Any]


def verb(action: str, rng: random.Random, form: int = 0) -> str:
    """A random phrase for an action; ``form`` 0 is "moves", 1 is "moving"."""
    words = [rng.choice(_VERBS[part])[form] for part in parts(action)]
    return words[0] if len(words) == 1 else rng.choice(_ORDERS)[form].format(*words)


def article(words: str) -> str:
    """The words with the article "a" or "an"."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def captions(scene: Scene, count: int, rng: random.Random) -> list[Caption]:
    """Different true sentences about a scene, each with colour, shape and action of its main actor."""
    by_text: dict[str, Caption] = {}
    while len(by_text) < count:
        caption = _caption(scene, rng)
        by_text.setdefault(caption.text, caption)
    return list(by_text.values())


def _caption(scene: Scene, rng: random.Random) -> Caption:
    """One sentence from a random template that fits the scene."""
    main = scene.main
    others = scene.things[1:]
    template = rng.choice(_TEMPLATES)
    while ("{b}" in template and not others) or ("{spot}" in template and not main.places):
        template = rng.choice(_TEMPLATES)
    words, fact = _noun(main, rng)
    fact["action"] = main.action
    meaning: dict[str, Any] = {"things": [fact]}
    fields = {"a": article(words), "shape": words.partition(main.colour + " ")[2]}
    fields["verb"], fields["doing"] = verb(main.action, rng), verb(main.action, rng, 1)
    if "{b}" in template:
        other = rng.choice(others)
        words, second = _noun(other, rng)
        if "{other}" in template:
            second["action"] = other.action
            fields["other"] = verb(other.action, rng)
        fields["b"] = article(words)
        meaning["things"].append(second)
    if "{spot}" in template:
        fact["place"] = rng.choice(main.places)
        fields["spot"] = _SPOTS[fact["place"]]
    if "{background}" in template:
        fields["background"] = meaning["background"] = scene.background
    if "{count}" in template:
        meaning["count"] = len(scene.things)
        fields["count"] = f"{COUNTS[len(scene.things)]} shape{'s' if len(scene.things) > 1 else ''}"
    return Caption(template.format(**fields), meaning)


def _noun(thing: Thing, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A phrase such as "large red disc" and its meaning; one in three has the size."""
    words = f"{thing.colour} {rng.choice(_NOUNS.get(thing.shape, (thing.shape,)))}"
    fact: dict[str, Any] = {"colour": thing.colour, "shape": thing.shape}
    if thing.size is not None and rng.random() < 1 / 3:
        words, fact["size"] = f"{rng.choice(_SIZES[thing.size])} {words}", thing.size
    return words, fact


def is_true(meaning: Meaning, scene: Meaning) -> bool:
    """Whether a caption is true of a scene.

    Args:
        meaning: ``Caption.meaning``, also in ``world.jsonl``.
        scene: ``Scene.facts()``, also in ``world.jsonl``.
    """
    things = scene["things"]
    if "count" in meaning and meaning["count"] != len(things):
        return False
    if "background" in meaning and meaning["background"] != scene["background"]:
        return False
    described = meaning["things"]
    return any(all(map(_fits, described, chosen)) for chosen in permutations(things, len(described)))


def _fits(described: Meaning, thing: Meaning) -> bool:
    return all(value in thing["places"] if key == "place" else thing[key] == value for key, value in described.items())


def relevance(world: Path, captions: Sequence[str], videos: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each caption is true of each clip, (captions, clips).

    Args:
        world: the ``world.jsonl`` of the data set that both come from.
        captions: sentences of that file.
        videos: ids of clips, as ``video12``.

    Raises:
        AnnotationError: the file cannot be read, or does not contain one of the captions or clips.
    """
    scenes, meanings = _read(world)
    for kind, names, known in (("caption", captions, meanings), ("clip", videos, scenes)):
        missing = next((name for name in names if name not in known), None)
        if missing is not None:
            raise AnnotationError(world, f"no {kind} {missing!r} in this data set; take both from the same one")
    # A caption needs to be compared only with clips that contain its first thing with its action.
    clips: dict[tuple[str, str, str], list[int]] = {}
    for column, video in enumerate(videos):
        for thing in scenes[video]["things"]:
            clips.setdefault((thing["colour"], thing["shape"], thing["action"]), []).append(column)
    true = np.zeros((len(captions), len(videos)), dtype=np.bool_)
    for row, text in enumerate(captions):
        first = meanings[text]["things"][0]
        for column in clips.get((first["colour"], first["shape"], first["action"]), ()):
            true[row, column] = is_true(meanings[text], scenes[videos[column]])
    return true


def _read(world: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scenes by video id, and meanings by sentence."""
    scenes: dict[str, Any] = {}
    meanings: dict[str, Any] = {}
    try:
        lines = world.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(world, f"cannot be read: {error}; `evilm data synthetic` writes it") from None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            scenes[record["video"]] = record["scene"]
            meanings |= {caption["text"]: caption["meaning"] for caption in record["captions"]}
        except (json.JSONDecodeError, KeyError, TypeError):
            raise AnnotationError(
                world, "is not a record of `evilm data synthetic`; generate it again", number
            ) from None
    return scenes, meanings
