"""Small annotation files, and the error of a reader about bad ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from evilm.data.readers import read
from evilm.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """``put("a/b.json", content)``: text, bytes, or values for json; returns the path. No content gives one byte."""

    def write(name: str, content: str | bytes | list[Any] | dict[str, Any] = b"x") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, (str, bytes)) else json.dumps(content)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return write


@pytest.fixture
def complaint() -> Callable[..., str]:
    """``complaint(format, annotations, split)``: the one-line error of a reader."""

    def ask(name: str, annotations: Path, split: str = "train", videos: Path | None = None) -> str:
        with pytest.raises(AnnotationError) as caught:
            read(name, annotations, videos, split)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return ask
