"""Durations: a number of steps, of epochs, or a share of the piece they stand in."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

__all__ = ["Duration", "DurationError", "DurationLike", "half_up", "is_share", "parse_duration"]

_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(steps?|epochs?|%)?\s*", re.ASCII)
_HOW = "Write a whole number of steps (500 or '500 steps'), '5 epochs', or '10%'."


class DurationError(ValueError):
    """Durations do not fit into the steps there are; the message shows the arithmetic."""


@dataclass(frozen=True)
class Duration:
    """A length of time with its unit.

    Attributes:
        amount: How many of ``unit``, exact, never negative. For ``"percent"`` 10 means ten percent.
        unit: ``"steps"``, ``"epochs"`` or ``"percent"`` (of the piece the duration stands in).
    """

    amount: Fraction
    unit: Literal["steps", "epochs", "percent"]

    def __str__(self) -> str:
        number = f"{float(self.amount):g}" if self.amount.denominator > 1 else str(self.amount)
        if self.unit == "percent":
            return f"{number}%"
        return f"{number} {self.unit[:-1] if self.amount == 1 else self.unit}"


DurationLike = int | str | Duration
"""What a person may write for a duration: ``500``, ``"500 steps"``, ``"5 epochs"``, ``"10%"``."""


@lru_cache(maxsize=4096, typed=True)  # typed: 1, 1.0 and True are one key otherwise
def parse_duration(value: DurationLike, name: str = "duration", *, positive: bool = False) -> Duration:
    """Read a duration as a person writes it.

    Args:
        value: ``500``, ``"500"``, ``"500 steps"``, ``"2.5 epochs"``, ``"10%"`` or a ``Duration``.
        name: The argument's name, for the error message.
        positive: Refuse a duration of zero.

    Returns:
        The duration, exact.

    Raises:
        ValueError: ``value`` is not a duration, such as a bare float (0.1 of what?).

    Example:
        >>> parse_duration("2.5 epochs")
        Duration(amount=Fraction(5, 2), unit='epochs')
        >>> str(parse_duration(500))
        '500 steps'
    """
    if isinstance(value, Duration):
        duration = value
    elif isinstance(value, float):
        raise ValueError(f"{name}: got the bare float {value!r}: {value!r} of what? {_HOW}")
    elif isinstance(value, int) and not isinstance(value, bool):
        duration = Duration(Fraction(value), "steps")
    elif isinstance(value, str):
        duration = _parse_text(value, name)
    else:
        raise ValueError(f"{name} must be a duration, got {value!r}. {_HOW}")
    if duration.amount < 0 or (positive and duration.amount == 0):
        raise ValueError(f"{name} must be {'>' if positive else '>='} 0, got {str(value)!r}. {_HOW}")
    return duration


def _parse_text(text: str, name: str) -> Duration:
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"{name} must be a duration, got {text!r}. {_HOW}")
    amount, unit = Fraction(match[1]), match[2] or "steps"
    if unit == "%":
        if amount > 100:
            raise ValueError(f"{name} must be at most '100%', got {text!r}")
        return Duration(amount, "percent")
    if unit.startswith("epoch"):
        return Duration(amount, "epochs")
    if amount.denominator != 1:
        raise ValueError(f"{name} must be a whole number of steps, got {text!r}. {_HOW}")
    return Duration(amount, "steps")


def is_share(value: DurationLike) -> bool:
    """Whether a duration is a share of the piece it stands in, so that the piece's length must be known."""
    return parse_duration(value).unit == "percent"


def half_up(value: Fraction) -> int:
    """Round to the nearest integer, halves up.

    Example:
        >>> [half_up(Fraction(n, 2)) for n in (1, 3, 4)]
        [1, 2, 2]
    """
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)
