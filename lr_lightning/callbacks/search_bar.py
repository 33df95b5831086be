"""How far a search for a rate has come: a bar on a terminal, and a line now and then where there is none."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tqdm.auto import tqdm

__all__ = ["SearchBar"]

_SHARE = 0.1  # of the whole, at least, between two lines
_SECONDS = 30.0  # and as many


class SearchBar:
    """tqdm's bar, or lines in its place.

    Args:
        what: Is being done.
        total: How many units it takes.
        unit: The name of one.
        drawn: Whether to draw the bar, on a terminal.
        say: Gets the lines where no bar is drawn; None for none.
    """

    def __init__(self, what: str, total: int, unit: str, *, drawn: bool, say: Callable[[str], None] | None) -> None:
        self.what, self.total, self.unit, self.say = what, total, unit, say
        self.n = 0
        # None: draw it only where there is a terminal
        self._bar = tqdm(total=total, desc=what, unit=unit, leave=False, disable=None if drawn else True)
        self._began = self._said_at = time.monotonic()
        self._said = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.close()

    def extend(self, count: int) -> None:
        """Take as many units more."""
        self.total += count
        self._bar.total = self.total

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.n += count
        self._bar.update(count)
        if self.say is None or not self._bar.disable or not self._said < self.n < self.total:
            return
        now = time.monotonic()
        if self.n - self._said >= _SHARE * self.total and now - self._said_at >= _SECONDS:
            self._said, self._said_at = self.n, now
            seconds = now - self._began
            left = seconds / self.n * (self.total - self.n)
            self.say(f"{self.what}: {self.n}/{self.total} {self.unit}s  {seconds:.0f} s, {left:.0f} s left")
