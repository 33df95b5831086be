"""What a step is in epochs, examples, seconds and shares of the budget of its run."""

import math

import numpy as np
from numpy.typing import NDArray

from lr_lightning.reports import names
from lr_lightning.tracking.runs import Curve, Run

AXES = {
    "step": "step",
    "epochs": "epochs",
    "examples": "examples seen",
    "seconds": "seconds since the first step",
    "fraction": "share of the budget",
}
"""Name of an axis to its title."""

Floats = NDArray[np.float64]


class RunAxes:
    """Converts the steps of one run.

    Args:
        run: The run, with its curves.
        curves: Its curves by this project's names.
        finished: Whether it has come to its end, so that what it did is its whole budget.
    """

    def __init__(self, run: Run, curves: dict[str, Curve], finished: bool) -> None:
        dense = [curves[key] for key in (names.TRAIN_LOSS, names.LR) if key in curves]
        everything = dense or [*curves.values()]
        self.last = max((int(c.step[-1]) for c in everything if c.step.size), default=-1)
        self._epochs = _epoch_knots(curves, self.last)
        self._examples = _examples_knots(run, curves, self.last)
        self._seconds = _seconds_knots(curves, everything)
        self._budget = self.last if finished else max(self.last, _planned(run, self._epochs) - 1)

    def at(self, axis: str, step: NDArray[np.int64]) -> Floats | None:
        """Positions on ``axis`` of steps, at the end of each but for seconds; None where it is not known."""
        if axis == "step":
            return step.astype(np.float64)
        if axis == "fraction":
            return np.asarray((step + 1.0) / (self._budget + 1.0), np.float64) if self._budget >= 0 else None
        if axis == "seconds":
            return None if self._seconds is None else np.interp(step, *self._seconds)
        knots = self._epochs if axis == "epochs" else self._examples
        return None if knots is None else _extended(np.asarray(step + 1.0, np.float64), *knots)


def _extended(x: Floats, xs: Floats, ys: Floats) -> Floats:
    """Interpolate; go on in the direction of the last piece, so that what follows an epoch's end has a place."""
    inside = np.interp(x, xs, ys)
    slope = (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
    return np.where(x > xs[-1], ys[-1] + (x - xs[-1]) * slope, inside)


def _epoch_knots(curves: dict[str, Curve], last: int) -> tuple[Floats, Floats] | None:
    """Steps done, and epochs done by then: where an epoch's mean was logged, or where Lightning's `epoch` changed."""
    mean = curves.get(names.EPOCH_MEAN)
    if mean is not None and mean.step.size:
        ends, counts = mean.step + 1.0, np.arange(1.0, mean.step.size + 1)
    else:
        epoch = curves.get(names.EPOCH)
        if epoch is None or not epoch.step.size:
            return None
        inside = epoch.step <= last
        step, value = epoch.step[inside], epoch.value[inside]
        change = np.append(value[1:] != value[:-1], True) if step.size else np.zeros(0, bool)
        ends, counts = step[change] + 1.0, value[change] + 1.0
    if not ends.size:
        return None
    return np.insert(ends, 0, 0.0), np.insert(counts, 0, 0.0)


def _examples_knots(run: Run, curves: dict[str, Curve], last: int) -> tuple[Floats, Floats] | None:
    """Steps done, and examples seen by then."""
    size = curves.get(names.BATCH_SIZE)
    if size is not None and size.step.size:  # logged at the end of an epoch, for that epoch
        ends = np.insert(size.step + 1.0, 0, 0.0)
        return (ends, np.insert(np.cumsum(np.diff(ends) * size.value), 0, 0.0)) if ends[1] > 0 else None
    batch = _number(run.params.get("data.batch_size")) or _number(run.params.get("batch_size"))
    if batch is None or last < 0:
        return None
    world = _world_size(run)
    if world is None:
        return None
    batch *= world * (_number(run.params.get("trainer.accumulate_grad_batches")) or 1.0)
    return np.array([0.0, last + 1.0]), np.array([0.0, batch * (last + 1.0)])


def _world_size(run: Run) -> float | None:
    """Processes that trained a run, each on batches of its own: as it recorded, else as its params tell.

    Returns:
        None where it had devices by choice of the machine (``auto``, -1) and did not record how many.
    """
    recorded = _number(run.tags.get(names.WORLD_SIZE))
    if recorded is not None and recorded >= 1:
        return recorded
    given = run.params.get("trainer.devices")
    if given is None:
        return 1.0  # another program's run: nothing speaks of several
    listed = given.strip("[]() ")
    devices = float(len(listed.split(","))) if "," in listed or listed != given else _number(given)
    nodes = _number(run.params.get("trainer.num_nodes")) or 1.0
    return devices * nodes if devices is not None and devices >= 1 else None


def _seconds_knots(curves: dict[str, Curve], everything: list[Curve]) -> tuple[Floats, Floats] | None:
    """Steps, and seconds by then: as the run measured them, which leaves out the time between a stop and a resume."""
    measured = curves.get(names.COST_SECONDS)
    if measured is not None and measured.step.size > 1:
        start = 0.0 if measured.step[0] > 0 else float(measured.value[0])
        return np.insert(measured.step.astype(np.float64), 0, 0.0), np.insert(measured.value, 0, start)
    longest = max(everything, key=lambda c: c.step.size, default=None)
    if longest is None or longest.step.size < 2:
        return None
    start_time = min(int(c.time.min()) for c in everything if c.time.size)
    seconds = np.maximum.accumulate((longest.time - start_time) / 1000.0)
    return longest.step.astype(np.float64), seconds


def _planned(run: Run, epochs: tuple[Floats, Floats] | None) -> int:
    """Steps the run was to make, as far as its params tell; 0 where they do not."""
    steps = _number(run.params.get("trainer.max_steps"))
    planned = math.inf if steps is None or steps <= 0 else steps
    most = _number(run.params.get("trainer.max_epochs"))
    if epochs is not None and most is not None and most > 0:
        planned = min(planned, most * epochs[0][-1] / epochs[1][-1])
    return int(planned) if math.isfinite(planned) else 0


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
