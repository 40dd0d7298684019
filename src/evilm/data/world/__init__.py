"""The procedural video world: real video files, true sentences, and questions about them, out of nothing.

* ``build`` makes a world on disk, in the published formats;
* ``relevance`` says which captions are true of which clips;
* ``is_true`` says whether one meaning holds in one scene.
"""

from __future__ import annotations

from evilm.data.world.language import is_true
from evilm.data.world.records import Plan
from evilm.data.world.scene import ORDERED, SIMPLE
from evilm.data.world.truth import relevance
from evilm.data.world.writer import WorldSummary, build

__all__ = ["ORDERED", "SIMPLE", "Plan", "WorldSummary", "build", "is_true", "relevance"]
