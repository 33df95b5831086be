"""The time of a run's records."""

import time


class RunClock:
    """Gives times that never go back within a run, though the machine's clock does, or another machine goes on with it.

    Of a metric's values at one step MLflow shows the one with the latest time, and a run that ends before it began has
    a negative duration.
    """

    def __init__(self) -> None:
        self._last = 0

    def go_on_from(self, last: int) -> None:
        """Give only times later than ``last``, in milliseconds since 1970."""
        self._last = max(self._last, last + 1)

    def now(self) -> int:
        """The time in milliseconds since 1970; a millisecond later than the last one where the clock was set back."""
        now = int(time.time() * 1000)
        self._last = now if now >= self._last else self._last + 1
        return self._last
