"""Metric rows on their way to a file: checked, cleaned, and without those that are stored already."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lr_lightning.tracking.keys import clean_key
from lr_lightning.tracking.wal import History, Metric

log = logging.getLogger(__name__)

SUMMARY = "summary/"
_FLUSH_ROWS = 2000
_FLUSH_SECONDS = 5.0


class RowBuffer:
    """Collects metric rows in memory.

    Attributes:
        nonfinite: How often each metric was nan or infinite. Such values are left out: one of them wrecks a chart.
        on_nonfinite: Called with key, value and step of each of them, if set.
    """

    def __init__(self) -> None:
        self.nonfinite: dict[str, int] = {}
        self.on_nonfinite: Callable[[str, float, int], None] | None = None
        self._rows: list[tuple[str, float, int, int]] = []
        self._oldest = 0.0
        self._names: dict[str, str] = {}
        self._warned: set[str] = set()
        self._floor: dict[str, int] = {}
        self._reserved: set[str] = set()
        self._last_values: dict[str, float] = {}

    def resume(self, history: History) -> None:
        """Leave out from now on what ``history`` has: a resumed run repeats the steps after its checkpoint."""
        self._floor = {k: v for k, v in history.last_steps.items() if not k.startswith(SUMMARY)}
        self._last_values = dict(history.last_values)

    def reserve(self, keys: Iterable[str]) -> None:
        """Take these names only with times of their own, so that a value logged in both ways is stored once."""
        self._reserved.update(keys)

    def add(self, key: str, value: Any, step: int, at: int) -> bool:
        """Take one row.

        Args:
            key: Name of the metric; what a store would refuse is replaced, with one warning.
            value: A number; anything else is left out, with one warning a key.
            step: The step.
            at: Milliseconds since 1970.

        Returns:
            Whether the row was kept.
        """
        name = self._names.get(key)
        if name is None:
            name = self._learn(key)
        if step <= self._floor.get(name, -1):
            return False
        try:
            number = float(value)
        except (TypeError, ValueError):
            if name not in self._warned:
                self._warned.add(name)
                log.warning("metric %r is no number (%r) and is left out", key, value)
            return False
        if not math.isfinite(number):
            self._count_nonfinite(name, number, step)
            return False
        if not self._rows:
            self._oldest = time.monotonic()
        self._rows.append((name, number, step, at))
        return True

    def add_metrics(self, metrics: Mapping[str, Any], step: int, at: int) -> None:
        """Take metrics of one step; Lightning adds ``epoch`` to each call, which is kept only where it changes."""
        for key, value in metrics.items():
            if key == "epoch":
                if self._last_values.get(key) == value:
                    continue
                self._last_values[key] = float(value)
            if key in self._reserved:
                if key not in self._warned:
                    self._warned.add(key)
                    log.warning(
                        "metric %r is recorded at every step already: the one that is logged besides is left out", key
                    )
                continue
            self.add(key, value, step, at)

    def add_summary(self, values: Mapping[str, Any], at: int) -> None:
        """Take single values, at step 0; one that has not changed is not stored again."""
        for name, value in values.items():
            key = name if name.startswith(SUMMARY) else f"{SUMMARY}{name}"
            if self._last_values.get(key) != value and self.add(key, value, 0, at):
                self._last_values[key] = float(value)

    def is_due(self) -> bool:
        """Whether the rows are many or old enough to be written."""
        return bool(self._rows) and (len(self._rows) > _FLUSH_ROWS or time.monotonic() - self._oldest > _FLUSH_SECONDS)

    def rows(self) -> list[Metric]:
        """Give the rows kept so far."""
        return [Metric(*row) for row in self._rows]

    def clear(self) -> None:
        """Forget the rows, once they are written."""
        self._rows = []

    def _learn(self, key: str) -> str:
        name = self._names[key] = clean_key(key)
        if name != key:
            log.warning("metric %r is stored as %r, since stores do not take that name", key, name)
        return name

    def _count_nonfinite(self, key: str, value: float, step: int) -> None:
        if key not in self.nonfinite:
            log.warning("metric %r is %s at step %d: such values are not stored", key, value, step)
        self.nonfinite[key] = self.nonfinite.get(key, 0) + 1
        if self.on_nonfinite is not None:
            self.on_nonfinite(key, value, step)
