"""What a range test found: its points, what they say, and how that is shown."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lr_lightning.range_test.curve import Reading, read_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["RangeTest"]


@dataclass(frozen=True)
class RangeTest:
    """The points of a range test, and what they say.

    Attributes:
        grid: The rates that were to be tested, rising.
        runs: Of each repeat, the values recorded at ``grid[0]``, ``grid[1]``, ...; shorter where it ended early.
        metric: What was recorded: ``"loss"``, ``"val_loss"`` or ``"accuracy"``. Value k was recorded before the update
            with ``grid[k]``.
        mode: ``"exponential"`` (a geometric grid) or ``"linear"``.
        epoch: At the start of which it was made.
    """

    grid: tuple[float, ...]
    runs: tuple[tuple[float, ...], ...]
    metric: str = "loss"
    mode: str = "exponential"
    epoch: int = 0
    seed: int = field(default=0, repr=False)

    @cached_property
    def reading(self) -> Reading:
        """What the points say."""
        return read_curve(self.grid, self.runs, higher_is_better=self.metric == "accuracy", seed=self.seed)

    @property
    def lrs(self) -> list[float]:
        """The rates of :attr:`losses`."""
        return list(self.grid[: len(self.losses)])

    @cached_property
    def losses(self) -> list[float]:
        """The values recorded, in the units of ``metric``: the mean of the repeats, as far as all of them got."""
        return [float(np.mean(values)) for values in zip(*self.runs, strict=False)]

    @property
    def smoothed(self) -> list[float]:
        """The smoothed curve, in the units of ``metric``."""
        return [float(value) for value in self.reading.smoothed]

    @property
    def suggestion(self) -> float | None:
        """The peak rate to train with; None where the curve does not support one (see :attr:`reason`)."""
        return self.reading.suggestion

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the suggestion may lie, given the noise of the curve."""
        return self.reading.interval

    @property
    def base_lr(self) -> float | None:
        """The lower bound of a cyclical schedule (Smith 2017)."""
        return self.reading.base_lr

    @property
    def max_lr(self) -> float | None:
        """The upper bound of a cyclical schedule (Smith 2017)."""
        return self.reading.max_lr

    @property
    def rules(self) -> dict[str, float | None]:
        """The answers of other rules to the same points."""
        return dict(self.reading.rules)

    @property
    def reason(self) -> str | None:
        """Why there is no suggestion."""
        return self.reading.reason

    @property
    def advice(self) -> str | None:
        """What to try where there is no suggestion."""
        return self.reading.advice

    def wider(self, factor: float = 10.0) -> tuple[float, float] | None:
        """The range to test where the advice is another range: its first and last rate; None where it is not.

        Args:
            factor: How much further the end that is in the way is moved.

        Example:
            >>> RangeTest((1e-3, 1e-2, 1e-1), ((1.0, 1.0, 1.0),)).wider()
            (0.0001, 0.1)
        """
        advice = self.advice or ""
        if advice.startswith("Raise max_lr"):
            return self.grid[0], self.grid[-1] * factor
        if advice.startswith("Lower min_lr"):
            return self.grid[0] / factor, self.grid[-1]
        return None

    def describe(self) -> str:
        """The result in one line."""
        if self.suggestion is None:
            return f"no suggestion: {_sentence(self.reason)} {_sentence(self.advice)}".strip()
        line = f"suggests lr = {self.suggestion:.3g}"
        if self.interval is not None:
            line += f" (plausible: {self.interval[0]:.2g} to {self.interval[1]:.2g})"
        if self.base_lr is not None and self.max_lr is not None:
            line += f"; for a cyclical schedule base_lr = {self.base_lr:.3g}, max_lr = {self.max_lr:.3g}"
        return line

    def to_csv(self) -> str:
        """The points as CSV: ``lr``, the mean, the smoothed mean, and every repeat."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        repeats = [f"{self.metric}_{i}" for i in range(len(self.runs))]
        writer.writerow(["lr", self.metric, "smoothed", *repeats])
        smoothed = self.smoothed
        for k, (lr, value) in enumerate(zip(self.lrs, self.losses, strict=True)):
            each = [repr(run[k]) if k < len(run) else "" for run in self.runs]
            writer.writerow([repr(lr), repr(value), repr(smoothed[k]) if k < len(smoothed) else "", *each])
        return text.getvalue()

    def plot(self, ax: "Axes | None" = None) -> "Figure":
        """Draw the curve, the suggestion with its interval, and the bounds of a cyclical schedule.

        Args:
            ax: Where to draw; a new figure by default.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from lr_lightning.range_test.figure import draw

        return draw(self, ax)

    def state(self) -> dict[str, Any]:
        """Plain values, from which :meth:`from_state` makes the same result."""
        return {
            "grid": list(self.grid),
            "runs": [list(run) for run in self.runs],
            "metric": self.metric,
            "mode": self.mode,
            "epoch": self.epoch,
            "seed": self.seed,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The result that gave this :meth:`state`."""
        runs: Sequence[Sequence[float]] = state["runs"]
        return cls(**{**state, "grid": tuple(state["grid"]), "runs": tuple(tuple(run) for run in runs)})


def _sentence(text: str | None) -> str:
    return "" if not text else text[0].upper() + text[1:].rstrip(".") + "."
