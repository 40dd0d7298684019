"""Which of a user's clips give frames: what may have been bad luck is tried once more before it is left out.

A decoder that was stopped for a while, or killed for want of memory, says nothing of its file.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from evilm.data.frame_cache import TRANSIENT, FrameCache
from evilm.data.video import DecoderPool
from evilm.errors import DataError
from evilm.progress import Meter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from evilm.data.config import DataConfig
    from evilm.types import Example


def readable(examples: Sequence[Example]) -> tuple[list[Example], list[dict[str, str]]]:
    """The rows whose video gives frames, and path, status and reason of those that do not.

    Raises:
        DataError: none does.
    """
    paths = list(dict.fromkeys(row.clip.path for row in examples if not row.clip.frames))
    workers = os.cpu_count() or 1
    bad: dict[Path, dict[str, str]] = {}
    with (
        Meter("checking", len(paths), "videos") as meter, DecoderPool(workers) as pool,
        ThreadPoolExecutor(workers) as threads,
    ):  # fmt: skip
        try:
            for done, (path, found) in enumerate(zip(paths, threads.map(pool.check, paths), strict=True), 1):
                if not found.readable and found.status in TRANSIENT:
                    found = pool.check(path)  # noqa: PLW2901
                if not found.readable:
                    bad[path] = {"path": str(path), "status": found.status, "reason": found.reason}
                meter.update(done)
        except BaseException:  # Ctrl-C: not the files that wait, too
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    rows = [row for row in examples if row.clip.path not in bad]
    if examples and not rows:
        first = next(iter(bad.values()))
        raise DataError(f"none of {len(bad)} videos can be read; the first: {first['path']}: {first['reason']}")
    return rows, list(bad.values())


def decodable(
    examples: Sequence[Example], data: DataConfig, size: int
) -> tuple[tuple[Example, ...], list[dict[str, str]]]:
    """The rows whose frames could be kept in the cache, and path, status and reason of the others; all without a cache.

    Args:
        examples: of one part, as its run will ask for them.
        data: with the cache.
        size: pixels of a frame's side.
    """
    if data.cache is None or data.packed is not None:
        return tuple(examples), []
    clips = [row.clip for row in examples]
    store = FrameCache(data.cache, clips, size=size, cached_frames=data.cached_frames, resize_mode=data.resize_mode)
    with Meter("decoding", len(store), "clips") as meter:
        store.fill(data.workers, lambda done, _: meter.update(done), data.timeout)
        if any(status in TRANSIENT for key, (status, _) in store.problems.items() if key in store.clips):
            store.fill(data.workers, lambda done, _: meter.update(done), data.timeout)
    lost = [
        {"path": str(clip.path), "status": store.problems[clip.id][0], "reason": store.problems[clip.id][1]}
        for clip in store.clips.values()
        if clip.id in store.problems
    ]
    return tuple(row for row in examples if row.clip.id not in store.problems), lost
