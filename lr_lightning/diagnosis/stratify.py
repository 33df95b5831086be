"""Stratified splits and subsets: pure functions of labels and a seed."""

import numpy as np
from numpy.typing import NDArray

from lr_lightning.errors import ArgumentError

Indices = NDArray[np.int64]


def _allocate(counts: Indices, total: int, lower: Indices, upper: Indices) -> Indices:
    """Share ``total`` among classes by ``counts`` (largest remainder), between ``lower`` and ``upper``."""
    exact = counts * (total / max(int(counts.sum()), 1))
    share: Indices = np.clip(np.floor(exact).astype(np.int64), lower, upper)
    # The bounds may have changed the sum: correct it one example at a time, in the class that this distorts least.
    while (missing := total - int(share.sum())) != 0:
        step = 1 if missing > 0 else -1
        room = share < upper if step > 0 else share > lower
        if not room.any():
            break
        need = np.where(room, (exact - share) * step, -np.inf)
        share[int(np.argmax(need))] += step
    return share


def _pick(labels: NDArray[np.int64], classes: Indices, share: Indices, seed: int) -> Indices:
    """Draw ``share[k]`` random examples of ``classes[k]``; return sorted indices."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    picked = [rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, share, strict=True)]
    return np.sort(np.concatenate(picked)) if picked else np.empty(0, np.int64)


def stratified_split(labels: NDArray[np.int64], fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Hold out a fraction of the examples, the same fraction of each class.

    A class with at least two examples has at least one on each side. A single example is kept. Nothing but the seed
    influences the draw.

    Returns:
        Two sorted index arrays, (keep, held_out), that partition ``range(N)``.

    Raises:
        ArgumentError: ``fraction`` is not in (0, 1).

    Example:
        >>> keep, held_out = stratified_split(np.array([0, 0, 0, 0, 1, 1, 1, 1, 2]), 0.25, seed=0)
        >>> [int((held_out < 4).sum()), int((held_out >= 4).sum()), 8 in keep]
        [1, 1, True]
    """
    if not 0 < fraction < 1:
        raise ArgumentError(f"fraction must be in (0, 1), got {fraction}")
    classes, counts = np.unique(labels, return_counts=True)
    several = (counts >= 2).astype(np.int64)
    share = _allocate(counts, round(len(labels) * fraction), lower=several, upper=counts - 1)
    held_out = _pick(labels, classes, share, seed)
    keep = np.setdiff1d(np.arange(len(labels), dtype=np.int64), held_out, assume_unique=True)
    return keep, held_out


def stratified_subset(labels: NDArray[np.int64], size: int, seed: int) -> Indices:
    """Draw ``size`` examples, at most all, with the class proportions of the whole; return sorted indices.

    Raises:
        ArgumentError: ``size`` is negative.
    """
    if size < 0:
        raise ArgumentError(f"size must be >= 0, got {size}")
    classes, counts = np.unique(labels, return_counts=True)
    share = _allocate(counts, min(size, len(labels)), lower=np.zeros_like(counts), upper=counts)
    return _pick(labels, classes, share, seed)
