"""Training runs as the page shows them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from evilm.server.runs import Runs

if TYPE_CHECKING:
    from pathlib import Path


def make_run(folder: Path, steps: int) -> None:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"task": "retrieval", "recipe": {"seed": 0}, "starts": []}))
    lines = [json.dumps({"step": step, "loss": 1 / step, "lr": 0.1}) for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 99')  # a run that is writing
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "metrics.json").write_text(
        json.dumps({"metrics": {"R@1": 31.0}, "interval": [28.0, 34.0]})
    )


def test_runs_are_listed_and_shown(tmp_path: Path) -> None:
    make_run(tmp_path / "demo" / "retrieval", 40)
    make_run(tmp_path / "other", 5000)
    runs = Runs((tmp_path,))
    rows = runs.list()
    assert {row["name"]: row["step"] for row in rows} == {"demo/retrieval": 40, "other": 5000}
    long = next(row for row in rows if row["name"] == "other")
    run = runs.get(long["run"])
    assert run is not None
    assert len(run["metrics"]) <= 2001
    assert run["metrics"][-1]["step"] == 5000
    assert run["metric"] == {"name": "R@1", "value": 31.0, "interval": [28.0, 34.0]}


def test_an_unknown_run_is_none(tmp_path: Path) -> None:
    assert Runs((tmp_path,)).get("0" * 16) is None
    assert Runs((tmp_path / "nowhere",)).list() == []
