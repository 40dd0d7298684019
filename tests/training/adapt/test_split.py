"""What is held out: always the same, and nothing of it is on the other side."""

from __future__ import annotations

from pathlib import Path

import pytest

from evilm.errors import DataError
from evilm.training.adapt.split import divide
from evilm.types import Clip, Example


def row(name: str, start: float = 0.0, folder: Path = Path("videos")) -> Example:
    return Example(key=f"{name} {start}", video=name, clip=Clip(folder / name, start), captions=(name,))


def test_the_same_clips_and_seed_give_the_same_parts_whatever_their_order() -> None:
    rows = [row(f"{i}.mp4") for i in range(50)]
    train, held = divide(rows, 0.2, 3)
    assert (len(train), len(held)) == (40, 10)
    again = divide(rows[::-1], 0.2, 3)
    assert {each.key for each in again[1]} == {each.key for each in held}
    other = divide(rows, 0.2, 4)
    assert {each.key for each in other[1]} != {each.key for each in held}
    assert [each.key for each in (*train, *held)] != [each.key for each in rows]
    assert {*train, *held} == {*rows}


def test_parts_and_copies_of_a_video_are_on_one_side(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.mp4").write_bytes(bytes([i]) * 9)
        (tmp_path / f"copy of {i}.mp4").write_bytes(bytes([i]) * 9)
    rows = [row(f"{i}.mp4", start, tmp_path) for i in range(12) for start in (0.0, 5.0)]
    rows += [row(f"copy of {i}.mp4", 0.0, tmp_path) for i in range(12)]
    for seed in range(5):
        train, held = divide(rows, 0.25, seed)
        assert len(held) == 9
        of = [{each.video.removeprefix("copy of ") for each in side} for side in (train, held)]
        assert not of[0] & of[1]


def test_stills_are_divided_too() -> None:
    rows = [Example(str(i), f"{i}", Clip(Path("stills") / str(i), frames=("1.jpg", "2.jpg"))) for i in range(10)]
    rows += [Example(f"p{i}", f"p{i}", Clip(Path("pictures"), frames=(f"{i}.jpg",))) for i in range(10)]
    train, held = divide(rows)
    assert (len(train), len(held)) == (16, 4)


def test_too_few_are_refused() -> None:
    with pytest.raises(DataError, match=r"7 different videos are too few .* at least 8"):
        divide([row(f"{i}.mp4", start) for i in range(7) for start in (0.0, 1.0)])
    with pytest.raises(DataError, match="too few"):
        divide([row(f"{i}.mp4") for i in range(8)], 0.9)
    assert [len(side) for side in divide([row(f"{i}.mp4") for i in range(8)])] == [6, 2]
    assert [len(side) for side in divide([row(f"{i}.mp4") for i in range(9000)])] == [8500, 500]
