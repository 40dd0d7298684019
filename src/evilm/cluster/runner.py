"""Decode and embed the files of an index on a Ray cluster.

Only paths go to the workers and only vectors come back; the process that started the work commits them to the index,
each file in one transaction, so a file is there once or not at all whatever dies. A worker has its own model and
decoder processes. A file that kills its workers is set aside as ``crashed``.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from evilm.cluster.dispatch import Dispatch, Losses, Work, connected
from evilm.data.video import DecoderPool
from evilm.errors import VideoIndexError
from evilm.search.database import NewFile
from evilm.search.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from evilm.search.scan import FoundFile
    from evilm.search.update import Embed

    # Finished files without those that were deleted meanwhile, and the seconds of decoding and of encoding.
    Embedded = tuple[list[NewFile], float, float]


class RayRunner:
    """Connects to a cluster and does the work of an update there.

    Args:
        address: of the cluster as ``ray.init`` takes it, ``auto`` for the one that this machine belongs to, or
            ``local`` to start one on this machine.

    Attributes:
        losses: workers that died, files that were given up, machines that worked.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.losses = Losses()

    @contextlib.contextmanager
    def __call__(self, pipeline: Pipeline, name: str | None) -> Generator[Embed]:
        """See ``search.update.Runner``.

        Raises:
            DependencyError: Ray is not installed.
            ConfigError: there is no cluster at the address.
        """
        with connected(self.address):
            yield lambda files: self._run(files, pipeline, name)
        self.losses.tell("videos")

    def _run(self, files: Sequence[FoundFile], pipeline: Pipeline, name: str | None) -> Iterator[list[NewFile]]:
        settings = (pipeline.config, pipeline.workers, pipeline.batch, pipeline.limits)
        model = pipeline.model if name is None else name
        prepare = partial(_prepare, model, pipeline.model.fingerprint, settings)
        with contextlib.closing(Dispatch(Work(prepare, _crashed, pipeline.workers), self.losses)) as dispatch:
            for found, decoding, encoding in dispatch.run(files):
                pipeline.decoding += decoding
                pipeline.encoding += encoding
                if found:
                    yield found


def _prepare(model: Any, fingerprint: str, settings: tuple[Any, ...]) -> Callable[[Sequence[FoundFile]], Embedded]:
    """In a worker: a pipeline whose model and decoders stay loaded.

    Args:
        model: it, or its name.
        fingerprint: that the model must have.
        settings: further arguments of ``Pipeline``.

    Raises:
        VideoIndexError: the name stands for another model on this machine.
    """
    from evilm.inference import load

    workers = settings[1]
    loaded = load(model, threads=workers) if isinstance(model, str) else model
    if loaded.fingerprint != fingerprint:
        raise VideoIndexError(f"{model}: is another model on machine {os.uname().nodename}: copy it there")
    pipeline = Pipeline(loaded, *settings)
    pool = DecoderPool(workers, pipeline.limits)

    def embed(files: Sequence[FoundFile]) -> Embedded:
        before = pipeline.decoding, pipeline.encoding
        found = [each for group in pipeline.run(files, pool) for each in group]
        return found, pipeline.decoding - before[0], pipeline.encoding - before[1]

    return embed


def _crashed(file: FoundFile, reason: str) -> Embedded:
    return [NewFile(*file, b"", "crashed", reason, 0.0)], 0.0, 0.0
