"""Hours, storage, network and cost of a large data set, from throughputs that were measured and stored.

``throughputs.json`` beside this file has CPU seconds of each stage, the machine and the command that measured them;
``benchmarks/throughputs.py`` writes such a file on another machine. A stage that was never measured on GPUs has no GPU
hours. ``simulate`` replays how ``cluster.dispatch`` gives out tasks and how one process commits the answers.
"""

from __future__ import annotations

import heapq
import json
import math
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from evilm.cluster.dispatch import Work, task_size
from evilm.config import Config, check
from evilm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

C = TypeVar("C", bound=Config)

THROUGHPUTS = Path(__file__).with_name("throughputs.json")
SEGMENT_SECONDS = 8.0  # default of `evilm index`


class Throughputs(Config):
    """Measured costs; ``cpu_*`` in CPU seconds.

    Attributes:
        machine, command, date: where they come from.
        cpu_decode_segment, cpu_encode_segment: of `evilm index`, for each segment of ``segment_seconds``.
        cpu_pack_clip, cpu_label_clip: of `evilm data pack` and `evilm data labels`.
        cpu_train_clip: of a pre-training step, for each clip.
        gpu_encode_segment, gpu_label_clip, gpu_train_clip: GPU seconds; None where no GPU was measured.
        commit_file: seconds in which one process commits a file to the index.
        start_worker: seconds until a worker has its model.
        bytes_packed_clip, bytes_label_clip, bytes_index_segment: on disk.
    """

    machine: str
    command: str
    date: str
    cpu_decode_segment: float
    cpu_encode_segment: float
    cpu_pack_clip: float
    cpu_label_clip: float
    cpu_train_clip: float
    commit_file: float
    start_worker: float
    bytes_packed_clip: float
    bytes_label_clip: float
    bytes_index_segment: float
    gpu_encode_segment: float | None = None
    gpu_label_clip: float | None = None
    gpu_train_clip: float | None = None


class Prices(Config):
    """What a provider charges, in one currency."""

    cpu_hour: float = 0.0
    gpu_hour: float = 0.0
    gb_month: float = 0.0
    gb_network: float = 0.0


@dataclass(frozen=True)
class Job:
    """What is planned.

    Attributes:
        clips, seconds: number of videos and their mean length.
        nodes, cpus, gpus: machines, and processors and GPUs of each.
        mbit: mean bit rate of the videos in Mbit/s.
        epochs: of pre-training.
        months: that packed frames, labels and index are kept.
    """

    clips: float
    seconds: float
    nodes: int = 1
    cpus: int = 32
    gpus: int = 0
    mbit: float = 1.0
    epochs: float = 20
    months: float = 1


@dataclass(frozen=True)
class Stage:
    """A line of a plan: hours of processors and GPUs, GB stored and read over the network, hours on the clock."""

    name: str
    cpu_hours: float
    gpu_hours: float
    storage_gb: float
    network_gb: float
    hours: float
    cost: float


def read_throughputs(path: Path = THROUGHPUTS) -> Throughputs:
    """Read a file of measured costs.

    Raises:
        ConfigError: it cannot be read, or has unknown or missing keys.
    """
    return _read(Throughputs, path, json.loads, "no file of throughputs", "benchmarks/throughputs.py writes one")


def read_prices(path: Path) -> Prices:
    """Read a price list: a TOML file with cpu_hour, gpu_hour, gb_month, gb_network.

    Raises:
        ConfigError: it cannot be read, or has unknown keys.
    """
    return _read(Prices, path, tomllib.loads, "no price list", "see docs/scale.md")


