"""A decoder that hangs, dies or fails where a clip's name says so, in a module that other processes can import."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ODD = '''
import os, time
import numpy as np
from evilm.data import transforms
from evilm.data.pixels import FilePixels
from evilm.errors import DataError, VideoError

kept = []


class OddPixels(FilePixels):
    """Grey of the number that a clip is named by; its random time is in the first pixel."""

    def read(self, job, count):
        name = job.clip.path.stem
        if "slow" in name:
            time.sleep(0.3)
        if "hang" in name:
            time.sleep(600)
        if "eat" in name:
            np.zeros(2 << 30, dtype=np.uint8)
        if "keep" in name:
            kept.append(np.zeros(600 << 20, dtype=np.uint8))
        if "once" in name and not job.clip.path.exists():
            os.mkdir(job.clip.path)  # a process may write no file
            os.kill(os.getpid(), 9)
        if "die" in name:
            os.kill(os.getpid(), 9)
        if "odd" in name:
            raise RuntimeError("what no one foresaw")
        if "data" in name:
            raise DataError("no such clip")
        if "bad" in name:
            raise VideoError(job.clip.path, "encrypted", "is locked")
        number = int("".join(c for c in name if c.isdigit())) % 251
        pixels = np.full((count, self.size, self.size, 3), number, dtype=np.uint8)
        pixels[:, 0, 0, 0] = 0 if job.rng is None else job.rng.integers(256, size=count)
        return transforms.apply(pixels, job.plan)
'''


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The module above, which processes that are started find as well."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "odd_decoding.py").write_text(ODD)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("odd_decoding")
