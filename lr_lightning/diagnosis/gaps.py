"""The gaps between validation and probe, and Prechelt's measures, as they stand after each validation."""

import math
from collections.abc import Sequence

from lr_lightning.diagnosis.history import Point
from lr_lightning.diagnosis.prechelt import STRIP, generalization_loss, progress_quotient, successive_rises

__all__ = ["gaps"]

_MOST_PQ = 1e6  # in place of infinity, where the training made no progress at all


def gaps(points: Sequence[Point]) -> dict[str, float]:
    """What the last validation comes to, by the name it is logged under; what is not known is left out.

    Args:
        points: The validations so far, oldest first; at least one.
    """
    point = points[-1]
    metrics: dict[str, float | None] = {"probe/loss": point.probe_loss, "probe/acc": point.probe_acc}
    val = [p.val_loss for p in points]
    if not math.isnan(point.val_loss) or point.val_losses is not None:
        metrics["overfit/gap_loss"] = point.val_loss - point.probe_loss
        metrics["overfit/gl"] = _finite(generalization_loss(val))
        # From the first validation on, since what is monitored must be there: a first strip is as long as it is.
        quotient = progress_quotient(val, [p.probe_loss for p in points], min(STRIP, len(val)))
        metrics["overfit/pq"] = 0.0 if math.isnan(quotient) else min(quotient, _MOST_PQ)
        metrics["overfit/up"] = float(successive_rises(val))
    if point.val_acc is not None and point.probe_acc is not None:
        metrics["overfit/gap_acc"] = point.probe_acc - point.val_acc
    return {key: value for key, value in metrics.items() if value is not None}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
