"""From batches and accumulation to updates: the one place where steps and epochs are planned."""

from collections.abc import Iterable, Sequence

from lr_lightning.schedules.clock import Clock

__all__ = ["epoch_clock", "updates_per_epoch"]


def updates_per_epoch(batches: int, accumulate: int = 1) -> int:
    """Updates that an epoch makes: the last one may be of fewer batches.

    Args:
        batches: Batches in the epoch, >= 1.
        accumulate: Batches for one update, >= 1.

    Returns:
        ``ceil(batches / accumulate)``.

    Raises:
        ValueError: An argument is < 1.

    Example:
        >>> updates_per_epoch(10, accumulate=4)
        3
    """
    if batches < 1 or accumulate < 1:
        raise ValueError(f"batches and accumulate must be >= 1, got {batches} and {accumulate}")
    return -(-batches // accumulate)


def epoch_clock(updates: Sequence[int], *, ends: bool, totals: Iterable[int] = ()) -> Clock:
    """The clock of a run with these epochs.

    Args:
        updates: Updates in each epoch, at least one epoch; later ones are as the last.
        ends: Whether the run ends with the last of these epochs.
        totals: Further limits on the number of updates, such as max_steps.

    Returns:
        A clock with the smallest of all limits as its total, None if there is no limit.

    Example:
        >>> epoch_clock([10, 5, 5], ends=True)
        Clock(total=20, steps_per_epoch=None, epoch_starts=(0, 10, 15, 20), origin=0)
        >>> epoch_clock([10, 10], ends=True, totals=[15])
        Clock(total=15, steps_per_epoch=10, epoch_starts=None, origin=0)
    """
    limits = [*totals, *([sum(updates)] if ends else [])]
    total = min(limits, default=None)
    if len(set(updates)) == 1:
        return Clock(total, steps_per_epoch=updates[0])
    starts = [0]
    for count in updates:
        starts.append(starts[-1] + count)
    return Clock(total, epoch_starts=tuple(starts))
