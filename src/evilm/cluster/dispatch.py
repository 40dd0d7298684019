"""Give items of work to actors on a Ray cluster, and collect their answers, whatever dies.

Only descriptions of work (paths, numbers of shards) go to the workers and only small results come back; frames never
travel. When a worker dies, its item is found by trying the items of its task alone; an item that kills its worker
``ATTEMPTS`` times alone is given up. The death of a machine counts against no item.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilm.errors import ConfigError, DependencyError, EvilmError
from evilm.progress import say

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

ATTEMPTS = 3  # of an item that is alone in its task
IN_FLIGHT = 2  # tasks that a worker has, so that it never waits for the next one
_TASK_SECONDS = 3600.0  # after which a worker counts as dead
_TICK = 1.0  # seconds after which machines that came or went are noticed
_PATIENCE = 60.0  # seconds without any worker until a line says so
_STARTS = 3  # attempts to start or reach Ray
_FAILED_STARTS = 10  # workers in a row that die before their first task


@dataclass(frozen=True)
class Work:
    """What is done with items on other machines.

    Attributes:
        prepare: called once in each worker, such as to load a model; returns what answers several items.
        give_up: the answer for an item that killed its workers, from the item and the reason; or it raises.
        cpus: processors of a worker.
        most: items of a task.
        describe: an item to what is sent of it; None sends the item.
    """

    prepare: Callable[[], Callable[[Sequence[Any]], Any]]
    give_up: Callable[[Any, str], Any]
    cpus: int
    most: int = 16
    describe: Callable[[Any], Any] | None = None


def task_size(items: int, workers: int, most: int) -> int:
    """Items of a task: at most ``most``, and few enough that every worker gets several tasks."""
    return max(1, min(most, items // (max(1, workers) * IN_FLIGHT * 2)))


@dataclass
class Losses:
    """What happened to workers.

    Attributes:
        workers: number that died.
        items: number that were given up.
        machines: ids of those that worked.
    """

    workers: int = 0
    items: int = 0
    machines: set[str] = field(default_factory=set[str])

    def tell(self, noun: str) -> None:
        """Print a line if workers were lost."""
        if self.workers:
            say(f"cluster: {self.workers} workers were lost and replaced, {self.items} {noun} set aside as crashed")


@dataclass(eq=False)
class _Task:
    """Items for one worker, and how often their worker died while they were alone."""

    items: list[Any]
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
    """What an actor runs.

    Args:
        prepare: see ``Work``.
        folder: of the command, at which relative paths start.
    """

    def __init__(self, prepare: Callable[[], Callable[[Sequence[Any]], Any]], folder: str) -> None:
        self._prepare, self._folder = prepare, folder

    def start(self) -> str:
        """Prepare for work; returns the id of the machine."""
        with contextlib.suppress(OSError):  # a machine may lack it if all paths are absolute
            os.chdir(self._folder)
        self._answer = self._prepare()
        return import_ray().get_runtime_context().get_node_id()

    def run(self, items: Sequence[Any]) -> Any:
        return self._answer(items)


class Dispatch:
    """Gives tasks to workers and collects their answers.

    Args:
        work: what is done.
        losses: are counted here.
    """

    def __init__(self, work: Work, losses: Losses) -> None:
        self.ray, self.work, self.losses = import_ray(), work, losses
        self._prepare = self.ray.put(work.prepare)  # sent once, however many workers there are
        self._class = self.ray.remote(num_cpus=work.cpus, max_restarts=0, scheduling_strategy="SPREAD")(Remote)
        self._waiting: deque[_Task] = deque()
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._dead = set[str]()
        self._scaled = self._alone_since = 0.0

    def run(self, items: Sequence[Any]) -> Iterator[Any]:
        """Yield answers until every item is in exactly one of them.

        Raises:
            EvilmError: what a worker raised; or no worker can be started.
        """
        size = task_size(len(items), self._room(), self.work.most)
        self._waiting.extend(_Task(list(items[start : start + size])) for start in range(0, len(items), size))
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
                yield from list(self._receive(owner, ref))

    def close(self) -> None:
        for worker in self._workers:
            self.ray.kill(worker.actor)

    def _room(self) -> int:
        """Number of workers that the machines have processors for."""
        return int(self.ray.cluster_resources().get("CPU", 0) // self.work.cpus)

    def _scale(self) -> None:
        """Start workers where there is room, and say so if there has been none for long."""
        now = time.monotonic()
        if now - self._scaled < _TICK:
            return
        self._scaled = now
        wanted = min(max(1, self._room()), len(self._waiting) + sum(bool(w.tasks) for w in self._workers))
        while len(self._workers) < wanted:
            actor = self._class.remote(self._prepare, str(Path.cwd()))
            self._workers.append(_Worker(actor, ready=actor.start.remote()))
        if any(worker.ready is None for worker in self._workers):
            self._alone_since = 0.0
        elif not self._alone_since:
            self._alone_since = now
        elif now - self._alone_since > _PATIENCE:
            self._alone_since = now
            say("cluster: no machine has room for a worker; waiting (Ctrl-C stops, finished work is kept)")

    def _assign(self) -> None:
        for _ in range(IN_FLIGHT):  # one to each, then the second
            for worker in self._workers:
                if self._waiting and worker.ready is None and len(worker.tasks) < IN_FLIGHT:
                    if worker.tasks and len(self._waiting[0].items) == 1:
                        continue  # an item that may kill its worker goes to one that has nothing else
                    task = self._waiting.popleft()
                    if not worker.tasks:
                        worker.since = time.monotonic()
                    sent = task.items if self.work.describe is None else [*map(self.work.describe, task.items)]
                    worker.tasks[worker.actor.run.remote(sent)] = task

    def _receive(self, worker: _Worker, ref: Any) -> Iterator[Any]:
        """The answer; if the worker is dead, those of its answers that arrived."""
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
                self.losses.machines.add(answer)
                return
            del worker.tasks[ref]
            yield answer

    def _bury(self, worker: _Worker, error: Exception) -> Iterator[Any]:
        """Take what a dead worker finished, and give the rest to others."""
        self._workers.remove(worker)
        self.losses.workers += 1
        with contextlib.suppress(Exception):  # it may hang rather than be dead
            self.ray.kill(worker.actor)
        if worker.ready is not None and not self._has_new_dead():
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                raise ConfigError(
                    f"cluster: {_FAILED_STARTS} workers in a row died at their start: {error}; do all machines have "
                    "this version of evilm and enough memory?"
                )
        blamed, again = False, list[_Task]()
        for ref, task in worker.tasks.items():
            try:
                yield self.ray.get(ref, timeout=_TICK)
            except self.ray.exceptions.RayTaskError as failure:
                self._explain(failure)
            except self.ray.exceptions.RayError:
                if blamed or not self._is_alive(worker.node):
                    again.append(task)
                elif len(task.items) > 1:
                    self._waiting.extend(_Task([each]) for each in task.items)
                elif task.deaths + 1 < ATTEMPTS:
                    self._waiting.append(_Task(task.items, task.deaths + 1))
                else:
                    self.losses.items += 1
                    yield self.work.give_up(task.items[0], f"its worker died {ATTEMPTS} times: {type(error).__name__}")
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
    ray = import_ray()
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        options |= {"object_store_memory": 200 * 2**20}  # paths and vectors are small
    else:
        options |= {"address": address}
    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(**options)
            break
        except Exception as error:  # noqa: BLE001 - a start that took too long raises no subclass
            ray.shutdown()
            if attempt < _STARTS and "timed out" in str(error):  # Ray allows 30 s, which a busy machine exceeds
                continue
            raise ConfigError(
                f"cluster {address!r}: cannot be reached: {error}; use the address that `ray start` printed"
            ) from None
    try:
        yield
    finally:
        ray.shutdown()


def import_ray() -> Any:
    """Ray, with its errors.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.exceptions")
    except ModuleNotFoundError:
        raise DependencyError("--cluster needs Ray: pip install 'evilm[ray]'; or index shards: --shard 0/4") from None
    return ray
