"""Train and evaluate with several processes on a Ray cluster, by Ray Train, which does what torchrun does elsewhere.

Every process calls the same function of ``training`` with a rank of its own; torch connects them by gloo, or by NCCL
where each process has a GPU. Checkpoints and results go to folders that all machines share.
"""

from __future__ import annotations

import importlib
import os
import pickle
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilm.cluster.dispatch import connected, import_ray
from evilm.errors import DependencyError, DeviceError, EvilmError

if TYPE_CHECKING:
    from collections.abc import Callable

RESTARTS = 3  # of all processes, after one of them or its machine has died


def launch(address: str, processes: int, run: Callable[[], Any], shared: Path) -> Any:
    """Call ``run`` in several processes, again after a death, and return what rank 0 returns.

    Args:
        address: of the cluster, see ``connected``.
        processes: their number; each takes a GPU where the cluster has any.
        run: a function that can be pickled; a second call must continue where the first was stopped.
        shared: folder that all machines share, for the state of Ray Train.

    Raises:
        DependencyError: Ray Train is not installed.
        DeviceError: the cluster has too few processors or GPUs.
        EvilmError: what ``run`` raised.
    """
    import_ray()
    try:
        train: Any = importlib.import_module("ray.train")
        torch_trainer: Any = importlib.import_module("ray.train.torch")
    except ImportError as error:
        raise DependencyError(f"--cluster needs Ray Train: pip install 'evilm[ray]' ({error})") from None
    shared.mkdir(parents=True, exist_ok=True)
    with connected(address), tempfile.TemporaryDirectory(prefix=".ray-train-", dir=shared) as state:
        resources = import_ray().cluster_resources()
        gpus = int(resources.get("GPU", 0))
        unit, found = ("GPUs", gpus) if gpus else ("processors", int(resources.get("CPU", 0)))
        if found < processes:
            raise DeviceError(f"cluster {address!r}: {processes} processes need as many {unit}; it has {found}")
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        trainer = torch_trainer.TorchTrainer(
            _within(run),
            scaling_config=train.ScalingConfig(num_workers=processes, use_gpu=bool(gpus)),
            torch_config=torch_trainer.TorchConfig(backend=backend, timeout_s=7200),
            run_config=train.RunConfig(
                storage_path=state, name="run", failure_config=train.FailureConfig(max_failures=RESTARTS)
            ),
        )
        try:
            answer, error = trainer.fit().return_value
        except Exception as failure:
            raise DeviceError(f"cluster {address!r}: {_first_line(failure)}; run again with --resume") from failure
    if error is not None:
        raise error
    return answer


def _within(run: Callable[[], Any]) -> Callable[[], tuple[Any, EvilmError | None]]:
    """``run`` in the folder of the command, without errors that a second attempt would repeat: they are returned."""
    folder = Path.cwd()

    def attempt() -> tuple[Any, EvilmError | None]:
        os.chdir(folder)
        try:
            return run(), None
        except EvilmError as error:
            try:
                pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
            except Exception:  # noqa: BLE001 - errors with arguments of their own may not survive the way
                return None, EvilmError(str(error))
            return None, error

    return attempt


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
