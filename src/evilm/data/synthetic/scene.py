"""What happens in a clip of the procedural world: shapes, where they are, and what each does.

A scene is drawn from (seed, clip index) alone, so the world does not depend on how many processes make it. Within a
scene no two things share a colour or a shape, and they never touch.

Train holds no thing of ``HELD_COLOUR_SHAPE`` and no thing that does what ``HELD_SHAPE_ACTION`` names for its shape,
not even as half of a sequence; a set share of validation and test has such a combination as its main actor. A world
may also be made of what no other world has: ``NEW_COLOUR`` and ``NEW_ACTION``, for a model to be taught afterwards.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import permutations, product
from typing import TYPE_CHECKING, Any, Literal

from evilm.data.synthetic.motion import FRAME, Track, track

if TYPE_CHECKING:
    from collections.abc import Sequence

Novelty = Literal["colour-shape", "shape-action", "colour", "action"]

COLOURS = ("red", "orange", "yellow", "green", "blue", "pink", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
BACKGROUNDS = ("plain", "striped", "checkered", "shaded", "noisy", "dotted")
PLACES = ("left", "right", "top", "bottom", "middle")
RADII = {"small": 13.0, "large": 22.0}
PARTS = ("moves left", "moves right", "moves up", "moves down", "grows", "shrinks")
JUMPS = ("jumps once", "jumps twice", "jumps three times")
SIMPLE = (*PARTS, *JUMPS, "spins", "blinks", "moves in a loop", "stays still")
SEQUENCES = tuple(f"first {a}, then {b}" for a, b in permutations(PARTS, 2))
REVERSE = {
    "moves left": "moves right", "moves right": "moves left", "moves up": "moves down", "moves down": "moves up",
    "grows": "shrinks", "shrinks": "grows",
}  # fmt: skip
#: What only a world of unseen things shows.
NEW_COLOUR, NEW_ACTION = "purple", "sways"
#: Actions that the frames tell only in their right order.
ORDERED = frozenset((*PARTS, *JUMPS, *SEQUENCES))
#: Actions of a thing that has a place.
IN_PLACE = frozenset(("grows", "shrinks", "spins", "blinks", "stays still"))

HELD_COLOUR_SHAPE = frozenset((colour, SHAPES[(3 * i + 1) % 8]) for i, colour in enumerate(COLOURS))
HELD_SHAPE_ACTION = {
    "circle": "grows", "square": "moves left", "triangle": "jumps twice", "star": "moves up",
    "cross": "spins", "ring": "shrinks", "diamond": "moves right", "heart": "moves down",
}  # fmt: skip
#: Colours and shapes that occur together in train; bystanders are always of these.
KNOWN_PAIRS = tuple(pair for pair in product(COLOURS, SHAPES) if pair not in HELD_COLOUR_SHAPE)
_SEQUENCE_SHARE = 0.2
CAST = (6, 3, 1)  # weights of one, two and three things in a scene
_SECOND_ACTOR_SHARE = 0.15
_ANCHORS = {"left": (21, 48), "right": (75, 48), "top": (48, 21), "bottom": (48, 75), "middle": (48, 48)}


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape of a scene.

    Attributes:
        colour, shape: of ``COLOURS`` and ``SHAPES``.
        size: "small" or "large"; None for a thing that grows or shrinks, which has no one size.
        action: all that it does, of ``SIMPLE`` or ``SEQUENCES``.
        places: every one of ``PLACES`` that is true of it (a corner has two); empty for a thing that travels.
        track: where it is in each frame.
    """

    colour: str
    shape: str
    size: str | None
    action: str
    places: tuple[str, ...]
    track: Track = field(compare=False, repr=False)

    def facts(self) -> dict[str, Any]:
        """What can be said of it, as JSON."""
        return {
            "colour": self.colour, "shape": self.shape, "size": self.size,
            "action": self.action, "places": list(self.places),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scene:
    """What happens in one clip; the first thing is the main actor."""

    background: str
    things: tuple[Thing, ...]
    novelty: Novelty | None = None

    @property
    def main(self) -> Thing:
        return self.things[0]

    def facts(self) -> dict[str, Any]:
        """What can be said of the scene, as JSON: what ``is_true`` reads."""
        return {"background": self.background, "things": [thing.facts() for thing in self.things]}


def parts(action: str) -> tuple[str, ...]:
    """The one or two simple actions of an action, in order."""
    return tuple(action.removeprefix("first ").split(", then ")) if action in SEQUENCES else (action,)


def possible(shape: str, action: str) -> bool:
    """Whether the eye could tell: a turning circle or ring looks like a still one."""
    return not (action == "spins" and shape in ("circle", "ring"))


def held(shape: str, action: str) -> bool:
    """Whether this action of this shape, or half of it, is kept from train."""
    return HELD_SHAPE_ACTION[shape] in parts(action)


def compose(seed: int, index: int, novelty: Novelty | None = None) -> Scene:
    """The scene of one clip.

    Args:
        seed: of the world.
        index: of the clip.
        novelty: which held-out combination, or which unseen thing, the main actor has; None for none.
    """
    rng = random.Random(f"evilm world {seed} {index}")
    background = rng.choice(BACKGROUNDS)
    count = rng.choices((1, 2, 3), weights=CAST)[0]
    colour, shape, action = _main_actor(rng, novelty)
    cast = [(colour, shape, action)]
    while len(cast) < count:
        pair = rng.choice(KNOWN_PAIRS)
        if all(pair[0] != other[0] and pair[1] != other[1] for other in cast):
            cast.append((*pair, "stays still"))
    if count > 1 and rng.random() < _SECOND_ACTOR_SHARE:
        cast[1] = (*cast[1][:2], _second_action(rng, cast[1][1], action))
    while True:
        things = _place(rng, cast)
        if things is not None:
            return Scene(background, tuple(things), novelty)


def _main_actor(rng: random.Random, novelty: Novelty | None) -> tuple[str, str, str]:
    """Colour, shape and action: the action is drawn first, so that actions are equally frequent."""
    while True:
        action = rng.choice(SEQUENCES if rng.random() < _SEQUENCE_SHARE else SIMPLE)
        if novelty == "colour-shape":
            colour, shape = rng.choice(sorted(HELD_COLOUR_SHAPE))
        elif novelty == "colour":
            colour, shape = NEW_COLOUR, rng.choice(SHAPES)
        else:
            colour, shape = rng.choice(KNOWN_PAIRS)
        if novelty == "action":
            action = NEW_ACTION
        if novelty == "shape-action":
            action = HELD_SHAPE_ACTION[shape]
            if action in PARTS and rng.random() < _SEQUENCE_SHARE:
                action = rng.choice([sequence for sequence in SEQUENCES if action in parts(sequence)])
        if possible(shape, action) and held(shape, action) == (novelty == "shape-action"):
            return colour, shape, action


def _second_action(rng: random.Random, shape: str, main: str) -> str:
    """What a second actor does: often the reverse of the first, never the same."""
    wanted = REVERSE.get(main) if rng.random() < 0.5 else None
    while True:
        action = wanted or rng.choice(SIMPLE[:-1])
        if action != main and possible(shape, action) and not held(shape, action):
            return action
        wanted = None


def _place(rng: random.Random, cast: Sequence[tuple[str, str, str]]) -> list[Thing] | None:
    """The cast with sizes and tracks, none touching; None when this attempt found no room."""
    things: list[Thing] = []
    for colour, shape, action in cast:
        size = rng.choice(tuple(RADII))
        for _ in range(12):
            path = track(parts(action), RADII[size], rng)
            path = path.at(*_origin(rng, path, action))
            if all(path.clear_of(other.track) for other in things):
                break
        else:
            return None
        changes = "grows" in action or "shrinks" in action
        places = _places(*path.origin) if action in IN_PLACE else ()
        things.append(Thing(colour, shape, None if changes else size, action, places, path))
    return things


def _origin(rng: random.Random, path: Track, action: str) -> tuple[float, float]:
    """Where a track may start and stay in the frame; things with a place mostly take a clear one."""
    (left, right), (top, bottom) = path.room()
    if action in IN_PLACE and rng.random() < 0.85:
        x, y = _ANCHORS[rng.choice((*PLACES, "middle"))]
        x, y = x + rng.uniform(-4, 4), y + rng.uniform(-4, 4)
        return min(max(x, left), right), min(max(y, top), bottom)
    while True:
        x, y = rng.uniform(left, right), rng.uniform(top, bottom)
        if action not in IN_PLACE or not any(8 < abs(value - FRAME / 2) < 16 for value in (x, y)):
            return x, y


def _places(x: float, y: float) -> tuple[str, ...]:
    """Every place that is true of a point: the outer 3/8 of the frame are sides, the inner quarter the middle."""
    low, high = FRAME * 3 / 8, FRAME * 5 / 8
    found = [name for name, true in zip(PLACES, (x < low, x > high, y < low, y > high), strict=False) if true]
    return tuple(found) or ("middle",)
