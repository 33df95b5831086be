"""How the best learning rate moves from one schedule to another: arithmetic on the factors, after a convex bound."""

import math
from collections.abc import Sequence
from itertools import accumulate

from lr_lightning.errors import ArgumentError
from lr_lightning.schedules.base import Schedule
from lr_lightning.schedules.clock import Clock

__all__ = ["best_scale", "sampled_factors", "transfer_lr"]

_MOST_POINTS = 10_000


def best_scale(factors: Sequence[float]) -> float:
    r"""Return the peak that minimizes the convex bound on the last loss of a run, up to a constant of the problem.

    For factors :math:`\eta_1, \ldots, \eta_T`, all >= 0, the bound at the peak :math:`\gamma` is
    :math:`A / \gamma + B \gamma` with :math:`A = 1 / (2 \sum_t \eta_t)` and

    .. math:: B = \frac{\sum_t \eta_t^2}{2 \sum_t \eta_t} + \frac{1}{2} \sum_{k<T}
        \frac{\eta_k}{\sum_{t>k} \eta_t} \cdot \frac{\sum_{t \ge k} \eta_t^2}{\sum_{t \ge k} \eta_t},

    so the best peak is :math:`\sqrt{A / B}`. Steps with factor 0 at the end count for nothing. Multiplying all factors
    divides the result.

    Source: Schaipp et al. 2025, "The surprising agreement between convex optimization theory and learning-rate
    scheduling for large model training", 2501.18965, theorem 1 with distance and gradient norm 1.

    Raises:
        ArgumentError: A factor is negative or not finite, or none is above 0.

    Example:
        >>> best_scale([1.0])
        1.0
        >>> round(best_scale([1 - k / 100 for k in range(100)]) / best_scale([1.0] * 100), 2)
        2.42
    """
    top = max(factors, default=0.0)
    if not (all(math.isfinite(factor) and factor >= 0 for factor in factors) and top > 0):
        raise ArgumentError("must be finite numbers >= 0, of which one is above 0", "factors")
    eta = [factor / top for factor in factors]
    while eta[-1] == 0:
        eta.pop()
    rest = list(accumulate(reversed(eta)))[::-1]
    squares = list(accumulate(factor**2 for factor in reversed(eta)))[::-1]
    bends = sum(eta[k] / rest[k + 1] * squares[k] / rest[k] for k in range(len(eta) - 1))
    a, b = 0.5 / rest[0], 0.5 * (squares[0] / rest[0] + bends)
    return math.sqrt(a / b) / top


def transfer_lr(lr: float, source: Sequence[float], target: Sequence[float]) -> float:
    """Carry the best peak lr of one schedule to another one of the same length.

    The lengths of the two sequences need not be equal, but the bound then assumes that a run which is n times as long
    needs a peak about √n times as low. Real networks do not keep to this, so measure at the other length instead.

    Args:
        lr: The best peak under ``source``.
        source: Factors of the peak at each step, >= 0, such as ``Cosine().factors(1000)``.
        target: Factors of the other schedule.

    Example:
        >>> from lr_lightning.schedules import Constant, Cosine
        >>> round(transfer_lr(0.1, Constant().factors(1000), Cosine().factors(1000)), 3)
        0.282
    """
    return lr * (best_scale(target) / best_scale(source))


def sampled_factors(schedule: Schedule, clock: Clock) -> list[float]:
    """Return the factor at every step of a clock with a known total, or at 10,000 steps that are spread evenly."""
    total = clock.need_total(type(schedule).__name__)
    points = min(total, _MOST_POINTS)
    return [schedule(index * total // points, clock) for index in range(points)]
