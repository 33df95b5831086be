"""Whether a metric was logged anew."""

from lightning.pytorch import Trainer
from torch import Tensor

__all__ = ["Renewed"]


class Renewed:
    """Tells a metric that was logged since it was last asked for from one that is left from before.

    Lightning keeps the last value of every metric, so a monitor that measures at every second validation leaves its
    metrics at those between. What the running validation has logged its results tell; of all others Lightning makes a
    new tensor whenever they are logged.
    """

    def __init__(self) -> None:
        self._last: Tensor | None = None  # held, so that its identity is not given to another

    def __call__(self, trainer: Trainer, name: str) -> bool:
        """Whether ``name`` is among the Trainer's metrics with a new value. Ask once a validation."""
        now, results = trainer.callback_metrics.get(name), trainer._results
        before, self._last = self._last, now
        if now is None:
            return False
        own = [] if results is None else [r for r in results.values() if name in results._forked_name(r, False)]
        return any(not result.has_reset for result in own) if own else now is not before
