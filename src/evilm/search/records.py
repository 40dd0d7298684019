"""What the catalogue holds of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


class Known(NamedTuple):
    """A file as the catalogue knows it.

    Attributes:
        id: its number.
        path: absolute, as the system's bytes.
        bytes, changed, inode: what ``stat`` said before it was decoded; ``changed`` in nanoseconds.
        print: a hash of parts of its content.
        status, reason: ``ok``, or one of ``VideoStatus`` and why.
        duration: seconds.
    """

    id: int
    path: bytes
    bytes: int
    changed: int
    inode: int
    print: bytes
    status: str
    reason: str
    duration: float


class Entry(NamedTuple):
    """A file to be written: a ``Known`` without number, and its moments.

    Attributes:
        spans: (start, end) in seconds of each moment.
        vectors: (moments, D) float32.
    """

    path: bytes
    bytes: int
    changed: int
    inode: int
    print: bytes
    status: str
    reason: str
    duration: float
    spans: Sequence[tuple[float, float]]
    vectors: NDArray[np.float32] | None
