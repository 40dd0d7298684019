"""The device, its number format, and the processes that share a run (torchrun; gloo or NCCL).

With one process every function here is the identity. With several, each process computes its rows of the global batch,
and the mean of their losses equals the loss of one process with the whole batch. Three rules ensure this:

* rows that are compared across the batch (in-batch negatives, similarities) are gathered, with gradients;
* a sum that is divided by a count is divided by the mean count of all processes;
* random choices about the whole batch are made on rank 0 and broadcast.

Gradients are averaged by ``all_reduce_gradients`` and not by DDP: DDP needs one forward call per step with the same
unused parameters, while tasks call parts of the model several times per step and accumulate gradients over pieces.
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

# Rank 0 may decode a whole data set while the others wait. A process that dies is detected much earlier, by its closed
# connection and by torchrun.
WORK_TIMEOUT = timedelta(hours=2)
CONNECT_TIMEOUT = timedelta(minutes=3)
BUCKET = 2**23  # numbers of a gradient bucket: 32 MB


def device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` takes CUDA, then MPS, then the CPU.

    Under torchrun each process takes the GPU of its local rank.

    Raises:
        DeviceError: this machine has no such device.
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
    """Whether to autocast to bfloat16: by ``name``, or with ``auto`` on hardware with bfloat16 arithmetic."""
    if name != "auto":
        return name == "bf16"
    if where.type == "cuda":
        return torch.cuda.is_bf16_supported()
    # AMX or AVX-512 BF16; other CPUs emulate bfloat16, several times slower than float32. torch may be limited to AVX2.
    has_bf16 = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return where.type == "cpu" and has_bf16 and "AVX512" in torch.backends.cpu.get_cpu_capability()


def launched() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def process_group(name: str) -> Generator[None]:
    """Connect the processes that torchrun started; with one process do nothing.

    Args:
        name: the device setting; GPUs communicate by NCCL, CPUs by gloo.

    Raises:
        DeviceError: the processes cannot connect.
    """
    if not launched() or dist.is_initialized():
        yield
        return
    where = device(name)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    try:
        store = _store_of_attempt()
        own, count = (-1, -1) if store is None else (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        dist.init_process_group(backend, timeout=CONNECT_TIMEOUT, store=store, rank=own, world_size=count)
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise DeviceError(
            f"the {os.environ['WORLD_SIZE']} processes of this run cannot connect: {first}; start them again with "
            "--resume, as torchrun's --max-restarts does"
        ) from None
    _set_work_timeout()
    try:
        yield
    finally:
        dist.destroy_process_group()


def _store_of_attempt() -> Any:
    """The store through which the processes of this attempt connect; None leaves the choice to torch.

    torchrun keeps one store over all restarts, and torch looks up addresses there without the number of the attempt
    (seen with 2.15), so that restarted processes would wait for dead ones. On one machine the number of the attempt, as
    a prefix, separates them. On several machines it differs; there torchrun must not share its store
    (docs/performance.md).
    """
    variables = os.environ
    if variables.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or variables.get("GROUP_WORLD_SIZE") != "1":
        return None
    host, port, count = variables["MASTER_ADDR"], int(variables["MASTER_PORT"]), int(variables["WORLD_SIZE"])
    untyped: Any = dist  # its stores are public but not declared
    shared = untyped.TCPStore(host, port, count, is_master=False, timeout=CONNECT_TIMEOUT)
    return untyped.PrefixStore(f"evilm/{variables.get('TORCHELASTIC_RESTART_COUNT', '0')}", shared)


def _set_work_timeout() -> None:
    """Allow collectives to wait as long as the work of another process may take."""
    untyped: Any = dist
    set_timeout = getattr(untyped, "set_timeout", None)
    if set_timeout is None:  # torch before 2.15 has no public function
        set_timeout = untyped.distributed_c10d._set_pg_timeout  # noqa: SLF001
    set_timeout(WORK_TIMEOUT)


def rank() -> int:
    """The number of this process; rank 0 writes files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes that share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_gather(own: Tensor) -> Tensor:
    """The rows (B, ...) of every process as (world_size * B, ...), with gradients; shapes must be equal."""
    return own if world_size() == 1 else torch.cat(collectives.all_gather(own))


def all_reduce_sum(own: Tensor) -> Tensor:
    """The sum over all processes, with gradients."""
    return own if world_size() == 1 else cast("Tensor", collectives.all_reduce(own))


def all_reduce_mean(own: Tensor) -> Tensor:
    """The mean over all processes, with gradients; integers become floating point."""
    return (
        own if world_size() == 1 else all_reduce_sum(own.float() if not own.is_floating_point() else own) / world_size()
    )


def all_reduce_max(own: int) -> int:
    """The largest number of all processes."""
    if world_size() == 1:
        return own
    box = torch.tensor(own)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def broadcast(drawn: Tensor) -> Tensor:
    """The tensor of rank 0, for random choices about the whole batch."""
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
    """Call ``make`` on rank 0; its result, or its error, is returned or raised in every process."""
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
    """Run the body on rank 0 first, then on the first process of each machine, then on the others.

    For work that fills a cache: it is done once per disk, whether machines share their disks or not.
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
                _average(bucket)
                bucket, size = [], 0
    _average(bucket)


def _average(gradients: list[Tensor]) -> None:
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
    """Copy the weights and buffers of rank 0 to every process."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)
