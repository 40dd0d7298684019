"""A process that works on an index until it is done or killed: ``driver.py update|compact FOLDER INDEX``.

It says ``begin`` when the work begins, each path as it is acknowledged, and ``end``.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from evilm.search import update
from evilm.search.index import VideoIndex

spec = importlib.util.spec_from_file_location("fake", Path(__file__).with_name("fake.py"))
assert spec is not None
assert spec.loader is not None
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def main(what: str, folder: str, place: str) -> None:
    update._GROUP = 2  # many small transactions: more of them to be killed in
    model = fake.Fake()
    say("begin")
    if what == "compact":
        with VideoIndex.open(place, model) as index:
            index.compact()
    else:
        VideoIndex.build(
            folder, model, place, acknowledged=lambda paths, _, __: [say(os.fsdecode(path)) for path in paths]
        ).close()
    say("end")


if __name__ == "__main__":
    main(*sys.argv[1:])
