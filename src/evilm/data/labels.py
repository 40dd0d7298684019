"""Token labels made once: what the video tokenizer says of every region of every kept frame.

A store carries the fingerprint of its tokenizer: labels of another are never taken for these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evilm.data.feature_cache import Kept

if TYPE_CHECKING:
    from evilm.data.pixels import Store
    from evilm.data.transforms import AugmentConfig
    from evilm.types import Grid


class LabelStore(Kept):
    """Labels of a store of frames, (clips, views, candidates, h, w) uint16, on disk.

    Args:
        frames: the frames they are labels of.
        fingerprint: of the tokenizer.
        grid: regions of one frame.
        augment, seed: see ``Kept``.
    """

    def __init__(
        self, frames: Store, fingerprint: str, grid: Grid, augment: AugmentConfig | None = None, seed: int = 0
    ) -> None:
        about = {"tokenizer": fingerprint, "grid": [grid.height, grid.width]}
        shape = (grid.height, grid.width)
        super().__init__(frames, f"labels-{fingerprint}", shape, about, "task.labels = 'cached'", augment, seed)
