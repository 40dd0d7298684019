"""A run's folder tells its story, and goes on telling it after a cut."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evilm.errors import DependencyError, OutputError
from evilm.training import logger
from evilm.training.logger import METRICS, VALIDATION, RunLogger
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from typing import NoReturn


def row(step: int) -> dict[str, Any]:
    return {"step": step, "epoch": 0.1, "seconds": 1.0, "lr": 1e-3, "gradient": 2.0, "loss": 3.0 / step, "skipped": 0}


def test_a_resumed_story_is_one_story(tmp_path: Path) -> None:
    first = RunLogger(tmp_path)
    first.begin(0, {"recipe": {"seed": 7}})
    for step in (1, 2, 3):
        first.add(METRICS, row(step))
    first.add(VALIDATION, {"step": 3, "R@1": 10.0})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "lo')
    second = RunLogger(tmp_path)
    second.begin(2, {"recipe": {"seed": 7}})
    second.add(METRICS, row(3))
    second.close()
    logger.draw_curves(tmp_path)
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS).read_text().splitlines()] == [1, 2, 3]
    assert (tmp_path / VALIDATION).read_text() == ""
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["recipe"] == {"seed": 7}
    assert [each["at_step"] for each in told["starts"]] == [0, 2]
    assert {"command", "machine", "git", "packages", "when"} <= told["starts"][0].keys()
    assert told["starts"][0]["packages"]["torch"] != "not installed"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    silent = RunLogger(tmp_path, writes=False)
    silent.begin(0, {})
    silent.add(METRICS, row(1))
    silent.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = RunLogger(tmp_path)
    made.begin(0, {})

    def full(*_: Any, **__: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match=r"metrics\.jsonl: cannot be written: No space left .* --resume"):
        made.add(METRICS, row(1))


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    made = RunLogger(tmp_path, tensorboard=True)
    made.begin(0, {})
    made.add(METRICS, row(1))
    made.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("lr", "gradient", "loss", "skipped"):
        (event,) = seen.Scalars(f"metrics/{name}")
        assert (event.step, event.value) == (1, pytest.approx(row(1)[name]))


def test_tensorboard_that_is_not_installed_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(DependencyError, match=r"run\.tensorboard needs tensorboard: pip install tensorboard, or leave"):
        RunLogger(tmp_path, tensorboard=True).begin(0, {})
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_of_rows() -> None:
    rows = [Example(str(i), f"v{i}", Clip(Path(f"{i}.mp4")), (f"a dog {i}",)) for i in range(3)]
    moved = [Example(r.key, r.video, Clip(Path("elsewhere") / r.clip.path), r.captions) for r in rows]
    assert logger.fingerprint(rows) == logger.fingerprint(moved)
    assert logger.fingerprint(rows) != logger.fingerprint(rows[::-1])
    assert logger.fingerprint(rows) != logger.fingerprint(rows[:2])
