"""What can be said of a scene: captions with their meaning, and when a meaning is true.

A caption's meaning is the JSON of what it asserts: ``things`` (each with some of colour, shape, size, action, place),
and perhaps ``count`` and ``background``. It is true of a scene when the things it names can be matched with different
things of the scene. A count is exact. **An action is all that a thing does**: "moves right" is false of a thing
that first moves right and then grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

from evilm.data.synthetic.scene import parts

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from evilm.data.synthetic.scene import Scene, Thing

    Meaning = Mapping[str, Any]

#: Ways to say what a thing does: (it ..., a shape ...ing).
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
    """A sentence and what it asserts."""

    text: str
    meaning: dict[str, Any]


def verb(action: str, rng: random.Random, form: int = 0) -> str:
    """A way to say an action; ``form`` 0 is "moves", 1 is "moving"."""
    said = [rng.choice(_VERBS[part])[form] for part in parts(action)]
    return said[0] if len(said) == 1 else rng.choice(_ORDERS)[form].format(*said)


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def captions(scene: Scene, count: int, rng: random.Random) -> list[Caption]:
    """Different true sentences about a scene; each names colour, shape and action of its main actor."""
    found: dict[str, Caption] = {}
    while len(found) < count:
        caption = _caption(scene, rng)
        found.setdefault(caption.text, caption)
    return list(found.values())


def _caption(scene: Scene, rng: random.Random) -> Caption:
    """One sentence from a random template that the scene can fill."""
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
    """Such as "large red disc", and what it asserts; the size is named in one of three."""
    words = f"{thing.colour} {rng.choice(_NOUNS.get(thing.shape, (thing.shape,)))}"
    fact: dict[str, Any] = {"colour": thing.colour, "shape": thing.shape}
    if thing.size is not None and rng.random() < 1 / 3:
        words, fact["size"] = f"{rng.choice(_SIZES[thing.size])} {words}", thing.size
    return words, fact


def is_true(meaning: Meaning, scene: Meaning) -> bool:
    """Whether what a caption asserts holds in a scene.

    Args:
        meaning: of a caption, as in ``Caption.meaning`` or ``world.jsonl``.
        scene: the scene's facts, as ``Scene.facts()`` gives them or ``world.jsonl`` holds them.
    """
    things = scene["things"]
    if "count" in meaning and meaning["count"] != len(things):
        return False
    if "background" in meaning and meaning["background"] != scene["background"]:
        return False
    said = meaning["things"]
    return any(all(map(_fits, said, chosen)) for chosen in permutations(things, len(said)))


def _fits(said: Meaning, thing: Meaning) -> bool:
    """Whether everything said of one thing is true of this one."""
    return all(value in thing["places"] if key == "place" else thing[key] == value for key, value in said.items())
