"""How things move: one track of position, radius, angle and visibility a frame.

Every action fills the clip, and is paced so that the middles of four equal segments already tell the actions apart:
left and right (up and down, grow and shrink) mirror each other exactly, so only the order of the frames tells them
apart, and a thing that jumps once, twice or three times is in the air for the same share of the clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

#: Side of a frame in pixels, frames of a clip, frames a second.
FRAME = 96
FRAMES = 24
RATE = 8
_GROWN, _SHRUNK = 20.0, 8.0
_GAP = 1.5
_AIR = 0.7
_STEPS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
_COUNTS = {"jumps once": 1, "jumps twice": 2, "jumps three times": 3}


@dataclass(frozen=True, slots=True)
class Track:
    """A thing's way through a clip; pixels, degrees, x to the right and y down.

    Attributes:
        x, y: (T,) centre.
        radius: (T,) half of its extent.
        angle: (T,) degrees.
        visible: (T,) bool.
        origin: the point that the offsets of the action are counted from.
    """

    x: Array
    y: Array
    radius: Array
    angle: Array
    visible: NDArray[np.bool_]
    origin: tuple[float, float] = (0.0, 0.0)

    def at(self, x: float, y: float) -> Track:
        """The same way, moved to another origin."""
        return replace(self, x=self.x + x, y=self.y + y, origin=(self.origin[0] + x, self.origin[1] + y))

    def room(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The origins (low and high x, low and high y) that keep the whole track inside the frame."""
        edge = self.radius + 1
        low = (float((edge - self.x).max()), float((edge - self.y).max()))
        high = (float((FRAME - edge - self.x).min()), float((FRAME - edge - self.y).min()))
        return (low[0], max(low[0], high[0])), (low[1], max(low[1], high[1]))

    def clear_of(self, other: Track) -> bool:
        """Whether the two never come near each other."""
        distance = np.hypot(self.x - other.x, self.y - other.y)
        return bool((distance >= self.radius + other.radius + _GAP).all())


def track(actions: Sequence[str], radius: float, rng: random.Random) -> Track:
    """The track around (0, 0) of one action, or of two that share the clip in halves.

    Args:
        actions: one or two simple actions.
        radius: of a thing that does not grow or shrink, pixels.
        rng: draws what the action leaves open (how far, which way round).
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
            # 50 degrees between two of four frames: no symmetry of any shape hides it.
            angle += rng.choice((-200, 200)) * done
        elif action == "blinks":
            visible = (done * 2 + rng.uniform(-0.1, 0.1)) % 1.0 < 0.5
        elif action == "sways":  # twice to and fro: the middles of four segments are its ends
            x += rng.choice((-1, 1)) * rng.uniform(18, 23) * np.sin(4 * np.pi * done)
        elif action == "moves in a loop":
            turn = 2 * np.pi * (rng.random() + rng.choice((-1, 1)) * done)
            reach = rng.uniform(18, 23)
            x, y = x + reach * np.cos(turn), y + reach * np.sin(turn)
    return Track(x, y, size, angle, visible)
