"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports torch: the suite runs in two processes on two cores, so one thread each. It needs no network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, which is not part of the project: a test that needs it is skipped where it is absent."""
    folder = Path(os.environ.get("EVILM_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; EVILM_SHARED_DATA names another folder")
    return folder
