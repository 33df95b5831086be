"""Prechelt's three measures of overfitting, as pure functions of the losses of successive validations.

Source: Prechelt 1998, "Early stopping - but when?", section 2. His epochs are validations here.
"""

import math
from collections.abc import Sequence

__all__ = ["STRIP", "generalization_loss", "progress", "progress_quotient", "successive_rises"]

STRIP = 5
"""Validations in a strip, as in the paper."""


def generalization_loss(validation: Sequence[float]) -> float:
    """GL: how far the last validation loss lies above the lowest so far, in percent.

    Formula: ``100 * (E_va(t) / min E_va - 1)``; losses before the last that are not finite are left out.

    Args:
        validation: Losses, oldest first; at least one.

    Returns:
        A number >= 0; nan where the last loss is not finite or the lowest is not positive, since it is a ratio.

    Example:
        >>> generalization_loss([2.0, 1.0, 1.5])
        50.0
    """
    if not math.isfinite(validation[-1]):
        return math.nan
    lowest = min(filter(math.isfinite, validation))  # a nan at the start would be the lowest for ever
    if lowest <= 0:
        return math.nan
    return 100.0 * (validation[-1] / lowest - 1.0)


def progress(training: Sequence[float], strip: int = STRIP) -> float:
    """P_k: how much lower than its mean the training loss was in the last strip, in per mille.

    Formula: ``1000 * (mean of the last k / min of the last k - 1)``.

    Args:
        training: Losses, oldest first.
        strip: k, the length of a strip, >= 1.

    Returns:
        A number >= 0; nan before the first whole strip, and where it is no ratio.

    Example:
        >>> progress([1.0, 1.5, 1.0], strip=2)
        250.0
    """
    last = training[-strip:]
    if len(last) < strip or not all(map(math.isfinite, last)) or min(last) <= 0:
        return math.nan
    return 1000.0 * (sum(last) / len(last) / min(last) - 1.0)


def progress_quotient(validation: Sequence[float], training: Sequence[float], strip: int = STRIP) -> float:
    """PQ: generalization loss for each unit of progress; high where the training loss no longer falls quickly.

    Formula: ``GL / P_k``.

    Returns:
        A number >= 0; nan before the first whole strip, and where there was neither loss nor progress.

    Example:
        >>> progress_quotient([1.0, 1.0, 1.5], [1.0, 1.5, 1.0], strip=2)
        0.2
    """
    loss, made = generalization_loss(validation), progress(training, strip)
    if math.isnan(loss) or math.isnan(made):
        return math.nan
    if made == 0.0:
        return math.nan if loss == 0.0 else math.inf
    return loss / made


def successive_rises(validation: Sequence[float], strip: int = STRIP) -> int:
    """UP: in how many successive strips, up to the last whole one, the validation loss rose.

    It rose in a strip if the loss at its end is above the loss at the end of the strip before.

    Args:
        validation: Losses, oldest first.
        strip: k, the length of a strip, >= 1.

    Example:
        >>> successive_rises([3.0, 1.0, 2.0, 3.0], strip=1)
        2
    """
    ends = validation[strip - 1 :: strip]
    rises = 0
    for earlier, later in zip(reversed(ends[:-1]), reversed(ends[1:]), strict=True):
        if not later > earlier:
            break
        rises += 1
    return rises
