"""A trained retrieval model with a match head, and its exports in fp32 and int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from evilm.export import writer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def run(trained: Callable[[str], Path]) -> Path:
    return trained("retrieval")


@pytest.fixture(scope="session")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int8 export."""
    out = tmp_path_factory.mktemp("exports") / "int8"
    writer.export(run, out, int8=True)
    return out


@pytest.fixture(scope="session")
def exported_fp32(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "fp32"
    writer.export(run, out)
    return out
