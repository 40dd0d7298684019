"""A pixel source that hangs, dies or fails for certain names of clips, in a module that other processes can import."""

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

allocated = []


class OddPixels(FilePixels):
    """Grey frames of the number in the name of the clip; the first pixel holds the random times."""

    def read(self, job, count):
        name = job.clip.path.stem
        if "slow" in name:
            time.sleep(0.3)
        if "hang" in name:
            time.sleep(600)
        if "eat" in name:
            np.zeros(2 << 30, dtype=np.uint8)
        if "keep" in name:
            allocated.append(np.zeros(600 << 20, dtype=np.uint8))
        if "once" in name and not job.clip.path.exists():
            os.mkdir(job.clip.path)  # a process may write no file
            os.kill(os.getpid(), 9)
        if "die" in name:
            os.kill(os.getpid(), 9)
        if "odd" in name:
            raise RuntimeError("an unexpected error")
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
    """The module above, which child processes can import as well."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "odd_decoding.py").write_text(ODD)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("odd_decoding")
