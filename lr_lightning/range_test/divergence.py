"""When a range test in progress may end. Pure numpy."""

import math

import numpy as np

from lr_lightning.range_test import unimodal
from lr_lightning.range_test.curve import EVIDENCE, HEAD, noise_of, running_best

__all__ = ["DivergenceStop"]

_TAIL, _FAR = 10, 20.0


class DivergenceStop:
    """Says when a sweep in progress may end: the median of the last ten values is far above the start.

    Far is twice as high above the start as the best so far is below it, and at least twenty times the noise. As noise
    may grow with the rate, it is also three times the noise of the last twenty values, and the rise must stand out by
    its length. Four outliers cannot move a median of ten. Only values seen so far count. Adding a constant to them, or
    multiplying them by a positive number, changes nothing.

    It is careful, not thrifty: a sweep that is cut before its edge shows misleads more than a long one costs.

    Args:
        higher_is_better: Whether the values are, say, accuracies.
    """

    def __init__(self, *, higher_is_better: bool = False) -> None:
        self._sign = -1.0 if higher_is_better else 1.0
        self._values: list[float] = []

    def __call__(self, value: float) -> bool:
        """Take the next value; True if the sweep may end now. A non-finite value ends it."""
        if not math.isfinite(value):
            return True
        self._values.append(self._sign * value)
        if len(self._values) < HEAD + _TAIL:
            return False
        values = np.asarray(self._values, dtype=np.float64)
        best, start = running_best(values)
        above = float(np.median(values[-_TAIL:])) - start
        recent = noise_of(values[-2 * _TAIL :])
        if above <= max(2 * (start - float(best[-1])), _FAR * noise_of(values), 3 * recent):
            return False
        return unimodal.evidence(values)[1] > EVIDENCE * math.log(len(values))
