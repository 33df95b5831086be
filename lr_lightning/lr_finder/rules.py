"""The learning-rate rules of other finders, each a pure function of one raw sweep.

Every rule takes the rates and the raw losses of a sweep in which loss k was measured before the update with rate k, and
does for itself what its package does: its own smoothing, its own early stop, its own margins at both ends. So one
recorded sweep can be read by all of them. Arithmetic is in float64, and the packages use float32 in places: of 1,080
answers on recorded sweeps 1,070 were those of the packages; the others, all of valley on a loss that hardly moves, were
within a factor of 1.6.

A non-finite loss is kept where a package keeps it (it then poisons the smoothed losses after it, as there).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["fastai_minimum", "fastai_valley", "ignite", "lightning", "smith", "torch_lr_finder"]

Curve = NDArray[np.float64]


def lightning(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Lightning's suggestion: the steepest descent of the averaged loss against the *linear* rate.

    The average is exponential (0.98), its bias correction one step ahead; the sweep stops when the average exceeds four
    times its best; the first ten points and the last are left out.

    Source: lightning 2.6.6, ``pytorch/tuner/lr_finder.py``, ``_LRCallback`` and ``_LRFinder.suggestion``.

    Args:
        lrs: Rates, shape [N].
        losses: Raw losses, shape [n], n <= N.

    Returns:
        A rate, or ``None`` where fewer than two points are left.
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


def _exponential(losses: Sequence[float]) -> Curve:
    """The smoothing and the stop that torch-lr-finder and ignite share: weight 0.05, stop above five times the best."""
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
        lrs: Rates, shape [N].
        losses: Raw losses, shape [n], n <= N.

    Returns:
        A rate, or ``None`` where the sweep has fewer than 17 points.
    """
    smoothed = _exponential(losses)
    if len(smoothed) < 17:
        return None
    return float(lrs[10 + int(np.argmin(np.gradient(smoothed[10:-5])))])


def ignite(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Ignite's suggestion: the steepest descent of the averaged loss from step to step, before its minimum.

    Source: pytorch-ignite 0.5.5, ``ignite/handlers/lr_finder.py``, ``FastaiLRFinder``.

    Args:
        lrs: Rates, shape [N].
        losses: Raw losses, shape [n], n <= N.

    Returns:
        A rate, or ``None`` where the minimum is among the first two points.
    """
    smoothed = _exponential(losses)
    if len(smoothed) == 0:
        return None
    falling = smoothed[: int(np.argmin(smoothed)) + 1]  # as there, a nan counts as the minimum
    if len(falling) < 3:
        return None
    with np.errstate(invalid="ignore"):
        return float(lrs[int(np.argmin(falling[2:] - falling[:-2])) + 1])


def _fastai(lrs: Sequence[float], losses: Sequence[float]) -> tuple[Curve, Curve]:
    """The averaged loss (0.98, bias-corrected) until it exceeds four times its best, less a tenth and five points."""
    average, best = 0.0, np.inf
    smoothed: list[float] = []
    for count, loss in enumerate(losses, start=1):
        average = 0.98 * average + 0.02 * loss
        value = average / (1 - 0.98**count)
        smoothed.append(value)
        best = value if value < best else best
        if value > 4 * best:
            break
    first = len(lrs) // 10
    y = np.asarray(smoothed[first:-5], dtype=np.float64)
    x = np.asarray(lrs[: len(smoothed)][first:-5], dtype=np.float64)
    nans = np.flatnonzero(np.isnan(y))
    end = int(nans[0]) if len(nans) else len(y)
    return x[:end], y[:end]


def fastai_minimum(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Fastai's ``minimum``: a tenth of the rate at which the averaged loss is lowest.

    Source: fastai 2.8.12, ``fastai/callback/schedule.py``, ``LRFinder``, ``lr_find`` and ``minimum``; the average is
    ``fastai/learner.py``, ``AvgSmoothLoss``.

    Args:
        lrs: Rates of the whole planned sweep, shape [N]: a tenth of N is left out at the start.
        losses: Raw losses, shape [n], n <= N.

    Returns:
        A rate, or ``None`` where no point is left.
    """
    x, y = _fastai(lrs, losses)
    return float(x[np.argmin(y)]) / 10 if len(y) else None


def fastai_valley(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Fastai's ``valley``, its default: about halfway down the longest decreasing subsequence of the averaged loss.

    Source: fastai 2.8.12, ``fastai/callback/schedule.py``, ``valley``.

    Args:
        lrs: Rates of the whole planned sweep, shape [N]: a tenth of N is left out at the start.
        losses: Raw losses, shape [n], n <= N.

    Returns:
        A rate, or ``None`` where no point is left.
    """
    x, y = _fastai(lrs, losses)
    if not len(y):
        return None
    length = np.ones(len(y), dtype=np.int64)  # of the longest decreasing subsequence that ends here
    for i in range(1, len(y)):
        length[i] = 1 + np.max(length[:i], where=y[:i] > y[i], initial=0)
    end = int(np.argmax(length))
    start = end - int(length[end]) if length[end] > 1 else 0
    third = (end - start) / 3
    return float(x[start + int(third) + int(third / 2)])


def smith(lrs: Sequence[float], losses: Sequence[float]) -> tuple[float, float] | None:
    """Smith's pair for a cyclical schedule, read by arithmetic instead of by eye.

    He takes as the lower rate the one where the accuracy starts to rise and as the upper one where it slows, turns
    ragged or falls. Here the loss is averaged over five steps: the lower rate is where it has made a tenth of its fall
    from the start (the median of ten values), the upper one where it is lowest.

    Source: Smith, "Cyclical learning rates for training neural networks", 2017, section 3.3. There is no code of his.

    Args:
        lrs: Rates, shape [N].
        losses: Raw losses, shape [n], n <= N; they count up to the first that is not finite.

    Returns:
        Lower and upper rate, or ``None`` where the loss does not fall from its start, or is lowest at the last rate.
    """
    values = np.asarray(losses, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    values = values[: bad[0]] if len(bad) else values
    if len(values) < 10:
        return None
    start = float(np.median(values[:10]))
    smoothed = np.convolve(values, np.full(5, 0.2), mode="valid")  # entry k is about step k + 2
    lowest = int(np.argmin(smoothed))
    fall = start - float(smoothed[lowest])
    if fall <= 0 or lowest == 0 or lowest + 5 == len(lrs):
        return None
    first = int(np.flatnonzero(smoothed <= start - 0.1 * fall)[0])
    return float(lrs[first + 2]), float(lrs[lowest + 2])
