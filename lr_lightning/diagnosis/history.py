"""What a run measured at its validations: the input of a verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["History", "Point", "low_ends"]

_RISE = 1.1  # a rate that grows by less than this factor does not start a cycle
_CYCLE = 1 / 3  # of the peak: a rate that rises again to less is no cycle


@dataclass(frozen=True)
class Point:
    """One validation.

    Attributes:
        epoch: Epochs trained so far.
        step: Optimizer steps so far.
        val_loss: Mean loss of the validation examples.
        probe_loss: Mean loss of the probe's.
        lr: Rate of the update before it.
        val_acc: Share of right predictions, where known.
        probe_acc: The same of the probe.
        val_losses: Losses of single validation examples, the same ones each time, shape [K]; where known.
        probe_losses: The same of the probe.
        val_size: Examples in the validation set, of which ``val_losses`` may be a part.
        probe_size: The same of the probe.
    """

    epoch: float
    step: int
    val_loss: float
    probe_loss: float
    lr: float | None = None
    val_acc: float | None = None
    probe_acc: float | None = None
    val_losses: NDArray[np.float32] | None = None
    probe_losses: NDArray[np.float32] | None = None
    val_size: int | None = None
    probe_size: int | None = None


@dataclass(frozen=True)
class History:
    """All validations of a run, oldest first.

    Attributes:
        points: The validations.
        chance: Loss of a model that knows nothing but the classes' shares, such as log(classes).
        start: Training loss of the initial weights.
        total_steps: Steps the run will have at its end, where known.
        diverged: What was not finite and when, where that ended the run.
        overconfident: Whether temperature scaling would remove the gap between the last losses.
    """

    points: tuple[Point, ...]
    chance: float | None = None
    start: float | None = None
    total_steps: int | None = None
    diverged: str | None = None
    overconfident: bool = False

    @staticmethod
    def of_curves(
        val_loss: Sequence[float],
        probe_loss: Sequence[float],
        *,
        lr: Sequence[float] | None = None,
        val_acc: Sequence[float] | None = None,
        probe_acc: Sequence[float] | None = None,
        epochs: Sequence[float] | None = None,
        steps: Sequence[int] | None = None,
        chance: float | None = None,
        start: float | None = None,
    ) -> "History":
        """A history of recorded curves, one value for each validation.

        Args:
            val_loss: Validation losses, oldest first.
            probe_loss: Losses of a training subset in eval mode, or, less well, of the training.
            lr: Rates.
            val_acc: Accuracies in 0..1.
            probe_acc: The same on training data.
            epochs: Epochs trained at each; default 1, 2, 3, ...
            steps: Optimizer steps at each; default the number of the epoch.
            chance: Loss of a model that knows nothing, such as log(classes).
            start: Training loss of the initial weights.

        Raises:
            ValueError: The curves differ in length.

        Example:
            >>> len(History.of_curves([2.0, 1.0], [2.0, 0.5]).points)
            2
        """
        count = len(val_loss)
        curves = {"probe_loss": probe_loss, "lr": lr, "val_acc": val_acc, "probe_acc": probe_acc}
        curves |= {"epochs": epochs, "steps": steps}
        for name, curve in curves.items():
            if curve is not None and len(curve) != count:
                raise ValueError(f"{name} must have one value for each of the {count} of val_loss, got {len(curve)}")
        at = list(epochs) if epochs is not None else [float(i + 1) for i in range(count)]
        return History(
            tuple(
                Point(
                    epoch=float(at[i]),
                    step=int(steps[i]) if steps is not None else i + 1,
                    val_loss=float(val_loss[i]),
                    probe_loss=float(probe_loss[i]),
                    lr=None if lr is None else float(lr[i]),
                    val_acc=None if val_acc is None else float(val_acc[i]),
                    probe_acc=None if probe_acc is None else float(probe_acc[i]),
                )
                for i in range(count)
            ),
            chance=chance,
            start=start,
        )


def low_ends(lrs: Sequence[float | None]) -> list[int]:
    """The validations that lie at the same phase of a schedule, so that their losses may be compared.

    A loss rises and falls with the rate. Where the rate falls and rises again, only the validations at the low end of
    each cycle are compared: those after which it rises again by a tenth or more, and the last one where the rate is
    back down there. A rate that never rises again after a fall, a warm-up included, leaves all of them, and so does one
    that comes back to less than a third of its peak: a run that was made a little longer once its schedule had ended.

    Args:
        lrs: The rate at each validation.

    Returns:
        Indices; all of them where a rate is unknown, or where fewer than two low ends are left.

    Example:
        >>> low_ends([1.0, 0.1, 1.0, 0.1, 0.5, 1.0, 0.1])
        [1, 3, 6]
        >>> low_ends([0.1, 1.0, 0.5, 0.0])
        [0, 1, 2, 3]
        >>> low_ends([1.0, 0.5, 0.0, 0.1, 0.0])
        [0, 1, 2, 3, 4]
    """
    every = list(range(len(lrs)))
    rates = [lr for lr in lrs if lr is not None and math.isfinite(lr)]
    if len(rates) < len(lrs) or not rates:
        return every
    ends: list[int] = []
    fallen = False
    lowest = 0
    peak = rates[0]
    for i, rate in enumerate(rates):
        if fallen and rate > _RISE * rates[lowest] and rate > rates[lowest] + 0.02 * peak:
            ends.append(lowest)
            fallen, lowest = False, i
        elif rate < rates[lowest] or (fallen and rate <= rates[lowest]):
            fallen, lowest = True, i
        elif not fallen:
            lowest = i
        peak = max(peak, rate)
    if ends and fallen and rates[lowest] <= _RISE * max(rates[i] for i in ends) and lowest == len(rates) - 1:
        ends.append(lowest)
    if len(ends) < 2 or max(rates[ends[0] :]) < _CYCLE * max(rates[: ends[0] + 1]):
        return every
    return ends
