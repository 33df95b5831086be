"""Curves made small enough to draw, or averaged with a band: pure functions."""

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lr_lightning._checks import check_count

Floats = NDArray[np.float64]
# x, mean, and lower and upper end of the mean's t interval (nan if there is one curve).
Band = tuple[Floats, Floats, Floats, Floats]


def thin(values: ArrayLike, limit: int) -> NDArray[np.int64]:
    """Choose the points of a curve that show its shape: both ends, the extrema of every stretch, the sharpest bends.

    Unlike points at equal distances, they include a spike of one step and the exact steps at which a schedule breaks.
    ``values`` are y at equal distances; at most ``limit``, >= 8, rising indices are returned.

    Example:
        >>> spike = [0.0] * 500 + [9.0] + [0.0] * 500
        >>> 500 in thin(spike, 20)
        True
    """
    check_count("limit", limit, 8)
    y = np.asarray(values, np.float64)
    n = y.size
    if n <= limit:
        return np.arange(n)
    buckets = (limit - 2) // 3  # two extrema each, and as many bends
    edges = np.linspace(0, n, buckets + 1).astype(np.int64)
    finite = np.where(np.isfinite(y), y, 0.0)
    keep = {0, n - 1}
    for start, end in pairwise(edges):
        stretch = finite[start:end]
        keep.update((int(start + stretch.argmin()), int(start + stretch.argmax())))
    bend = np.abs(np.diff(finite, 2))
    sharpest = np.argpartition(bend, -buckets)[-buckets:] if bend.size > buckets else np.arange(bend.size)
    # A bend of mere rounding is not worth a point.
    keep.update(int(i) + 1 for i in sharpest if bend[i] > 1e-9 * (np.ptp(finite) or 1.0))
    return np.array(sorted(keep), np.int64)


def band(curves: list[tuple[ArrayLike, ArrayLike]], level: float = 0.95, points: int = 200) -> Band:
    """Average curves, each x (rising) and y, with a t interval at each x.

    Curves with the same x are averaged as they are; others are interpolated, at ``points`` x. The mean ends where the
    shortest curve ends, so that it does not jump there.
    """
    xs = [np.asarray(x, np.float64) for x, _ in curves]
    ys = [np.asarray(y, np.float64) for _, y in curves]
    start, end = max(x[0] for x in xs), min(x[-1] for x in xs)
    if all(np.array_equal(x, xs[0]) for x in xs[1:]):
        grid, rows = xs[0], np.stack(ys)
    elif start > end:  # the curves do not overlap
        empty = np.empty(0)
        return empty, empty, empty, empty
    else:
        common = xs[0][(xs[0] >= start) & (xs[0] <= end)]
        inside = all(np.isin(common, x).all() for x in xs[1:])  # the same x, but different lengths
        grid = common if inside and common.size else np.linspace(start, end, points)
        rows = np.stack([np.interp(grid, x, y) for x, y in zip(xs, ys, strict=True)])
    n, mean = len(rows), rows.mean(axis=0)
    half = np.full_like(mean, np.nan)
    if n > 1:
        from scipy import stats

        half = stats.t.ppf((1 + level) / 2, n - 1) * rows.std(axis=0, ddof=1) / np.sqrt(n)
    return grid, mean, mean - half, mean + half


def setback(values: ArrayLike, *, higher_is_better: bool) -> float:
    """Return the largest loss against the best value so far; 0 if the curve only improves.

    Example:
        >>> setback([0.1, 0.8, 0.5, 0.9], higher_is_better=True)
        0.30000000000000004
    """
    y = np.asarray(values, np.float64) * (1.0 if higher_is_better else -1.0)
    return float((np.maximum.accumulate(y) - y).max()) if y.size else 0.0
