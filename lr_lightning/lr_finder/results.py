"""What a finder found: the result of a range test and of a grid, as numbers, as text, as CSV and as a figure."""

import csv
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lr_lightning._plotting import BLACK, BLUE, GREEN, GREY, ORANGE, axes_of, new_figure, style_axes
from lr_lightning.lr_finder.curve import HEAD, Abstention, Cause, Reading, read_curve
from lr_lightning.lr_finder.planned_run import PlannedRun, TrialReading, Trials, first_lr, read_trials

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LABELS", "GridTest", "RangeTest", "mark_lr", "write_csv"]

LABELS = {"loss": "training loss", "val_loss": "validation loss", "accuracy": "validation accuracy"}
_RISES = (Cause.RISES_AT_ONCE, Cause.WITHIN_NOISE, Cause.TOO_NOISY)  # no suggestion, but the loss rises somewhere
_TAIL = 0.2  # share of a training's last steps whose mean loss is its score, as the loss of one batch is too noisy


class _Result(ABC):
    """The parts that both results share; a subclass is a dataclass of tuples and plain values."""

    @property
    @abstractmethod
    def abstention(self) -> Abstention | None:
        """Why there is no suggestion; None if there is one."""

    @property
    def reason(self) -> str | None:
        """Why there is no suggestion, in words."""
        return None if self.abstention is None else self.abstention.reason

    @property
    def advice(self) -> str | None:
        """What to try if there is no suggestion, in words."""
        return None if self.abstention is None else self.abstention.advice

    def state(self) -> dict[str, Any]:
        """Return lists and plain values, for :meth:`from_state`."""
        return {each.name: _nested(getattr(self, each.name), list) for each in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Make the result whose :meth:`state` this is."""
        return cls(**{name: _nested(value, tuple) for name, value in state.items()})


@dataclass(frozen=True)
class RangeTest(_Result):
    """The points of a range test, of the short trials that followed it, and what they say.

    Attributes:
        grid: The planned learning rates, rising.
        curves: For each repeat, the values recorded at ``grid[0]``, ``grid[1]``, ...; shorter if it ended early.
            Value k was recorded before the update with ``grid[k]``.
        metric: What was recorded: ``"loss"``, ``"val_loss"`` or ``"accuracy"``.
        mode: ``"exponential"`` (a geometric grid) or ``"linear"``.
        epoch: The epoch at whose start the test was made.
        planned: The run that the suggestion is for; None if nothing but a range was tested.
        trials: Short trainings on the schedule of that run, of two lengths: a search, and what is read; () if none.
    """

    grid: tuple[float, ...]
    curves: tuple[tuple[float, ...], ...]
    metric: str = "loss"
    mode: str = "exponential"
    epoch: int = 0
    seed: int = field(default=0, repr=False)
    planned: PlannedRun | None = None
    trials: "tuple[GridTest, ...]" = ()

    def state(self) -> dict[str, Any]:
        """Return lists and plain values, for :meth:`from_state`."""
        plain, planned = super().state(), self.planned and asdict(self.planned)
        curves = plain.pop("curves")
        del plain["planned"]  # checkpoints keep the names of earlier versions
        return {**plain, "runs": curves, "run": planned, "trials": [trials.state() for trials in self.trials]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Make the result whose :meth:`state` this is."""
        own = {name: value for name, value in state.items() if name not in ("runs", "run", "trials")}
        found, run = super().from_state({**own, "curves": state["runs"]}), state.get("run")
        trials = tuple(map(GridTest.from_state, state.get("trials", ())))
        return replace(found, planned=run and PlannedRun(**run), trials=trials)

    @cached_property
    def reading(self) -> Reading:
        """The reading of the curve."""
        return read_curve(self.grid, self.curves, higher_is_better=self.metric == "accuracy", seed=self.seed)

    @property
    def first_trial(self) -> float:
        """Where trials begin: the range test's own suggestion, else a tenth of the lr at which its curve rises."""
        smoothed = [self._sign * value for value in self.reading.smoothed]
        return first_lr(self.grid, smoothed, self.reading.suggestion)

    @property
    def start(self) -> float:
        """The level of the metric before any learning."""
        return float(np.median(self.values[:HEAD])) if self.values else math.nan

    @property
    def _sign(self) -> float:
        return -1.0 if self.metric == "accuracy" else 1.0

    @cached_property
    def _answer(self) -> TrialReading:
        """The answer of the range test and the trials together."""
        reading = self.reading
        if not self.trials or self.planned is None:
            return TrialReading(reading.suggestion, reading.interval)
        last, read = self.trials[-1], self._read_trials(self.planned)
        if read.suggestion is not None or not any(map(math.isfinite, last.mean_scores)):
            return read
        rises = reading.abstention is None or reading.abstention.cause in _RISES
        sign, level = self._sign_and_level
        lr = self._last_trials.raised(self.first_trial, sign * level)
        return TrialReading(lr, (lr / 10, lr * 10), learned=False) if rises else read

    @property
    def _sign_and_level(self) -> tuple[float, float]:
        """By what a trial's scores are multiplied, so that lower is better, and their level before any learning."""
        return self._sign, self.start

    @property
    def _last_trials(self) -> Trials:
        last, sign = self.trials[-1], self._sign_and_level[0]
        return Trials(last.lrs, [sign * value for value in last.mean_scores], last.noise, last.num_steps)

    def _read_trials(self, run: PlannedRun) -> TrialReading:
        return read_trials(self._last_trials, self._sign * self.start, run, self.reading.rules.get("minimum/10"))

    @property
    def lrs(self) -> list[float]:
        """The learning rates of the mean :attr:`values`."""
        return list(self.grid[: len(self.values)])

    @cached_property
    def values(self) -> list[float]:
        """The mean of the repeats at each step that all of them reached, in the units of ``metric``."""
        return [float(np.mean(values)) for values in zip(*self.curves, strict=False)]

    @property
    def smoothed(self) -> list[float]:
        """The smoothed curve, in the units of ``metric``."""
        return [float(value) for value in self.reading.smoothed]

    @property
    def suggestion(self) -> float | None:
        """The peak learning rate to train with; None if nothing supports one (see :attr:`abstention`)."""
        return self._answer.suggestion

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the best peak lies in nine of ten runs; without trials, where a fresh range test may put its own."""
        return self._answer.interval

    @property
    def cycle_base_lr(self) -> float | None:
        """The lower bound of a cyclical schedule (Smith 2017)."""
        return self.reading.cycle_base_lr

    @property
    def cycle_max_lr(self) -> float | None:
        """The upper bound of a cyclical schedule (Smith 2017)."""
        return self.reading.cycle_max_lr

    @property
    def rules(self) -> dict[str, float | None]:
        """The suggestions of other rules for the same points."""
        return dict(self.reading.rules)

    @property
    def abstention(self) -> Abstention | None:
        """Why there is no suggestion; None if there is one."""
        if not self.trials:
            return self.reading.abstention
        if self.suggestion is not None:
            return None
        diverged = not any(map(math.isfinite, self.trials[-1].mean_scores))
        return Abstention(Cause.ALL_DIVERGED if diverged else Cause.NO_PROGRESS)

    @property
    def if_constant(self) -> float | None:
        """The suggestion for a run with a constant lr; None if the planned run is constant, or not known."""
        if self.suggestion is None or self.planned is None or self.planned.is_constant:
            return None
        return self.suggestion * self.planned.constant

    def wider(self, factor: float = 10.0) -> tuple[float, float] | None:
        """Return the first and last learning rate of a second test, or None if another range would not help.

        The end of the range that hides the answer is moved by ``factor``.

        Example:
            >>> RangeTest((1e-3, 1e-2, 1e-1), ((1.0, 1.0, 1.0),)).wider()
            (0.0001, 0.1)
        """
        low, high = self.grid[0], self.grid[-1]
        widen = self.abstention and self.abstention.cause.widen
        return {"min_lr": (low / factor, high), "max_lr": (low, high * factor)}.get(widen or "")

    def describe(self) -> str:
        """Say the result in one line."""
        return "; ".join(self._parts(str(self.abstention or "")))

    def _parts(self, abstention: str) -> list[str]:
        """Say the suggestion, or why there is none, and the bounds of a cyclical schedule if they are known."""
        if self.suggestion is None:
            return [f"no suggestion: {abstention}".rstrip()]
        low, high = (f"{end:.2g}" for end in self.interval or (self.suggestion, self.suggestion))
        interval = f" (plausible: {low} to {high})" if low != high else ""
        parts = [f"suggests lr = {self.suggestion:.3g}{interval}"]
        if self.planned is not None:
            parts[0] += f" for {self.planned.describe()}"
            parts += [] if self.if_constant is None else [f"{self.if_constant:.2g} if constant"]
            if not self._answer.learned:
                length = self.trials[-1].num_steps
                parts.append(f"no trial of {length} steps learned, so this is a guess, below where the loss rises")
        elif (base := self.cycle_base_lr) is not None and (top := self.cycle_max_lr) is not None:
            parts.append(f"for a cyclical schedule base_lr = {base:.3g}, max_lr = {top:.3g}")
        return parts

    def to_csv(self) -> str:
        """Return the points as CSV: ``lr``, the mean, the smoothed mean, and every repeat."""
        columns = (self.grid, self.values, self.smoothed, *self.curves)
        rows = [[repr(column[k]) if k < len(column) else "" for column in columns] for k in range(len(self.values))]
        repeats = [f"{self.metric}_{i}" for i in range(len(self.curves))]
        return write_csv(["lr", self.metric, "smoothed", *repeats], rows)

    def plot(self, ax: "Axes | None" = None) -> "Figure":
        """Draw the points, the smoothed curve, the suggestion with its interval, and the bounds of a cyclical schedule.

        Points that were capped before smoothing are drawn a second time, at the cap: the curve rises towards those. The
        default is a new figure. Without matplotlib, this is an ImportError.
        """
        figure, axes = axes_of(ax)
        for i, curve in enumerate(self.curves):
            label = None if i else "recorded" if len(self.curves) == 1 else "each repeat"
            axes.plot(self.grid[: len(curve)], curve, ".", color=GREY, markersize=4, alpha=0.8, label=label)
        if capped := self._capped():
            axes.plot(*zip(*capped, strict=True), "o", color=BLUE, mfc="none", markersize=4, label="capped")
        if len(self.smoothed):
            axes.plot(self.lrs[: len(self.smoothed)], self.smoothed, color=BLUE, linewidth=2, label="smoothed")
        if self.mode == "exponential":
            axes.set_xscale("log")
        axes.set_xlim(self.grid[0], self.grid[-1])
        self._limit_losses(axes)
        if self.cycle_base_lr is not None and self.cycle_max_lr is not None:
            for value, name, line in ((self.cycle_base_lr, "base_lr", ":"), (self.cycle_max_lr, "max_lr", "--")):
                axes.axvline(value, color=GREEN, linestyle=line, linewidth=1.5, label=f"{name} {value:.3g}")
        mark_lr(axes, self.suggestion, self.interval, "suggestion")
        for trials, shape in zip(self.trials, ("s:", "D-"), strict=False):
            label = f"ends of trials of {trials.num_steps} steps"
            axes.plot(trials.lrs, trials.mean_scores, shape, color=BLACK, markersize=4, linewidth=1, label=label)
        style_axes(axes, x="learning rate", y=LABELS[self.metric])
        when = f" at epoch {self.epoch}" if self.epoch else ""
        text = "\n".join(self._parts(self.reason or ""))
        axes.set_title(f"Range test{when}: {text}", loc="left", fontsize=10, wrap=True)
        if ax is None:
            figure.legend(loc="outside lower center", ncols=6, columnspacing=1.2, frameon=False, fontsize=9)
        else:
            axes.legend(loc="best", frameon=False, fontsize=9)
        return figure  # type: ignore[no-any-return]

    def _capped(self) -> list[tuple[float, float]]:
        """Return the learning rate and the cap of each point that was cut off before smoothing."""
        points = zip(self.lrs, self.values, map(float, self.reading.capped), strict=False)
        return [(lr, cap) for lr, loss, cap in points if not math.isclose(loss, cap, rel_tol=1e-9)]

    def _limit_losses(self, axes: Any) -> None:
        """End the axis a little above the start of the test and the cap, or diverged losses would flatten the rest."""
        points = [value for curve in self.curves for value in curve]
        if self.metric == "accuracy" or not points:
            return
        low, start = min(points), max(max(curve[: len(curve) // 4 or 1]) for curve in self.curves if curve)
        room = (start - low) or abs(start) or 1.0
        axes.set_ylim(low - 0.05 * room, max([start + 0.35 * room, *(cap + 0.1 * room for _, cap in self._capped())]))


@dataclass(frozen=True)
class GridTest(_Result):
    """Trainings with different learning rates, constant ones or peaks of one schedule, from the same start.

    Attributes:
        lrs: The learning rates, rising.
        curves: For each learning rate and repeat, the training loss of each step; shorter if it diverged.
        num_steps: Updates of each training.
        finals: For each learning rate and repeat, the metric at the end, nan if it diverged; None if the metric is the
            training loss.
        metric: ``"loss"``, ``"val_loss"`` or ``"accuracy"``.
        epoch: The epoch at whose start the test was made.
    """

    lrs: tuple[float, ...]
    curves: tuple[tuple[tuple[float, ...], ...], ...]
    num_steps: int
    finals: tuple[tuple[float, ...], ...] | None = None
    metric: str = "loss"
    epoch: int = 0

    @property
    def _tail(self) -> int:
        return max(1, round(_TAIL * self.num_steps))

    @cached_property
    def scores(self) -> list[list[float]]:
        """For each learning rate and repeat, the metric at the end (a loss: of the last fifth); nan if it diverged."""
        if self.finals is not None:
            return [list(each) for each in self.finals]
        return [
            [float(np.mean(run[-self._tail :])) if len(run) == self.num_steps else math.nan for run in runs]
            for runs in self.curves
        ]

    @cached_property
    def mean_scores(self) -> list[float]:
        """For each learning rate, the mean of its scores; nan if a repeat diverged."""
        return [float(np.mean(each)) for each in self.scores]

    @cached_property
    def errors(self) -> list[float]:
        """For each learning rate, the standard error of its score: over repeats, or over the last steps of one."""
        found = []
        for runs, each in zip(self.curves, self.scores, strict=True):
            values = each if len(each) > 1 else runs[0][-self._tail :] if self.finals is None else []
            found.append(float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0)
        return found

    @property
    def noise(self) -> float:
        """The median standard error of the scores of trainings that did not diverge."""
        known = [e for e, v in zip(self.errors, self.mean_scores, strict=True) if math.isfinite(v)]
        return float(np.median(known)) if known else 0.0

    @property
    def start(self) -> float:
        """The training loss of the first batch, the same at all learning rates: the loss without learning."""
        return float(np.mean([run[0] for runs in self.curves for run in runs if run]))

    @property
    def _best(self) -> int | None:
        sign = -1.0 if self.metric == "accuracy" else 1.0
        known = [(sign * value, index) for index, value in enumerate(self.mean_scores) if math.isfinite(value)]
        return min(known)[1] if known else None

    @property
    def abstention(self) -> Abstention | None:
        """Why there is no suggestion; None if there is one."""
        best = self._best
        if best is None:
            return Abstention(Cause.ALL_DIVERGED)
        if best == 0:
            return Abstention(Cause.LOWEST_IS_BEST, self.lrs[0])
        if best == len(self.lrs) - 1:
            return Abstention(Cause.HIGHEST_IS_BEST, self.lrs[-1])
        if self.metric == "loss" and self.mean_scores[best] + 2 * self.errors[best] >= self.start:
            return Abstention(Cause.NO_PROGRESS)
        return None

    @property
    def suggestion(self) -> float | None:
        """The best learning rate of the grid; None if it cannot be known (see :attr:`abstention`)."""
        best = self._best
        return None if best is None or self.abstention is not None else self.lrs[best]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The range of lrs around the best that are all within two standard errors of it."""
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
        # The best one's error only: the error of an unstable training would excuse any loss. False for nan.
        return abs(self.mean_scores[index] - self.mean_scores[best]) <= 2 * self.errors[best]

    @property
    def cycle_base_lr(self) -> float | None:
        """The lower bound of a cyclical schedule: a quarter of the upper one (Smith 2017, section 3.3)."""
        return None if self.cycle_max_lr is None else self.cycle_max_lr / 4

    @property
    def cycle_max_lr(self) -> float | None:
        """The upper bound of a cyclical schedule: the highest learning rate that is as good as the best."""
        return None if self.interval is None else self.interval[1]

    def describe(self) -> str:
        """Say the result in one line."""
        if self.suggestion is None or self.interval is None:
            return f"no suggestion: {self.abstention}"
        low, high = self.interval
        line = f"lr = {self.suggestion:.3g} is the best of {len(self.lrs)} after {self.num_steps} steps"
        return line if low == high else f"{line} ({low:.2g} to {high:.2g} are as good within the noise)"

    def to_csv(self) -> str:
        """Return CSV with a row for each learning rate: mean score, standard error, and the score of every repeat."""
        rows = [
            [repr(lr), repr(mean), repr(error), *map(repr, each)]
            for lr, mean, error, each in zip(self.lrs, self.mean_scores, self.errors, self.scores, strict=True)
        ]
        repeats = [f"{self.metric}_{i}" for i in range(len(self.scores[0]))]
        return write_csv(["lr", self.metric, "standard_error", *repeats], rows)

    def plot(self, ax: "Axes | None" = None) -> "Figure":
        """Draw the final value against the learning rate; without ``ax``, in a new figure, also the training losses.

        Without matplotlib, this is an ImportError.
        """
        figure: Any = new_figure(8, 4.8, dpi=120) if ax is None else ax.figure
        panels: Any = figure.subplots(1, 2) if ax is None else (ax, None)
        finals, curves = panels
        means, errors = self.mean_scores, [2 * error for error in self.errors]
        label = "± 2 standard errors"
        finals.errorbar(self.lrs, means, errors, fmt="o-", label=label, color=BLUE, markersize=4, capsize=2)
        gone = [lr for lr, mean in zip(self.lrs, means, strict=True) if math.isnan(mean)]
        finals.plot(gone, [1.0] * len(gone), "x", color=BLACK, transform=finals.get_xaxis_transform(), clip_on=False)
        mark_lr(finals, self.suggestion, self.interval, "best")
        if self.metric != "accuracy":
            low = min((mean for mean in means if not math.isnan(mean)), default=0.0)
            room = max(self.start, low) - low or 1.0
            finals.set_ylim(low - 0.1 * room, max(self.start, low) + 0.5 * room)  # diverged losses lie outside
        finals.set_xscale("log")
        x = "learning rate" + (" (x: diverged)" if gone else "")
        style_axes(finals, x=x, y=f"{LABELS[self.metric]} after {self.num_steps} steps")
        finals.legend(loc="best", frameon=False, fontsize=9)
        if curves is not None:
            self._draw_curves(figure, curves)
            figure.suptitle(f"LR grid: {self.describe()}", x=0.01, ha="left", fontsize=10, wrap=True)
        return figure  # type: ignore[no-any-return]

    def _draw_curves(self, figure: Any, axes: Any) -> None:
        """Draw the training loss at every learning rate, coloured from dark (low) to bright (high)."""
        import matplotlib
        from matplotlib.colors import LogNorm

        colours = matplotlib.colormaps["cividis"]
        norm = LogNorm(self.lrs[0], self.lrs[-1])
        for lr, runs in zip(self.lrs, self.curves, strict=True):
            axes.plot(runs[0], color=colours(norm(lr)), linewidth=1)
        axes.set_ylim(min(min(run) for runs in self.curves for run in runs if run), 1.5 * self.start)
        style_axes(axes, x="step", y="training loss")
        figure.colorbar(matplotlib.cm.ScalarMappable(norm, colours), ax=axes, label="learning rate")


def write_csv(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a header and rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def mark_lr(axes: Any, lr: float | None, interval: tuple[float, float] | None, name: str) -> None:
    """Mark the suggested learning rate and its interval."""
    if lr is None:
        return
    if interval is not None:
        axes.axvspan(*interval, color=ORANGE, alpha=0.15, linewidth=0)
    axes.axvline(lr, color=ORANGE, linewidth=2, label=f"{name} {lr:.3g}")


def _nested(value: Any, kind: type[list[Any]] | type[tuple[Any, ...]]) -> Any:
    return kind(_nested(entry, kind) for entry in value) if isinstance(value, list | tuple) else value
