"""Where the work runs: the device, its number format, and the processes that share it (torchrun; gloo or NCCL).

Every function here is the identity where there is one process. Where there are several, each computes its slice of the
global batch, and the mean of their losses is the loss of one process with the whole batch. Three rules make it so:

* what is compared across the batch (in-batch negatives, similarities) is gathered, with its gradient;
* what is divided by a count is divided by the mean count of all processes;
* what is drawn once for the whole batch is drawn by the first process and handed to the others.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as collectives  # with gradients

from evilm.errors import DeviceError, EvilmError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from torch import Tensor

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]
T = TypeVar("T")

# The first process may decode a whole data set while the others wait. A process that dies is noticed by its closed
# connection and by torchrun, long before.
PATIENCE = timedelta(hours=2)
MEETING = timedelta(minutes=3)  # in which all must have connected
BUCKET = 2**23  # numbers of a gradient bucket: 32 MB


def device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` takes CUDA, then MPS, then the CPU.

    Under torchrun each process takes the GPU of its local rank.

    Raises:
        DeviceError: this machine does not have it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return _own_gpu()
        return torch.device("mps" if torch.backends.mps.is_available() and world_size() == 1 else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"device {name!r}: this machine has no CUDA device that torch can use; take run.device=cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps': this machine has no Apple GPU that torch can use; take run.device=cpu")
    if name == "cuda":
        return _own_gpu()
    try:
        return torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r} is none of auto, cpu, cuda, mps") from None


def _own_gpu() -> torch.device:
    if not launched():
        return torch.device("cuda")
    own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if own >= there:
        raise DeviceError(
            f"local rank {own} has no GPU of its own: this machine has {there}; start as many with --nproc-per-node"
        )
    return torch.device("cuda", own)


def uses_bf16(name: Precision, where: torch.device) -> bool:
    """Whether to autocast to bfloat16: asked for, or ``auto`` on hardware that multiplies in it."""
    if name != "auto":
        return name == "bf16"
    if where.type == "cuda":
        return torch.cuda.is_bf16_supported()
    # AMX or AVX-512 BF16; elsewhere the CPU would emulate it, several times slower than float32.
    return where.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def launched() -> bool:
    """Whether torchrun (or something that sets the same variables) started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def process_group(name: str) -> Generator[None]:
    """Join the other processes that torchrun started; nothing where there are none.

    Args:
        name: the device setting: gradients travel by NCCL between GPUs, by gloo between CPUs.

    Raises:
        DeviceError: they cannot be reached.
    """
    if not launched() or dist.is_initialized():
        yield
        return
    where = device(name)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    try:
        store = _own_attempt()
        own, count = (-1, -1) if store is None else (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        dist.init_process_group(backend, timeout=MEETING, store=store, rank=own, world_size=count)
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise DeviceError(
            f"the {os.environ['WORLD_SIZE']} processes of this run cannot meet: {first}; start them again with "
            "--resume, as torchrun's --max-restarts does by itself"
        ) from None
    _be_patient()
    try:
        yield
    finally:
        dist.destroy_process_group()


def _own_attempt() -> Any:
    """Where the processes of this attempt find one another; None leaves that to torch.

    torchrun keeps one store over all its restarts, and torch looks up addresses there without saying of which attempt
    (seen with 2.15): half of the restarted processes would wait for dead ones. On one machine the number of the attempt
    tells them apart. On several it differs from machine to machine; there torchrun itself must not share its store
    (docs/performance.md).
    """
    told = os.environ
    if told.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or told.get("GROUP_WORLD_SIZE") != "1":
        return None
    place, port, count = told["MASTER_ADDR"], int(told["MASTER_PORT"]), int(told["WORLD_SIZE"])
    torchs: Any = dist  # whose stores are public and not declared so
    shared = torchs.TCPStore(place, port, count, is_master=False, timeout=MEETING)
    return torchs.PrefixStore(f"evilm/{told.get('TORCHELASTIC_RESTART_COUNT', '0')}", shared)


def _be_patient() -> None:
    """From here on, wait for one another as long as real work takes."""
    torchs: Any = dist
    set_timeout = getattr(torchs, "set_timeout", None)
    if set_timeout is None:  # torch before 2.15 has no public way
        set_timeout = torchs.distributed_c10d._set_pg_timeout  # noqa: SLF001
    set_timeout(PATIENCE)


def rank() -> int:
    """Which of the processes this is; the first writes and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_gather(own: Tensor) -> Tensor:
    """The rows (B, ...) of every process as (ranks * B, ...), with their gradients; shapes must be equal."""
    return own if world_size() == 1 else torch.cat(collectives.all_gather(own))


def all_reduce_sum(own: Tensor) -> Tensor:
    """The sum over all processes, with its gradient."""
    return own if world_size() == 1 else cast("Tensor", collectives.all_reduce(own))


def all_reduce_mean(own: Tensor) -> Tensor:
    """The mean over all processes, with its gradient; counts become fractions."""
    return (
        own if world_size() == 1 else all_reduce_sum(own.float() if not own.is_floating_point() else own) / world_size()
    )


def all_reduce_max(own: int) -> int:
    """The largest of the processes' numbers."""
    if world_size() == 1:
        return own
    box = torch.tensor(own)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def broadcast(drawn: Tensor) -> Tensor:
    """What the first process has: for what is drawn once for the whole batch."""
    if world_size() > 1:
        dist.broadcast(drawn, 0)
    return drawn


def all_gather_objects(own: T) -> list[T]:
    """One object of each process, in the order of ranks."""
    if world_size() == 1:
        return [own]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, own)
    return cast("list[T]", found)


def run_on_rank0(make: Callable[[], T]) -> T:
    """What ``make`` answers in the first process, handed to all; so is what it raises."""
    if world_size() == 1:
        return make()
    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box[0] = make()
        except EvilmError as error:
            box[1] = error
    dist.broadcast_object_list(box, 0)
    if box[1] is not None:
        raise box[1]
    return cast("T", box[0])


@contextmanager
def rank0_first() -> Generator[None]:
    """The first process of all goes first, then the first of each machine, then the rest: for what fills a cache.

    Whether the machines share a disk or not, what one process made the next ones find made.
    """
    turn = 0 if rank() == 0 else 1 if os.environ.get("LOCAL_RANK") == "0" else 2
    for number in range(3):
        if number == turn:
            yield
        if world_size() > 1:
            dist.barrier()


def all_reduce_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over all processes, in buckets of a fixed order."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if parameter.grad is not None:
            bucket.append(parameter.grad)
            size += parameter.grad.numel()
            if size >= BUCKET:
                _share(bucket)
                bucket, size = [], 0
    _share(bucket)


def _share(gradients: list[Tensor]) -> None:
    if not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view(gradient.shape))
        start += gradient.numel()


def broadcast_weights(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's weights and buffers."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)
