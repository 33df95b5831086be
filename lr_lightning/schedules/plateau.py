"""Lower the lr when a metric stops improving: a pure function of the metric's history."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lr_lightning._checks import check_choice, check_number
from lr_lightning.errors import ArgumentError

__all__ = ["Plateau"]

_Mode = Literal["min", "max"]
_ThresholdMode = Literal["rel", "abs"]


@dataclass(frozen=True)
class Plateau:
    """A factor that a metric's history determines. It is not a Schedule, since it needs the history; it multiplies one.

    Formula: ``max(factor ** k, min_factor)``, where k counts how often more than ``patience`` values in a row were no
    better than the best before them. Source: torch's ReduceLROnPlateau, as a function of all values so far. A value
    of nan is never better.

    Attributes:
        monitor: Name of the metric, such as ``"val/loss"``.
        factor: Factor of each reduction, in (0, 1).
        patience: Number of values without improvement to tolerate, >= 0.
        mode: ``"min"`` if lower is better, ``"max"`` if higher is.
        threshold: Least difference that counts as an improvement, >= 0.
        threshold_mode: ``"rel"``: the threshold is a share of the best value; ``"abs"``: it is in the metric's unit.
        cooldown: Number of values after a reduction that never count as bad, >= 0.
        min_factor: Lower bound of the result, in [0, 1].

    Raises:
        ArgumentError: An argument is out of range.

    Example:
        >>> plateau = Plateau("val/loss", factor=0.5, patience=1)
        >>> plateau([1.0, 0.9, 0.9]), plateau([1.0, 0.9, 0.9, 0.9])
        (1.0, 0.5)
    """

    monitor: str
    factor: float = 0.1
    patience: int = 10
    mode: _Mode = "min"
    threshold: float = 1e-4
    threshold_mode: _ThresholdMode = "rel"
    cooldown: int = 0
    min_factor: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.monitor, str) or not self.monitor:
            raise ArgumentError(f"must be the name of a metric such as 'val/loss', got {self.monitor!r}", "monitor")
        check_number("factor", self.factor, high=1.0, above=True)
        if self.factor == 1:
            raise ArgumentError("must be < 1, got 1: it would change nothing", "factor")
        check_choice("mode", self.mode, get_args(_Mode))
        check_choice("threshold_mode", self.threshold_mode, get_args(_ThresholdMode))
        for name in ("patience", "cooldown", "threshold"):
            check_number(name, getattr(self, name))
        check_number("min_factor", self.min_factor, high=1.0)

    def __call__(self, history: Sequence[float]) -> float:
        """Return the factor, in [0, 1], after all values of the metric so far, oldest first; 1 for none."""
        best = math.inf if self.mode == "min" else -math.inf
        bad = rest = reductions = 0
        for value in history:
            if self._better(value, best):
                best, bad = value, 0
            else:
                bad += 1
            if rest > 0:
                rest, bad = rest - 1, 0
            if bad > self.patience:
                reductions, rest, bad = reductions + 1, self.cooldown, 0
        return max(float(self.factor**reductions), float(self.min_factor))

    def _better(self, value: float, best: float) -> bool:
        sign = -1 if self.mode == "min" else 1
        by = sign * self.threshold
        return sign * value > sign * (best * (1 + by) if self.threshold_mode == "rel" else best + by)
