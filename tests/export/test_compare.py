"""The limits that an export must keep: cosines, recall in both directions, accuracy."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.commands import export as commands
from evilm.export import compare

if TYPE_CHECKING:
    import pytest
    from numpy.typing import NDArray


def gate(
    monkeypatch: pytest.MonkeyPatch, cosines: NDArray[np.float64], before: dict[str, Any], after: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """``compare.compare`` on given cosines and given row scores, for a checkpoint and an int8 export."""
    wanted = {"video": np.tile([[1.0, 0.0]], (len(cosines), 1))}
    vectors = {"video": np.stack([cosines, np.sqrt(1 - cosines**2)], 1)}
    means = [{name: 100 * float(np.mean(row)) for name, row in scores.items()} for scores in (before, after)]
    monkeypatch.setattr(compare, "_vectors", lambda *_: vectors)
    monkeypatch.setattr(
        compare, "evaluate_rows",
        lambda *_: (SimpleNamespace(metrics=means[1]), {name: np.array(row) for name, row in after.items()}),
    )  # fmt: skip
    count = len(next(iter(before.values())))
    data: Any = SimpleNamespace(examples=[None] * count, readable=np.ones(count, dtype=bool))
    scores = {name: np.array(row, dtype=np.float64) for name, row in before.items()}
    nothing: Any = None
    reference = compare.Reference(nothing, (), wanted, data, means[0], scores, None)  # pyright: ignore[reportArgumentType]
    return compare.compare(nothing, reference, "int8")


def test_a_fall_of_v2t_recall_at_5_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 rows whose v2t R@5 falls from 41.7 to 25.0 while every other metric stays."""
    before = {"R@10": [1] * 20 + [0] * 4, "v2t_R@5": [1] * 10 + [0] * 14}
    after = {"R@10": [1] * 20 + [0] * 4, "v2t_R@5": [1] * 6 + [0] * 18}
    report, faults = gate(monkeypatch, np.ones(64), before, after)
    assert len(faults) == 1
    assert re.match(r"fusion: v2t_R@5 falls from 41\.7 to 25\.0, and the 95 % interval of the change", faults[0])
    assert report["metrics"]["differences"]["v2t_R@5"]["interval"][1] < -1


def test_a_change_within_chance_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of 24 falls and another rises, or one of 24 falls: the interval of the change includes zero."""
    before = {"R@1": [1] * 10 + [0] * 14}
    _, faults = gate(monkeypatch, np.ones(64), before, {"R@1": [0] + [1] * 9 + [0] * 14})
    assert faults == []


def test_a_fall_of_the_accuracy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"accuracy": [1] * 60 + [0] * 40}
    _, faults = gate(monkeypatch, np.ones(64), before, {"accuracy": [1] * 50 + [0] * 50})
    assert faults[0].startswith("fusion: accuracy falls from 60.0 to 50.0")


def test_the_first_percentile_of_cosines_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of 100 cosines are bad: the mean stays above its limit and the 1st percentile does not."""
    rows = {"R@1": [1.0, 0.0]}
    cosines = np.concatenate([np.full(98, 0.999), np.full(2, 0.945)])
    report, faults = gate(monkeypatch, cosines, rows, rows)
    assert report["cosine"]["video"]["mean"] > 0.98
    assert faults == ["video: the 1st percentile of cosines with the checkpoint is 0.9450, below 0.95"]
    _, faults = gate(monkeypatch, np.full(64, 0.97), rows, rows)
    assert faults == ["video: the mean cosine with the checkpoint is 0.9700, below 0.98"]


def test_the_help_states_every_limit() -> None:
    text = commands.export.__doc__ or ""
    for limit in (*compare.MIN_MEAN_COSINE.values(), *compare.MIN_COSINE_P1.values(), -compare.MAX_DROP):
        assert f"{limit:g}" in text
    for gated in ("R@1, R@5 and R@10 in both\n    directions", "accuracy for questions", "1st percentile"):
        assert gated in text
