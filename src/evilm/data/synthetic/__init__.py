"""The procedural video world: real video files, true sentences, and questions about them, out of nothing.

* ``build`` makes a world on disk, in the published formats;
* ``relevance`` says which captions are true of which clips;
* ``is_true`` says whether one meaning holds in one scene.
"""

from __future__ import annotations

from evilm.data.synthetic.language import is_true
from evilm.data.synthetic.records import Plan
from evilm.data.synthetic.scene import ORDERED, SIMPLE
from evilm.data.synthetic.truth import relevance
from evilm.data.synthetic.writer import WorldSummary, build

__all__ = ["ORDERED", "SIMPLE", "Plan", "WorldSummary", "build", "is_true", "relevance"]
