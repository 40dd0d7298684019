"""The number of steps is fitted to a time limit, with a clock that the test sets."""

from __future__ import annotations

import pytest

from evilm.training.time_limit import TimeLimit


def run(minutes: float, total: int, seconds_per_step: list[float] | float, start: int = 0) -> tuple[int, float]:
    """Steps taken and seconds spent with steps of these lengths."""
    limit, step, elapsed = TimeLimit(minutes), start, 0.0
    while step < total:
        seconds = seconds_per_step if isinstance(seconds_per_step, float) else seconds_per_step[step]
        step, elapsed = step + 1, elapsed + seconds
        total = limit.fit(step, total, elapsed)
    return step, elapsed


@pytest.mark.parametrize("seconds", [0.05, 0.5, 2.0, 6.0])
def test_the_limit_is_used_and_kept(seconds: float) -> None:
    steps, elapsed = run(1.0, 100_000, seconds)
    assert elapsed <= 60.0 or steps <= 6
    assert elapsed >= 50.0
    assert steps == pytest.approx(57 / seconds, rel=0.1, abs=2)


def test_a_run_that_fits_keeps_all_its_steps() -> None:
    assert run(1.0, 300, 0.1) == (300, pytest.approx(30.0))
    assert run(0.0, 300, 10.0)[0] == 300, "0 sets no limit"


def test_steps_that_become_slower_are_fitted_again() -> None:
    lengths = [0.1] * 100 + [0.4] * 1000
    steps, elapsed = run(1.0, 1000, lengths)
    assert elapsed <= 66.0
    assert steps < 300


def test_slow_first_steps_do_not_count() -> None:
    steps, _ = run(1.0, 1000, [5.0, 3.0, 1.0] + [0.05] * 1000)
    assert steps > 900


def test_a_resumed_run_measures_anew() -> None:
    assert run(1.0, 1000, 0.5, start=500)[0] == pytest.approx(500 + 57 / 0.5, abs=12)
