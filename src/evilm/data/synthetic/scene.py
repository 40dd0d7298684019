"""Scenes of the synthetic videos: shapes, where they are and how they move.

A scene is drawn from (seed, clip index) alone, so the data set does not depend on the number of processes. Within a
scene no two shapes share a colour or a form, and they never touch. An action lasts the whole clip and is paced so that
the middle frames of four equal segments distinguish the actions: left and right (up and down, grow and shrink) are
exact mirror images, so that only the order of the frames distinguishes them, and a shape that jumps once, twice or
three times is in the air for the same fraction of the clip.

The training split has no shape of ``HELD_COLOUR_SHAPE`` and no shape with its action of ``HELD_SHAPE_ACTION``, not even
as half of a sequence; a fixed fraction of validation and test has such a combination as its main actor. A data set may
also consist of ``NEW_COLOUR`` and ``NEW_ACTION``, which no other has, to teach a trained model something new.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Novelty = Literal["colour-shape", "shape-action", "colour", "action"]

FRAME, FRAMES, RATE = 96, 24, 8  # frame size in pixels, frames of a clip, frames a second
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
# Only in data sets made with ``unseen``.
NEW_COLOUR, NEW_ACTION = "purple", "sways"
# Actions that depend on the order of the frames.
ORDERED = frozenset((*PARTS, *JUMPS, *SEQUENCES))
# Actions of a shape that stays in place.
IN_PLACE = frozenset(("grows", "shrinks", "spins", "blinks", "stays still"))

HELD_COLOUR_SHAPE = frozenset((colour, SHAPES[(3 * i + 1) % 8]) for i, colour in enumerate(COLOURS))
HELD_SHAPE_ACTION = {
    "circle": "grows", "square": "moves left", "triangle": "jumps twice", "star": "moves up",
    "cross": "spins", "ring": "shrinks", "diamond": "moves right", "heart": "moves down",
}  # fmt: skip
# Colours and shapes that occur together in training; shapes other than the main actor are always of these.
KNOWN_PAIRS = tuple(pair for pair in product(COLOURS, SHAPES) if pair not in HELD_COLOUR_SHAPE)
_SEQUENCE_RATIO = 0.2
CAST = (6, 3, 1)  # weights of one, two and three shapes in a scene
_SECOND_ACTOR_RATIO = 0.15
_ANCHORS = {"left": (21, 48), "right": (75, 48), "top": (48, 21), "bottom": (48, 75), "middle": (48, 48)}
_GROWN, _SHRUNK = 20.0, 8.0
_GAP = 1.5  # least distance of two shapes in pixels
_AIR = 0.7  # fraction of a jump that is in the air
_STEPS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
_COUNTS = {"jumps once": 1, "jumps twice": 2, "jumps three times": 3}


@dataclass(frozen=True, slots=True)
class Track:
    """The path of a shape through a clip, in pixels and degrees; x to the right, y down.

    Attributes:
        x, y: (T,) centre.
        radius: (T,) half of its size.
        angle: (T,) degrees.
        visible: (T,) bool.
        origin: the point that the action moves around.
    """

    x: Array
    y: Array
    radius: Array
    angle: Array
    visible: NDArray[np.bool_]
    origin: tuple[float, float] = (0.0, 0.0)

    def at(self, x: float, y: float) -> Track:
        """The same path around another origin."""
        return replace(self, x=self.x + x, y=self.y + y, origin=(self.origin[0] + x, self.origin[1] + y))

    def room(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The origins (low and high x, low and high y) that keep the whole path inside the frame."""
        edge = self.radius + 1
        low = (float((edge - self.x).max()), float((edge - self.y).max()))
        high = (float((FRAME - edge - self.x).min()), float((FRAME - edge - self.y).min()))
        return (low[0], max(low[0], high[0])), (low[1], max(low[1], high[1]))

    def clear_of(self, other: Track) -> bool:
        """Whether the two shapes never touch."""
        distance = np.hypot(self.x - other.x, self.y - other.y)
        return bool((distance >= self.radius + other.radius + _GAP).all())


