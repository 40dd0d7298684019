"""A process that works on an index until it is done or killed: ``driver.py update|slow|compact FOLDER INDEX``.

It prints ``begin`` when the work begins, each path when it is committed, and ``end``. With ``slow``, encoding takes
0.05 s a segment, and ``encoding`` is printed before the first one.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

from evilm.search import pipeline
from evilm.search.index import VideoIndex

spec = importlib.util.spec_from_file_location("fake", Path(__file__).with_name("fake.py"))
assert spec is not None
assert spec.loader is not None
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


class SlowFake(fake.Fake):
    """A model that takes 0.05 s a segment."""

    def embed_frames(self, frames: Any) -> Any:
        if not self.encoded:
            say("encoding")
        time.sleep(0.05 * len(frames))
        return super().embed_frames(frames)


def main(what: str, folder: str, place: str) -> None:
    if what == "update":
        pipeline.FLUSH_FILES = 2  # many small transactions in which it may be killed
    model = SlowFake() if what == "slow" else fake.Fake()
    say("begin")
    if what == "compact":
        with VideoIndex.open(place, model) as index:
            index.compact()
    else:
        VideoIndex.build(
            folder, model, place, on_commit=lambda paths, _, __: [say(os.fsdecode(path)) for path in paths]
        ).close()
    say("end")


if __name__ == "__main__":
    main(*sys.argv[1:])
