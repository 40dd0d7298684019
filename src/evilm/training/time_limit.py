"""Time limit of training (``optim.max_minutes``): the number of steps is fitted to it from the measured steps."""

from __future__ import annotations

WARM_UP = 3  # first steps, which are slower than the rest
FIRST = 20  # step after which the total is fitted for the first time
RESERVE = 0.05  # fraction of the limit that is left unused


class TimeLimit:
    """Fits the total number of steps to a limit. The total only falls.

    Args:
        minutes: the limit; 0 sets none.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self._mark: tuple[int, float] | None = None  # step and time from which the rate is measured
        self._first: int | None = None  # step at which this process began

    def fit(self, step: int, total: int, elapsed: float) -> int:
        """The total number of steps that fits.

        Args:
            step: steps taken.
            total: steps planned so far.
            elapsed: seconds of training so far, earlier parts of a resumed run included.

        Returns:
            ``total``, or fewer steps; at least one more than ``step`` unless all are taken.
        """
        if not self.seconds or step >= total:
            return total
        self._first = step - 1 if self._first is None else self._first
        if self._mark is None:
            if step - self._first >= WARM_UP:
                self._mark = (step, elapsed)
            return total
        timed = step - self._mark[0]
        is_late = elapsed > RESERVE * self.seconds
        if timed < 2 or not (is_late or timed >= FIRST - WARM_UP):
            return total
        rate = (elapsed - self._mark[1]) / timed
        left = (1 - RESERVE) * self.seconds - elapsed
        fitting = step + max(1, int(left / rate)) if rate > 0 else total
        # A small excess is tolerated, so that noise of the clock does not change the schedule again and again.
        return fitting if fitting < total and rate * (total - step) > left + RESERVE * self.seconds else total
