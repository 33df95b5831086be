"""A race of learning rates over the planned run, shortened to growing lengths: who trains next, and what it says.

The race is successive halving (Jamieson & Talwalkar 2016, 1502.07943) on a ladder of learning rates. Each rung is four
times as long as the previous rung, and fewer learning rates take part; the ladder moves to where the last rung was
best.

Whole schedules race, squeezed, and not constant trunks whose running average is evaluated. On eight open cells of
``benchmarks.whole_run`` both find the best peak of a length about equally well. But by validation loss the best peak of
squeezed schedules is a power of the length, with another exponent in each cell (-0.1 to -0.9), and ends at the best
peak of the run. So two lengths foretell a third. The usual exponent, -0.45, is near that of the convex bound (-0.5, see
:func:`~lr_lightning.lr_finder.planned_run.best_scale`). It, the spreads and the lengths were chosen on these cells,
with other seeds than those of the benchmark's rules.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lr_lightning._plotting import new_figure, style_axes
from lr_lightning.lr_finder.planned_run import RATIO, WIDTH, PlannedRun, TrialReading, Trials, next_lr
from lr_lightning.lr_finder.results import LABELS, GridTest, RangeTest, mark_lr, write_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lr_lightning._lightning import Trainer

__all__ = [
    *("FEWEST_STEPS", "FEWEST_UPDATES", "KeptRace", "RacePlan", "RaceTest", "Rung"),
    *("at_peak", "next_trial", "range_steps", "read_race"),
]

log = logging.getLogger(__name__)

_SAME_START = 1e-5  # relative difference of two values before any update; another seed differs by far more
FEWEST_UPDATES = 50
_LONGER = 4  # length of a rung / length of the one before
FEWEST_STEPS = 5  # updates of the first of several rungs
_FIRST, _LATER = 5, 3  # learning rates of the first rung and of the later ones, at least
_MOST_RUNGS = 4
_MOST = 8  # learning rates of the last rung, however much of the budget is left
_MOST_RANGE_STEPS, _FEWEST_RANGE_STEPS, _RANGE_SHARE = 100, 20, 1 / 5
_FASTER = -0.2  # the best peak by validation falls faster with the length than that by training loss
_SPREAD, _DRIFT_SPREAD = 0.25, 0.35  # standard deviations: of a rung's best log lr, and of the drift
_MAY_OVERFIT = 0.5  # the interval reaches further down by this power of (length of the run / of the longest trainings)


def range_steps(budget: int) -> int:
    """Return how many updates of a race's budget its range test takes.

    >>> range_steps(50), range_steps(150), range_steps(5000)
    (20, 30, 100)
    """
    return min(max(int(_RANGE_SHARE * budget), _FEWEST_RANGE_STEPS), _MOST_RANGE_STEPS)


@dataclass(frozen=True)
class Rung:
    """Trainings of one length: their updates, and the fewest learning rates that take part."""

    length: int
    fewest: int


@dataclass(frozen=True)
class RacePlan:
    """The rungs of a race, the shortest first, and the updates that all of them may take together."""

    rungs: tuple[Rung, ...]
    budget: int

    @classmethod
    def of(cls, budget: int, total: int, shortest: int = FEWEST_STEPS) -> "RacePlan":
        """Plan a race of at most ``budget`` updates whose longest trainings have at most ``total``.

        There is room for one more training of the last rung than it needs. The first of several rungs has at least
        ``shortest`` updates.

        >>> RacePlan.of(1400, 3000).rungs
        (Rung(length=17, fewest=5), Rung(length=69, fewest=3), Rung(length=276, fewest=3))
        """
        for count in range(_MOST_RUNGS, 0, -1):
            fewest = [_FIRST] + [_LATER] * (count - 1)
            shares = [_LONGER ** (index + 1 - count) for index in range(count)]
            last = min(budget / (sum(n * share for n, share in zip(fewest, shares, strict=True)) + 1), total)
            if last * shares[0] >= shortest:
                break
        return cls(tuple(Rung(max(1, int(last * share)), n) for share, n in zip(shares, fewest, strict=True)), budget)


def at_peak(factors: Sequence[float]) -> tuple[int, int] | None:
    """Return start and end of the constant peak at the beginning of a schedule, after a warmup at most; None without.

    >>> at_peak([0.5, 1.0, 1.0, 1.0, 0.5]), at_peak([1.0, 0.9, 0.8])
    ((1, 4), None)
    """
    top = max(factors)
    start = factors.index(top)
    end = next((step for step in range(start, len(factors)) if factors[step] != top), len(factors))
    rises = all(one <= two for one, two in pairwise(factors[: start + 1]))
    return (start, end) if rises and end - start > 1 else None


def next_trial(
    plan: RacePlan, scores: Sequence[Mapping[float, float]], first: float, start: float, drift: float
) -> tuple[int, float] | None:
    """Return the rung and the learning rate of the next training; None at the end of the race.

    Args:
        plan: The rungs.
        scores: For each rung so far, learning rate to the value at the training's end, lower is better; nan or inf if
            it diverged.
        first: The learning rate in the middle of the first rung.
        start: The value before any update.
        drift: By how much the logarithm of the best peak is expected to change with the logarithm of the length.
    """
    spent = sum(rung.length * len(done) for rung, done in zip(plan.rungs, scores, strict=False))
    for index, rung in enumerate(plan.rungs):
        done = scores[index] if index < len(scores) else {}
        room = plan.budget - spent - sum(later.length * later.fewest for later in plan.rungs[index + 1 :])
        last = index + 1 == len(plan.rungs)
        fewest = max(rung.fewest, min(len(done) + room // rung.length, _MOST)) if last else rung.fewest
        if index + 1 >= len(scores) and room >= rung.length:
            lr = next_lr(done, first, start, fewest)
            if lr is not None:
                return index, lr
        first = _middle(done, first, start, drift * math.log(_LONGER))
    return None


def _middle(scores: Mapping[float, float], first: float, start: float, moved: float) -> float:
    """Return the learning rate of the ladder that is expected to be the best at the next length."""
    lrs = sorted(scores)
    centre = Trials(lrs, [scores[lr] for lr in lrs], 0.0, 1).centre(start) if lrs else None
    if centre is None:
        return min(lrs, default=first)
    target = first * RATIO ** round((centre + moved - math.log(first)) / math.log(RATIO))
    return next((lr for lr in lrs if math.isclose(lr, target, rel_tol=0.01)), target)


def read_race(rungs: Sequence[Trials], start: float, run: PlannedRun) -> TrialReading:
    """Fit a line to the best log lr of every rung against the log of its length, and read it at the run's length.

    Its slope is drawn towards the usual drift: the less, the more rungs there are. Rungs that lie further from the line
    than usual widen the interval. Like that of :func:`~lr_lightning.lr_finder.planned_run.read_trials`, the interval
    reaches further down than up, since a longer run may overfit.

    The answer is not above what the longest trainings found best: where the line rises, it is their mean over the
    rungs instead. A longer run needs no higher peak; the best one seems to rise where the short trainings had hardly
    begun to learn, as those of a transformer under AdamW. The exception: where even the longest have hardly learned,
    the answer is raised, because a loss that falls late falls at high learning rates
    (:meth:`~lr_lightning.lr_finder.planned_run.Trials.raised`). On 52 cells of ``benchmarks.whole_run``, on which this
    was chosen, the mean regret fell from 0.188 to 0.180.

    Args:
        rungs: The trainings of each length.
        start: The value before any update.
        run: The planned run.

    Example:
        >>> rungs = [Trials([0.1, 0.2, 0.4], [1.0, 0.5, 1.0], 0.0, length) for length in (10, 30)]
        >>> round(read_race(rungs, 2.3, PlannedRun(30, "constant", drift=0.0)).suggestion, 3)
        0.2
    """
    found = [(rung.length, centre) for rung in rungs if (centre := rung.centre(start)) is not None]
    if not found:
        return TrialReading(learned=False)
    # each row: how the answer and the drift enter, what was seen, its standard deviation
    rows = [(1.0, math.log(length / run.steps), centre, _SPREAD) for length, centre in found]
    rows.append((0.0, 1.0, run.drift, _DRIFT_SPREAD))
    weighted = np.array([(one, length, seen) for one, length, seen, _ in rows]) / np.array([[row[3]] for row in rows])
    factors, seen = weighted[:, :2], weighted[:, 2]
    covariance = np.linalg.inv(factors.T @ factors)
    fitted = covariance @ (factors.T @ seen)
    scatter = math.sqrt(float(np.sum((seen - factors @ fitted) ** 2)) / max(len(rows) - 2, 1))
    centres = [centre for _, centre in found]
    middle = min(float(fitted[0]) if fitted[1] <= 0 else sum(centres) / len(centres), centres[-1])
    middle = math.log(rungs[-1].raised(math.exp(middle), start))
    half = WIDTH * max(scatter, 1.0) * math.sqrt(covariance[0, 0])
    below, above = (math.log(RATIO) if is_open else 0.0 for is_open in rungs[-1].open_ends)
    below += _MAY_OVERFIT * math.log(max(run.steps / rungs[-1].length, 1.0))
    above += math.log(10) if rungs[-1].hardly_learned(start) else 0.0
    low, answer, high = (
        float(f"{math.exp(log_lr):.12g}") for log_lr in (middle - half - below, middle, middle + half + above)
    )
    return TrialReading(answer, (low, high))


@dataclass(frozen=True)
class RaceTest(RangeTest):
    """A range test, the race that followed it, and what they say; ``trials`` has the rungs, the shortest first.

    Attributes:
        judged: What the race is judged by: ``"val_loss"``, ``"accuracy"`` or ``"loss"`` (of the training).
        level: Its value before any update.
        keep: Whether the answer is one of the longest trainings, in whose state the run goes on.
    """

    judged: str = "val_loss"
    level: float = math.nan
    keep: bool = False

    @property
    def _sign_and_level(self) -> tuple[float, float]:
        return -1.0 if self.judged == "accuracy" else 1.0, self.level

    def next_trial(self, plan: RacePlan) -> tuple[int, float] | None:
        """Return the rung and the learning rate of the next training; None at the end of the race."""
        (sign, level), drift = self._sign_and_level, _FASTER + (0.0 if self.planned is None else self.planned.drift)
        scores = [dict(zip(rung.lrs, (sign * v for v in rung.mean_scores), strict=True)) for rung in self.trials]
        return next_trial(plan, scores, self.first_trial, sign * level, drift)

    def with_trial(self, rung: int, num_steps: int, lr: float, losses: Sequence[float], final: float) -> "RaceTest":
        """Return this race with one more training, of which it gets the training losses and the metric at the end."""
        found: dict[float, tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]]
        found = {lr: ((tuple(losses),), (final,))}
        for before in self.trials[rung : rung + 1]:
            finals = before.finals or [(math.nan,)] * len(before.lrs)
            found |= dict(zip(before.lrs, zip(before.curves, finals, strict=True), strict=True))
        lrs = tuple(sorted(found))
        ends = None if self.judged == "loss" else tuple(found[each][1] for each in lrs)
        longer = GridTest(lrs, tuple(found[each][0] for each in lrs), num_steps, ends, self.judged, self.epoch)
        return replace(self, trials=(*self.trials[:rung], longer, *self.trials[rung + 1 :]))

    def _read_trials(self, run: PlannedRun) -> TrialReading:
        sign, level = self._sign_and_level
        rungs = [Trials(r.lrs, [sign * value for value in r.mean_scores], r.noise, r.num_steps) for r in self.trials]
        read = read_race(rungs, sign * level, replace(run, drift=run.drift + _FASTER))
        ended = [lr for lr, value in zip(rungs[-1].lrs, rungs[-1].scores, strict=True) if math.isfinite(value)]
        if not self.keep or read.suggestion is None or read.interval is None or not ended:
            return read
        lr = min(ended, key=lambda lr: abs(math.log(lr / (read.suggestion or lr))))
        return TrialReading(lr, (min(read.interval[0], lr), max(read.interval[1], lr)))

    def to_csv(self) -> str:
        """Return CSV with a row for each training: its updates, its lr, its value at the end and its last loss."""
        rows = [
            [str(rung.num_steps), repr(lr), repr(value), repr(runs[0][-1]) if runs[0] else ""]
            for rung in self.trials
            for lr, value, runs in zip(rung.lrs, rung.mean_scores, rung.curves, strict=True)
        ]
        return write_csv(["updates", "lr", self.judged, "last_training_loss"], rows)

    def plot(self, ax: "Axes | None" = None) -> "Figure":
        """Draw how every training ended against its lr, with the answer; without ``ax``, also their training losses.

        Without matplotlib, this is an ImportError.
        """
        figure: Any = new_figure(10, 4.8, dpi=120) if ax is None else ax.figure
        ends, curves = figure.subplots(1, 2) if ax is None else (ax, None)
        import matplotlib
        from matplotlib.colors import LogNorm

        known = [value for rung in self.trials for value in rung.mean_scores if math.isfinite(value)]
        for number, rung in enumerate(self.trials):
            shade = 0.75 * (1 - (number + 1) / len(self.trials))
            label = f"after {rung.num_steps} updates"
            ends.plot(rung.lrs, rung.mean_scores, "o-", color=(shade,) * 3, markersize=4, linewidth=1, label=label)
        mark_lr(ends, self.suggestion, self.interval, "answer")
        ends.set_xscale("log")
        if self.judged != "accuracy" and known:
            room = max(self.level, min(known)) - min(known) or 1.0
            ends.set_ylim(min(known) - 0.1 * room, max(self.level, min(known)) + 0.3 * room)
        style_axes(ends, x="peak learning rate", y=LABELS[self.judged])
        ends.legend(loc="best", frameon=False, fontsize=9)
        if curves is None:
            return figure  # type: ignore[no-any-return]
        lrs = sorted({lr for rung in self.trials for lr in rung.lrs})
        colours, norm = matplotlib.colormaps["cividis"], LogNorm(lrs[0], max(lrs[-1], lrs[0] * RATIO))
        for rung in self.trials:
            for lr, runs in zip(rung.lrs, rung.curves, strict=True):
                curves.plot(range(1, len(runs[0]) + 1), runs[0], color=colours(norm(lr)), linewidth=1)
        low, top = min(self.values, default=0.0), self.start
        low = min([low, *(value for rung in self.trials for runs in rung.curves for value in runs[0])])
        curves.set_ylim(low - 0.05 * (top - low), top + 0.5 * (top - low))
        curves.set_xscale("log")
        style_axes(curves, x="update", y=LABELS["loss"])
        figure.colorbar(matplotlib.cm.ScalarMappable(norm, colours), ax=curves, label="peak learning rate")
        figure.suptitle(
            "LR race: " + "\n".join(self._parts(self.reason or "")), x=0.01, ha="left", fontsize=10, wrap=True
        )
        return figure  # type: ignore[no-any-return]


class KeptRace:
    """The file in which the first process keeps a race that is not over."""

    def __init__(self, path: Path, trainer: "Trainer", say: Callable[[str], None]) -> None:
        self.path, self.trainer, self.say = path, trainer, say

    def load(self, begun: RaceTest) -> RaceTest:
        """Return the race that was interrupted, if it began as this one does, else this one."""
        text = None
        if self.trainer.is_global_zero:
            with suppress(OSError):
                text = self.path.read_text(encoding="utf-8")
        text = self.trainer.strategy.broadcast(text)
        if text is None:
            return begun
        try:
            kept = RaceTest.from_state(json.loads(text))
        except (ValueError, TypeError, KeyError):
            return begun
        one, other = ((race.level, *race.curves[0][:1]) for race in (kept, begun))
        if len(one) != len(other) or not all(map(partial(math.isclose, rel_tol=_SAME_START), one, other)):
            return begun
        done = sum(len(rung.lrs) for rung in kept.trials)
        if self.trainer.is_global_zero:
            self.say(f"LRRace: continues a race that was interrupted after {done} trainings ({self.path}).")
        return kept

    def save(self, race: RaceTest) -> None:
        """Replace the file by one with the race so far, in one step, so that a kill leaves no damaged file."""
        if not self.trainer.is_global_zero:
            return
        try:
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(race.state()), encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError as e:
            log.info("the race is not kept in %s: %s", self.path, e)

    def remove(self) -> None:
        """Remove the file of a race that is over."""
        if self.trainer.is_global_zero:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
