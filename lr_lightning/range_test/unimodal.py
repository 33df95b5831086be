"""Least squares with a curve that falls and then rises: is there a fall, is there a rise? Pure numpy."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]


def _falling(values: Iterable[float]) -> Curve:
    """Squared error of the best falling curve through the first k values, k = 0..n, shape [n + 1].

    Pools adjacent violators, and keeps the error of every prefix.

    Source: Barlow et al., *Statistical Inference under Order Restrictions*, 1972, chapter 1; Stout, "Unimodal
    regression via prefix isotonic regression", 2008, for the prefixes.
    """
    means: list[float] = []
    sizes: list[int] = []
    errors: list[float] = []
    total, prefixes = 0.0, [0.0]
    for value in values:
        mean, size, error = value, 1, 0.0
        while means and means[-1] <= mean:
            mean2, size2, error2 = means.pop(), sizes.pop(), errors.pop()
            total -= error2
            error += error2 + size * size2 / (size + size2) * (mean - mean2) ** 2
            mean = (size * mean + size2 * mean2) / (size + size2)
            size += size2
        means.append(mean)
        sizes.append(size)
        errors.append(error)
        total += error
        prefixes.append(max(total, 0.0))  # a difference of large sums may round below 0
    return np.asarray(prefixes)


def profile(values: Curve) -> Curve:
    """Squared error of the best curve that falls over the first k values and rises over the others, k = 0..n.

    Args:
        values: The curve, shape [n].

    Returns:
        Errors, shape [n + 1]: the first is that of a curve that only rises, the last of one that only falls.
    """
    return _falling(values.tolist()) + _falling(values[::-1].tolist())[::-1]


def evidence(values: Curve) -> tuple[float, float]:
    """How much better a curve that falls and rises explains the ranks of the values than one that only does one.

    Both are differences of squared errors over the variance. They use ranks, so they do not depend on how the noise is
    distributed or on a few wild values.

    Args:
        values: The curve, shape [n].

    Returns:
        Evidence for the fall (against a curve that only rises) and for the rise (against one that only falls), >= 0;
        0 where all values are equal.
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts + 1) / 2)[inverse]  # ties share their mean rank
    variance = float(np.var(ranks)) if len(values) else 0.0
    if variance == 0.0:
        return 0.0, 0.0
    errors = profile(ranks - ranks.mean()) / variance
    lowest = float(errors.min())
    return float(errors[0]) - lowest, float(errors[-1]) - lowest