def _read(kind: type[C], path: Path, parse: Callable[[str], Any], complaint: str, remedy: str) -> C:
    try:
        return check(kind, parse(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {complaint}: {error}; {remedy}") from None


def parse_count(text: str) -> float:
    """``"2.5M"`` to 2,500,000; k, M and B.

    Raises:
        ConfigError: it is not such a number.
    """
    factor = {"k": 1e3, "m": 1e6, "b": 1e9}.get(text[-1:].lower(), 1.0)
    try:
        value = float(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        value = math.nan
    if not 1 <= value < math.inf:
        raise ConfigError(f"--clips {text!r}: write a number of 1 or more, such as 300k, 2.5M or 1B")
    return value


def plan(job: Job, costs: Throughputs, prices: Prices) -> list[Stage]:
    """The stages of a job: pack, labels, pre-training, index.

    Work is divided evenly over all processors or, where a stage has a GPU cost and the job GPUs, over all GPUs. The
    index takes at least as long as one process needs to commit all files.
    """
    segments = job.clips * max(1, math.ceil(job.seconds / SEGMENT_SECONDS))
    videos = job.clips * job.seconds * job.mbit / 8e3  # GB
    seen = job.epochs * job.clips
    packed, labels = job.clips * costs.bytes_packed_clip / 1e9, job.clips * costs.bytes_label_clip / 1e9
    rows = [
        ("pack", job.clips * costs.cpu_pack_clip, None, packed, videos),
        ("labels", job.clips * costs.cpu_label_clip, _times(job.clips, costs.gpu_label_clip), labels, packed),
        ("pre-training", seen * costs.cpu_train_clip, _times(seen, costs.gpu_train_clip), 0.0, job.epochs * packed),
        ("index", segments * costs.cpu_encode_segment, _times(segments, costs.gpu_encode_segment),
         segments * costs.bytes_index_segment / 1e9, videos),
    ]  # fmt: skip
    stages: list[Stage] = []
    for name, cpu, gpu, stored, network in rows:
        on_gpu = gpu is not None and job.gpus > 0
        cpu_seconds, gpu_seconds = (0.0, gpu or 0.0) if on_gpu else (cpu, 0.0)
        if name == "index":
            cpu_seconds += segments * costs.cpu_decode_segment
        hours = max(cpu_seconds / (job.nodes * job.cpus), gpu_seconds / max(1, job.nodes * job.gpus)) / 3600
        if name == "index":
            hours = max(hours, job.clips * costs.commit_file / 3600)
        cost = (
            cpu_seconds / 3600 * prices.cpu_hour + gpu_seconds / 3600 * prices.gpu_hour
            + stored * job.months * prices.gb_month + network * prices.gb_network
        )  # fmt: skip
        stages.append(Stage(name, cpu_seconds / 3600, gpu_seconds / 3600, stored, network, hours, cost))
    return stages


def _times(count: float, seconds: float | None) -> float | None:
    return None if seconds is None else count * seconds


def simulate(
    files: int, file_seconds: float, workers: int, *, commit: float, start: float, task: int = Work.most
) -> dict[str, float]:
    """Predict an index on a cluster by replaying its dispatch, file by file.

    Args:
        files: number of equal videos.
        file_seconds: that a worker needs for one.
        workers: number of workers.
        commit: seconds in which the one committing process writes a file.
        start: seconds until a worker has its model.
        task: files of a task at most.

    Returns:
        seconds, the same for one worker divided by the number of workers (``ideal``), their quotient (``efficiency``),
        and the fraction of the time in which the committing process was busy.
    """
    size = task_size(files, workers, task)
    left = [size] * (files // size) + ([files % size] if files % size else [])
    free = [(start, number) for number in range(workers)]  # when each worker takes its next task
    answers: list[tuple[float, int]] = []
    for count in left:
        at, number = heapq.heappop(free)
        answers.append((at + count * file_seconds, count))
        heapq.heappush(free, (at + count * file_seconds, number))
    committed = busy = 0.0
    for at, count in sorted(answers):
        committed = max(committed, at) + count * commit
        busy += count * commit
    ideal = (files * file_seconds) / workers
    return {"seconds": committed, "ideal": ideal, "efficiency": ideal / committed, "commit": busy / committed}


def predictions(job: Job, costs: Throughputs, nodes: Sequence[int] = (2, 8, 64)) -> list[dict[str, float]]:
    """``simulate`` the index of a job on several numbers of nodes, two processors a worker.

    At most 200,000 files are replayed and the rest is in proportion, as start and end of the run no longer matter.
    """
    per_file = max(1, math.ceil(job.seconds / SEGMENT_SECONDS)) * (costs.cpu_decode_segment + costs.cpu_encode_segment)
    files = int(min(job.clips, 200_000))
    found: list[dict[str, float]] = []
    for count in nodes:
        workers = max(1, count * job.cpus // 2)
        made = simulate(files, per_file / 2, workers, commit=costs.commit_file, start=costs.start_worker)
        scale = job.clips / files
        found.append({"nodes": count, "workers": workers, **made, "hours": made["seconds"] * scale / 3600})
    return found


def as_json(job: Job, costs: Throughputs, prices: Prices) -> dict[str, Any]:
    """The plan, the predictions, and what they are computed from."""
    return {
        "job": asdict(job), "throughputs": costs.model_dump(), "prices": prices.model_dump(),
        "stages": [asdict(each) for each in plan(job, costs, prices)], "simulated": predictions(job, costs),
    }  # fmt: skip


def as_text(job: Job, costs: Throughputs, prices: Prices) -> str:
    """The same as a table."""
    stages = plan(job, costs, prices)
    total = Stage("total", *(sum(getattr(each, name) for each in stages) for name in list(asdict(stages[0]))[1:]))
    machines = f"{job.nodes} nodes of {job.cpus} processors and {job.gpus} GPUs"
    missing = ["no GPU was measured: stages are planned on processors"] if job.gpus and not costs.gpu_train_clip else []
    return "\n".join([
        f"{job.clips:,.0f} clips of {job.seconds:g} s on {machines}",
        f"measured on {costs.machine}, {costs.date}: {costs.command}",
        f"{'stage':<14}{'CPU hours':>12}{'GPU hours':>12}{'stored, GB':>13}{'read, GB':>12}{'hours':>10}{'cost':>12}",
        *(
            f"{each.name:<14}{each.cpu_hours:>12,.1f}{each.gpu_hours:>12,.1f}{each.storage_gb:>13,.1f}"
            f"{each.network_gb:>12,.1f}{each.hours:>10,.2f}{each.cost:>12,.2f}"
            for each in (*stages, total)
        ),
        *missing,
        "simulated index: nodes, hours, fraction of the ideal speed, busy fraction of the committing process",
        *(
            f"{each['nodes']:>5.0f}{each['hours']:>12,.2f}{each['efficiency']:>10.2f}{each['commit']:>10.2f}"
            for each in predictions(job, costs)
        ),
    ])  # fmt: skip
