"""What a range test found: its points, what they say, and how that is shown."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lr_lightning.lr_finder.curve import Reading, read_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GridTest", "RangeTest"]


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
        from lr_lightning.lr_finder.plots import draw

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


# --- The textbook's search: each rate of a grid trained for a while from the same start, and which one got
# furthest.

_TAIL = 0.2
"""Share of a training's steps, at its end, whose mean loss is its score: a batch's loss alone is too noisy."""


@dataclass(frozen=True)
class GridTest:
    """Trainings at constant rates from the same start.

    Attributes:
        lrs: The rates, rising.
        curves: Of each rate, and each repeat of it, the training losses of its steps; shorter where it diverged.
        num_steps: Updates of each training.
        finals: Of each rate and repeat, the metric at the end where it is not the training loss; nan where it diverged.
        metric: ``"loss"``, ``"val_loss"`` or ``"accuracy"``.
        epoch: At the start of which it was made.
    """

    lrs: tuple[float, ...]
    curves: tuple[tuple[tuple[float, ...], ...], ...]
    num_steps: int
    finals: tuple[tuple[float, ...], ...] | None = None
    metric: str = "loss"
    epoch: int = 0

    @cached_property
    def scores(self) -> list[list[float]]:
        """Of each rate and repeat, the metric at the end; nan where it diverged.

        For the training loss it is the mean of the last fifth of the steps.
        """
        if self.finals is not None:
            return [list(each) for each in self.finals]
        tail = max(1, round(_TAIL * self.num_steps))
        return [
            [float(np.mean(run[-tail:])) if len(run) == self.num_steps else math.nan for run in runs]
            for runs in self.curves
        ]

    @cached_property
    def losses(self) -> list[float]:
        """Of each rate, the mean of its scores; nan where a repeat diverged."""
        return [float(np.mean(each)) for each in self.scores]

    @cached_property
    def errors(self) -> list[float]:
        """Of each rate, the standard error of its mean score: over repeats, or over the last steps of the only one."""
        tail = max(1, round(_TAIL * self.num_steps))
        found = []
        for runs, each in zip(self.curves, self.scores, strict=True):
            values = each if len(each) > 1 else runs[0][-tail:] if self.finals is None else []
            found.append(float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0)
        return found

    @property
    def start(self) -> float:
        """The training loss of the first batch, the same at all rates: what no learning gives."""
        return float(np.mean([run[0] for runs in self.curves for run in runs if run]))

    @property
    def _best(self) -> int | None:
        sign = -1.0 if self.metric == "accuracy" else 1.0
        known = [(sign * value, index) for index, value in enumerate(self.losses) if math.isfinite(value)]
        return min(known)[1] if known else None

    @property
    def reason(self) -> str | None:
        """Why there is no suggestion."""
        best = self._best
        if best is None:
            return "every rate of the grid diverged"
        if best == 0:
            return f"the lowest rate of the grid, {self.lrs[0]:g}, is the best of it: a lower one may be better"
        if best == len(self.lrs) - 1:
            return f"the highest rate of the grid, {self.lrs[-1]:g}, is the best of it: a higher one may be better"
        if self.metric == "loss" and self.losses[best] + 2 * self.errors[best] >= self.start:
            return "no rate of the grid lowered the loss beyond its noise"
        return None

    @property
    def advice(self) -> str | None:
        """What to try where there is no suggestion."""
        best = self._best
        if self.reason is None:
            return None
        if best is None or best == 0:
            return "Lower min_lr."
        return "Raise max_lr." if best == len(self.lrs) - 1 else "Give more num_steps."

    @property
    def suggestion(self) -> float | None:
        """The best rate of the grid; None where it cannot be told (see :attr:`reason`)."""
        best = self._best
        return None if best is None or self.reason is not None else self.lrs[best]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The lowest and highest rate around the best that are within two standard errors of it, without a gap."""
        best = self._best
        if best is None or self.suggestion is None:
            return None
        low = high = best
        while low > 0 and self._as_good(low - 1, best):
            low -= 1
        while high + 1 < len(self.lrs) and self._as_good(high + 1, best):
            high += 1
        return self.lrs[low], self.lrs[high]

    def _as_good(self, index: int, best: int) -> bool:
        # not the other's error: that of a training which jumps about would excuse any loss
        return abs(self.losses[index] - self.losses[best]) <= 2 * self.errors[best]  # False for nan

    @property
    def base_lr(self) -> float | None:
        """The lower bound of a cyclical schedule: a quarter of the upper one (Smith 2017, section 3.3)."""
        return None if self.max_lr is None else self.max_lr / 4

    @property
    def max_lr(self) -> float | None:
        """The upper bound of a cyclical schedule: the highest rate that is as good as the best."""
        return None if self.interval is None else self.interval[1]

    def describe(self) -> str:
        """The result in one line."""
        if self.suggestion is None:
            return f"no suggestion: {self.reason}. {self.advice}"
        low, high = self.interval or (self.suggestion, self.suggestion)
        line = f"lr = {self.suggestion:.3g} is the best of {len(self.lrs)} rates after {self.num_steps} steps"
        return line if low == high else f"{line} ({low:.2g} to {high:.2g} are as good within the noise)"

    def to_csv(self) -> str:
        """Of each rate: mean score, standard error and every repeat's score."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["lr", self.metric, "standard_error", *(f"{self.metric}_{i}" for i in range(len(self.scores[0])))]
        )
        for lr, mean, error, each in zip(self.lrs, self.losses, self.errors, self.scores, strict=True):
            writer.writerow([repr(lr), repr(mean), repr(error), *map(repr, each)])
        return text.getvalue()

    def plot(self, ax: "Axes | None" = None) -> "Figure":
        """Draw the final value against the rate, and the training losses of every rate.

        Args:
            ax: Where to draw the former alone; by default a new figure with both.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from lr_lightning.lr_finder.plots import draw_grid

        return draw_grid(self, ax)

    def state(self) -> dict[str, Any]:
        """Plain values, from which :meth:`from_state` makes the same result."""
        return {
            "lrs": list(self.lrs),
            "curves": [[list(run) for run in runs] for runs in self.curves],
            "num_steps": self.num_steps,
            "finals": None if self.finals is None else [list(each) for each in self.finals],
            "metric": self.metric,
            "epoch": self.epoch,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The result that gave this :meth:`state`."""
        finals = state["finals"]
        return cls(
            tuple(state["lrs"]),
            tuple(tuple(tuple(run) for run in runs) for runs in state["curves"]),
            state["num_steps"],
            None if finals is None else tuple(map(tuple, finals)),
            state["metric"],
            state["epoch"],
        )
