"""``evilm data pack``: output, messages and errors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from evilm import cli
from evilm.data.pack import jpeg, write_shard
from evilm.data.packed_frames import PackedFrames

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """Three videos of two frames each; one frame of the last is no picture."""
    picture = jpeg(np.full((32, 32, 3), 90, dtype=np.uint8))
    contents = [
        (f"v{i}", {"0.jpg": picture, "1.jpg": picture, "json": json.dumps({"captions": [f"clip {i}"]}).encode()})
        for i in range(3)
    ]
    contents[2][1]["0.jpg"] = b"no picture"
    (tmp_path / "data").mkdir()
    write_shard(tmp_path / "data" / "train.tar", contents)
    return tmp_path / "data"


def pack(annotations: Path, out: Path, *more: str) -> int:
    return cli.run(["data", "pack", "frames", str(annotations), str(out), "--size", "16", "--workers", "0", *more])


def test_a_split_is_packed_once(annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(annotations, tmp_path / "out") == 0
    said = capsys.readouterr()
    assert "3 clips in 1 shards (1 written now), 1 unreadable; train on them with data.packed=" in said.out
    assert "unreadable: " in said.err
    assert "unsupported" in said.err
    assert len(PackedFrames(tmp_path / "out" / "train")) == 3
    assert pack(annotations, tmp_path / "out") == 0
    assert "(0 written now)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--size", "24"), "holds frames of other clips, or packed with other settings"),
        (("--split", "test"), "test.tar"),
        (("--resize-mode", "stretch"), "--resize-mode"),
        (("--cached-frames", "0"), "--cached-frames"),
    ],
)
def test_mistakes_give_a_one_line_error(
    annotations: Path, tmp_path: Path, more: tuple[str, str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack(annotations, tmp_path / "out") == 0
    capsys.readouterr()
    assert pack(annotations, tmp_path / "out", *more) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert len(said.strip().splitlines()) == 1


def test_an_interrupted_pack_prints_how_to_continue(
    annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("evilm.data.pack.jpeg", interrupted)
        assert pack(annotations, tmp_path / "out") == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("stopped; complete shards are kept; continue with: evilm data pack frames ")
    assert cli.run(said.partition("continue with: evilm ")[2].split()) == 0
