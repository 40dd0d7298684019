"""A trained model in use: ``evilm.load`` gives one ``Embedder``, whichever form the model has.

    model = evilm.load("runs/retrieval")            # a run or checkpoint (needs torch), an export, or a hub's name
    videos = model.embed_videos(["a.mp4", ("b.mp4", 10.0, 15.0)])
    scores = videos.vectors @ model.embed_texts(["a dog catches a frisbee"]).T

A video is a path, or (path, start, end) in seconds, or a ``Clip``. Nothing here needs torch for an exported model.
"""

from __future__ import annotations

from evilm.inference.embedder import Embedder, load
from evilm.inference.loading import BUNDLED, DEFAULT_MODEL
from evilm.inference.results import Answer, VideoEmbeddings, join_question, sampled_times, softmax, to_clip

__all__ = [
    "BUNDLED",
    "DEFAULT_MODEL",
    "Answer",
    "Embedder",
    "VideoEmbeddings",
    "join_question",
    "load",
    "sampled_times",
    "softmax",
    "to_clip",
]
