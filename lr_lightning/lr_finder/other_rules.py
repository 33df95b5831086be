"""Other rules for reading a range test, for comparison: fastai's two and Smith's, each a function of one raw sweep.

Each rule takes the learning rates of the whole planned sweep, shape [N], and the raw losses, shape [n], n <= N; loss k
was measured before the update with learning rate k. fastai's rules repeat what fastai does: its smoothing, its early
stop, its margins at both ends (the first tenth of the learning rates is left out). They are None if no point is left.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["fastai_minimum", "fastai_valley", "smith"]

Floats = NDArray[np.float64]


def _fastai(lrs: Sequence[float], losses: Sequence[float]) -> tuple[Floats, Floats]:
    """Return the lrs and averaged losses (0.98, bias-corrected) until four times the best, without both margins."""
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
    """Fastai's ``minimum``: a tenth of the learning rate at which the averaged loss is lowest.

    Source: fastai 2.8.12, ``fastai/callback/schedule.py``, ``LRFinder``, ``lr_find`` and ``minimum``; the average is
    ``fastai/learner.py``, ``AvgSmoothLoss``.
    """
    x, y = _fastai(lrs, losses)
    return float(x[np.argmin(y)]) / 10 if len(y) else None


def fastai_valley(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Fastai's ``valley``, its default: about halfway down the longest decreasing subsequence of the averaged loss.

    Source: fastai 2.8.12, ``fastai/callback/schedule.py``, ``valley``.
    """
    x, y = _fastai(lrs, losses)
    if not len(y):
        return None
    length = np.ones(len(y), dtype=np.int64)  # of the longest decreasing subsequence that ends at each point
    for i in range(1, len(y)):
        length[i] = 1 + np.max(length[:i], where=y[:i] > y[i], initial=0)
    end = int(np.argmax(length))
    start = end - int(length[end]) if length[end] > 1 else 0
    third = (end - start) / 3
    return float(x[start + int(third) + int(third / 2)])


def smith(lrs: Sequence[float], losses: Sequence[float]) -> tuple[float, float] | None:
    """Smith's pair for a cyclical schedule, read by arithmetic instead of by eye.

    Smith takes the lower learning rate where the accuracy starts to rise, and the upper one where it slows, turns
    ragged or falls. Here the loss is averaged over five steps. The lower learning rate is where the loss has made a
    tenth of its fall from the start (the median of ten values), and the upper one is where the loss is lowest. It is
    None if the loss does not fall or is lowest at the last one; losses from the first that is not finite do not count.

    Source: Smith, "Cyclical learning rates for training neural networks", 2017, section 3.3, which gives no code.
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
