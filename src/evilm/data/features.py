"""What a frozen video backbone sees in every kept frame, computed once: training on top of it then encodes nothing.

A clip is visited in every epoch, by every question about it and by every task; a backbone that does not learn says the
same each time. A store carries the fingerprint of its backbone, so tasks that share one share the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evilm.data.feature_cache import Kept

if TYPE_CHECKING:
    from evilm.data.pixels import Store
    from evilm.data.transforms import AugmentConfig
    from evilm.types import Grid


class FeatureStore(Kept):
    """Features of a store of frames, (clips, views, candidates, h, w, C) float16, on disk.

    Args:
        frames: the frames they are features of.
        fingerprint: of the backbone, its normalisation and its precision.
        grid: regions of one frame.
        channels: C of the backbone.
        augment, seed: see ``Kept``.
    """

    dtype = np.float16

    def __init__(
        self,
        frames: Store,
        fingerprint: str,
        grid: Grid,
        channels: int,
        augment: AugmentConfig | None = None,
        seed: int = 0,
    ) -> None:
        about = {"backbone": fingerprint, "grid": [grid.height, grid.width], "channels": channels}
        shape = (grid.height, grid.width, channels)
        super().__init__(frames, f"features-{fingerprint}", shape, about, "data.features", augment, seed)
