"""Decode and embed the files of an index on a Ray cluster.

Only paths go to the workers and only vectors come back; the process that started the work commits them to the index,
each file in one transaction, so a file is there once or not at all whatever dies. A worker is an actor with its own
model and decoder processes. When a worker dies, its file is found by trying the files of its task alone; a file that
kills its worker ``ATTEMPTS`` times alone is set aside as ``crashed``. The death of a machine counts against no file.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evilm.data.video import DecoderPool
from evilm.errors import ConfigError, DependencyError, EvilmError, VideoIndexError
from evilm.progress import say
from evilm.search.database import NewFile
from evilm.search.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from evilm.search.scan import FoundFile
    from evilm.search.update import Embed

ATTEMPTS = 3  # of a file that is alone in its task
FILES = 16  # of a task at most
_IN_FLIGHT = 2  # tasks that a worker has, so that it never waits for the next one
_TASK_SECONDS = 3600.0  # after which a worker counts as dead
_TICK = 1.0  # seconds after which machines that came or went are noticed
_PATIENCE = 60.0  # seconds without any worker until a line says so
_FAILED_STARTS = 10  # workers in a row that die before their first task


@dataclass(eq=False)
class _Task:
    """Files for one worker, and how often their worker died while they were alone."""

    files: list[FoundFile]
    deaths: int = 0


@dataclass(eq=False)
class _Worker:
    """An actor: its tasks in the order in which it works on them, and the machine that it runs on."""

    actor: Any
    tasks: dict[Any, _Task] = field(default_factory=lambda: {})  # by the reference of the result
    ready: Any = None  # reference of its first answer; None afterwards
    node: str = ""
    since: float = field(default_factory=time.monotonic)


class Remote:
    """What an actor runs: a pipeline whose model and decoders stay loaded.

    Args:
        model: it, or its name.
        fingerprint: that the model must have.
        settings: further arguments of ``Pipeline``.
    """

    def __init__(self, model: Any, fingerprint: str, settings: tuple[Any, ...]) -> None:
        self._model, self._fingerprint, self._settings = model, fingerprint, settings

    def start(self) -> str:
        """Load the model; returns the id of the machine.

        Raises:
            VideoIndexError: the name stands for another model on this machine.
        """
        from evilm.inference import load

        workers = self._settings[1]
        model = load(self._model, threads=workers) if isinstance(self._model, str) else self._model
        if model.fingerprint != self._fingerprint:
            raise VideoIndexError(f"{self._model}: is another model on machine {os.uname().nodename}: copy it there")
        self._pipeline = Pipeline(model, *self._settings)
        self._pool = DecoderPool(workers, self._pipeline.limits)
        return _import_ray().get_runtime_context().get_node_id()

    def embed(self, files: Sequence[FoundFile]) -> tuple[list[NewFile], float, float]:
        """The files without those that were deleted meanwhile, and the seconds of decoding and of encoding."""
        before = self._pipeline.decoding, self._pipeline.encoding
        found = [each for group in self._pipeline.run(files, self._pool) for each in group]
        return found, self._pipeline.decoding - before[0], self._pipeline.encoding - before[1]


class RayRunner:
    """Connects to a cluster and does the work of an update there.

    Args:
        address: of the cluster as ``ray.init`` takes it, ``auto`` for the one that this machine belongs to, or
            ``local`` to start one on this machine.

    Attributes:
        lost: number of workers that died.
        set_aside: number of files that were given up.
        machines: ids of those that worked.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.lost = self.set_aside = 0
        self.machines = set[str]()

    @contextlib.contextmanager
    def __call__(self, pipeline: Pipeline, name: str | None) -> Generator[Embed]:
        """See ``search.update.Runner``.

        Raises:
            DependencyError: Ray is not installed.
            ConfigError: there is no cluster at the address.
        """
        with connected(self.address):
            yield lambda files: self._run(files, pipeline, name)
        if self.lost:
            say(f"cluster: {self.lost} workers were lost and replaced, {self.set_aside} videos set aside as crashed")

    def _run(self, files: Sequence[FoundFile], pipeline: Pipeline, name: str | None) -> Iterator[list[NewFile]]:
        dispatch = _Dispatch(self, pipeline, name)
        try:
            yield from dispatch.run(files)
        finally:
            dispatch.close()


