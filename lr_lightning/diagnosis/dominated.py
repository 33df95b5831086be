"""Whether a run is clearly worse than its peers at the same point of the same schedule. A pure function."""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["dominated"]

_NOISES = 3.0


def dominated(own: Sequence[float], peers: Sequence[Sequence[float]], *, higher: bool, fewest: int = 4) -> str | None:
    """Why a run is not worth going on with, or None.

    Its best value so far must lie below the median of what its peers had come to at the same validation, by more than
    the best of them lies above that median, and by more than three times the jitter of its own values. So where half
    the peers are about as good as the best, being a little worse is enough only beyond the noise; where they differ
    widely, only a run that is far off is dominated.

    Args:
        own: Values of the validations so far, oldest first.
        peers: The same of other runs of the same schedule and length; those with fewer values are passed over.
        higher: Whether a higher value is better.
        fewest: Peers that are needed.

    Returns:
        The reason with its numbers, or None.

    Example:
        >>> dominated([0.10, 0.12], [[0.5, 0.90], [0.4, 0.88], [0.6, 0.91], [0.1, 0.86]], higher=True)
        'at 0.12 after 2 validations, where its 4 peers had 0.89 (median) and 0.91 (best)'
        >>> dominated([0.60, 0.88], [[0.5, 0.90], [0.4, 0.88], [0.6, 0.91], [0.1, 0.80]], higher=True)
    """
    count = len(own)
    if not count:
        return None
    sign = 1.0 if higher else -1.0
    reached = [max(sign * v for v in peer[:count] if math.isfinite(v)) for peer in peers if _usable(peer, count)]
    if len(reached) < fewest:
        return None
    if not any(map(math.isfinite, own)):
        return f"no finite value in {count} validations"
    best_own = max(sign * v for v in own if math.isfinite(v))
    median, best = statistics.median(reached), max(reached)
    steps = [abs(b - a) for a, b in pairwise(own[-6:]) if math.isfinite(a) and math.isfinite(b)]
    jitter = statistics.median(steps) / math.sqrt(2) if len(steps) > 1 else 0.0
    if median - best_own <= max(best - median, _NOISES * jitter):
        return None
    return (
        f"at {sign * best_own:.4g} after {count} validations, where its {len(reached)} peers had "
        f"{sign * median:.4g} (median) and {sign * best:.4g} (best)"
    )


def _usable(peer: Sequence[float], count: int) -> bool:
    return len(peer) >= count and any(math.isfinite(v) for v in peer[:count])
