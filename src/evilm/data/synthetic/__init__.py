"""Synthetic data set of moving shapes: real video files with true captions and questions, generated from a seed.

* ``build`` writes a data set in the published annotation formats;
* ``relevance`` tells which captions are true of which clips;
* ``is_true`` tells whether a caption's meaning is true of a scene.
"""

from __future__ import annotations

from evilm.data.synthetic.language import is_true, relevance
from evilm.data.synthetic.scene import ORDERED, SIMPLE
from evilm.data.synthetic.writer import Plan, WorldSummary, build

__all__ = ["ORDERED", "SIMPLE", "Plan", "WorldSummary", "build", "is_true", "relevance"]