class _Dispatch:
    """Gives tasks to workers and collects their results."""

    def __init__(self, runner: RayRunner, pipeline: Pipeline, name: str | None) -> None:
        self.ray = _import_ray()
        self.runner, self.pipeline = runner, pipeline
        model: Any = name if name is not None else self.ray.put(pipeline.model)
        settings = (pipeline.config, pipeline.workers, pipeline.batch, pipeline.limits)
        self._arguments = (model, pipeline.model.fingerprint, settings)
        self._class = self.ray.remote(num_cpus=pipeline.workers, max_restarts=0, scheduling_strategy="SPREAD")(Remote)
        self._waiting: deque[_Task] = deque()
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._dead = set[str]()
        self._scaled = self._alone_since = 0.0

    def run(self, files: Sequence[FoundFile]) -> Iterator[list[NewFile]]:
        """Yield finished files until all are finished."""
        slots = max(1, self._room()) * _IN_FLIGHT * 2
        size = max(1, min(FILES, len(files) // slots))
        self._waiting.extend(_Task(list(files[start : start + size])) for start in range(0, len(files), size))
        while self._waiting or any(worker.tasks for worker in self._workers):
            self._scale()
            self._assign()
            pending = [ref for worker in self._workers for ref in (worker.ready, *worker.tasks) if ref is not None]
            done: list[Any] = self.ray.wait(pending, num_returns=1, timeout=_TICK)[0] if pending else []
            if not pending:
                time.sleep(0.05)  # until `_scale` starts workers again
            self._end_stalled()
            for ref in done:
                owner = next((each for each in self._workers if ref == each.ready or ref in each.tasks), None)
                if owner is None:
                    continue  # its worker was found dead in this round
                if group := list(self._receive(owner, ref)):
                    yield group

    def close(self) -> None:
        for worker in self._workers:
            self.ray.kill(worker.actor)

    def _room(self) -> int:
        """Number of workers that the machines have processors for."""
        return int(self.ray.cluster_resources().get("CPU", 0) // self.pipeline.workers)

    def _scale(self) -> None:
        """Start workers where there is room, and say so if there has been none for long."""
        now = time.monotonic()
        if now - self._scaled < _TICK:
            return
        self._scaled = now
        wanted = min(max(1, self._room()), len(self._waiting) + sum(bool(w.tasks) for w in self._workers))
        while len(self._workers) < wanted:
            actor = self._class.remote(*self._arguments)
            self._workers.append(_Worker(actor, ready=actor.start.remote()))
        if any(worker.ready is None for worker in self._workers):
            self._alone_since = 0.0
        elif not self._alone_since:
            self._alone_since = now
        elif now - self._alone_since > _PATIENCE:
            self._alone_since = now
            say("cluster: no machine has room for a worker; waiting (Ctrl-C stops, finished work is kept)")

    def _assign(self) -> None:
        for _ in range(_IN_FLIGHT):  # one to each, then the second
            for worker in self._workers:
                if self._waiting and worker.ready is None and len(worker.tasks) < _IN_FLIGHT:
                    if worker.tasks and len(self._waiting[0].files) == 1:
                        continue  # a file that may kill its worker goes to one that has nothing else
                    task = self._waiting.popleft()
                    if not worker.tasks:
                        worker.since = time.monotonic()
                    worker.tasks[worker.actor.embed.remote(task.files)] = task

    def _receive(self, worker: _Worker, ref: Any) -> Iterator[NewFile]:
        """Files of a result; if the worker is dead, what is left of all its results."""
        try:
            answer = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            self._explain(error)
        except self.ray.exceptions.RayError as error:
            yield from self._bury(worker, error)
        else:
            worker.since, self._failed_starts = time.monotonic(), 0
            if ref == worker.ready:
                worker.ready, worker.node = None, answer
                self.runner.machines.add(answer)
                return
            del worker.tasks[ref]
            yield from self._take(answer)

    def _take(self, answer: tuple[list[NewFile], float, float]) -> list[NewFile]:
        found, decoding, encoding = answer
        self.pipeline.decoding += decoding
        self.pipeline.encoding += encoding
        return found

    def _bury(self, worker: _Worker, error: Exception) -> Iterator[NewFile]:
        """Take what a dead worker finished, and give the rest to others."""
        self._workers.remove(worker)
        self.runner.lost += 1
        with contextlib.suppress(Exception):  # it may hang rather than be dead
            self.ray.kill(worker.actor)
        if worker.ready is not None and not self._has_new_dead():
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                raise VideoIndexError(f"cluster: {_FAILED_STARTS} workers in a row died at their start: {error}")
        blamed, again = False, list[_Task]()
        for ref, task in worker.tasks.items():
            try:
                yield from self._take(self.ray.get(ref, timeout=_TICK))
            except self.ray.exceptions.RayTaskError as failure:
                self._explain(failure)
            except self.ray.exceptions.RayError:
                if blamed or not self._is_alive(worker.node):
                    again.append(task)
                elif len(task.files) > 1:
                    self._waiting.extend(_Task([each]) for each in task.files)
                elif task.deaths + 1 < ATTEMPTS:
                    self._waiting.append(_Task(task.files, task.deaths + 1))
                else:
                    self.runner.set_aside += 1
                    reason = f"its worker died {ATTEMPTS} times: {type(error).__name__}"
                    yield NewFile(*task.files[0], b"", "crashed", reason, 0.0)
                blamed = True
        self._waiting.extendleft(reversed(again))

    def _has_new_dead(self) -> bool:
        """Whether a machine has died since the last call: then the death of a worker says nothing about workers."""
        dead = {each["NodeID"] for each in self.ray.nodes() if not each["Alive"]}
        grown, self._dead = not dead <= self._dead, dead
        return grown

    def _is_alive(self, node: str) -> bool:
        return any(each["NodeID"] == node and each["Alive"] for each in self.ray.nodes())

    def _end_stalled(self) -> None:
        for worker in self._workers:
            if worker.tasks and time.monotonic() - worker.since > _TASK_SECONDS:
                worker.since = time.monotonic()
                self.ray.kill(worker.actor)

    def _explain(self, error: Any) -> None:
        """Raise what a worker raised; ours as it was."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, EvilmError):
            raise cause from None
        raise error


@contextlib.contextmanager
def connected(address: str) -> Generator[None]:
    """Connect to a cluster; ``local`` starts one on this machine that only this machine reaches, and ends it.

    Raises:
        DependencyError: Ray is not installed.
        ConfigError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Later versions of Ray leave the variable of a worker without GPU alone; this version announces it at each start.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = _import_ray()
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        options |= {"object_store_memory": 200 * 2**20}  # paths and vectors are small
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise ConfigError(
            f"cluster {address!r}: cannot be reached: {error}; use the address that `ray start` printed"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.exceptions")
    except ModuleNotFoundError:
        raise DependencyError("--cluster needs Ray: pip install 'evilm[ray]', or index shards: --shard 0/4") from None
    return ray