def track(actions: Sequence[str], radius: float, rng: random.Random) -> Track:
    """The path around (0, 0) of one action, or of two actions, each in one half of the clip.

    Args:
        actions: one or two simple actions.
        radius: in pixels, of a shape that does not grow or shrink.
        rng: draws the distance and the direction of turning.
    """
    time = np.linspace(0.0, 1.0, FRAMES)
    x, y, angle = np.zeros(FRAMES), np.zeros(FRAMES), np.zeros(FRAMES)
    size, visible = np.full(FRAMES, radius), np.ones(FRAMES, dtype=bool)
    changed = False
    for part, action in enumerate(actions):
        done = np.clip(time * len(actions) - part, 0.0, 1.0)
        if action in _STEPS:
            reach = rng.uniform(38, 50) if len(actions) == 1 else rng.uniform(32, 38)
            x += _STEPS[action][0] * reach * done
            y += _STEPS[action][1] * reach * done
        elif action in ("grows", "shrinks"):
            start, end = (_SHRUNK, _GROWN) if action == "grows" else (_GROWN, _SHRUNK)
            new = start + (end - start) * done
            size = np.where(done > 0, new, size) if changed else new
            changed = True
        elif action in _COUNTS:
            phase = np.clip((done * _COUNTS[action]) % 1.0 / _AIR, 0.0, 1.0)
            y -= rng.uniform(34, 42) * np.sin(np.pi * phase)
        elif action == "spins":
            # 50 degrees between two of four frames, which no symmetry of a shape hides.
            angle += rng.choice((-200, 200)) * done
        elif action == "blinks":
            visible = (done * 2 + rng.uniform(-0.1, 0.1)) % 1.0 < 0.5
        elif action == "sways":  # twice to and fro: the middles of four segments show its ends
            x += rng.choice((-1, 1)) * rng.uniform(18, 23) * np.sin(4 * np.pi * done)
        elif action == "moves in a loop":
            turn = 2 * np.pi * (rng.random() + rng.choice((-1, 1)) * done)
            reach = rng.uniform(18, 23)
            x, y = x + reach * np.cos(turn), y + reach * np.sin(turn)
    return Track(x, y, size, angle, visible)


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape of a scene.

    Attributes:
        colour, shape: of ``COLOURS`` and ``SHAPES``.
        size: "small" or "large"; None for a shape that grows or shrinks.
        action: its whole action, of ``SIMPLE`` or ``SEQUENCES``.
        places: all of ``PLACES`` that are true of it (two in a corner); empty for a shape that moves away.
        track: its path.
    """

    colour: str
    shape: str
    size: str | None
    action: str
    places: tuple[str, ...]
    track: Track = field(compare=False, repr=False)

    def facts(self) -> dict[str, Any]:
        """Its properties as JSON."""
        return {
            "colour": self.colour, "shape": self.shape, "size": self.size,
            "action": self.action, "places": list(self.places),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of one clip; the first shape is the main actor."""

    background: str
    things: tuple[Thing, ...]
    novelty: Novelty | None = None

    @property
    def main(self) -> Thing:
        return self.things[0]

    def facts(self) -> dict[str, Any]:
        """Its properties as JSON, for ``is_true``."""
        return {"background": self.background, "things": [thing.facts() for thing in self.things]}


def parts(action: str) -> tuple[str, ...]:
    """The one or two simple actions of an action, in order."""
    return tuple(action.removeprefix("first ").split(", then ")) if action in SEQUENCES else (action,)


def possible(shape: str, action: str) -> bool:
    """Whether the action is visible: a spinning circle or ring looks like a still one."""
    return not (action == "spins" and shape in ("circle", "ring"))


def held(shape: str, action: str) -> bool:
    """Whether this action of this shape, or half of it, is held out of training."""
    return HELD_SHAPE_ACTION[shape] in parts(action)


def compose(seed: int, index: int, novelty: Novelty | None = None) -> Scene:
    """The scene of one clip.

    Args:
        seed: of the data set.
        index: of the clip.
        novelty: the held-out combination or unseen property of the main actor; None for none.
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
    if count > 1 and rng.random() < _SECOND_ACTOR_RATIO:
        cast[1] = (*cast[1][:2], _second_action(rng, cast[1][1], action))
    while True:
        things = _place(rng, cast)
        if things is not None:
            return Scene(background, tuple(things), novelty)


def _main_actor(rng: random.Random, novelty: Novelty | None) -> tuple[str, str, str]:
    """Colour, shape and action. The action is drawn first, so that actions are equally frequent."""
    while True:
        action = rng.choice(SEQUENCES if rng.random() < _SEQUENCE_RATIO else SIMPLE)
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
            if action in PARTS and rng.random() < _SEQUENCE_RATIO:
                action = rng.choice([sequence for sequence in SEQUENCES if action in parts(sequence)])
        if possible(shape, action) and held(shape, action) == (novelty == "shape-action"):
            return colour, shape, action


def _second_action(rng: random.Random, shape: str, main: str) -> str:
    """The action of a second actor: often the reverse of the first, never the same."""
    wanted = REVERSE.get(main) if rng.random() < 0.5 else None
    while True:
        action = wanted or rng.choice(SIMPLE[:-1])
        if action != main and possible(shape, action) and not held(shape, action):
            return action
        wanted = None


def _place(rng: random.Random, cast: Sequence[tuple[str, str, str]]) -> list[Thing] | None:
    """Shapes with sizes and paths that do not touch, or None if this attempt found no room."""
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
    """A random origin that keeps the path inside the frame; shapes that stay in place mostly get a clear place."""
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
    """All places that are true of a point: the outer 3/8 of the frame are sides, the inner quarter is the middle."""
    low, high = FRAME * 3 / 8, FRAME * 5 / 8
    places = [name for name, true in zip(PLACES, (x < low, x > high, y < low, y > high), strict=False) if true]
    return tuple(places) or ("middle",)
