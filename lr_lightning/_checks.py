"""Check arguments: numbers, counts and choices."""

import math
from collections.abc import Sequence

from lr_lightning.errors import ArgumentError


def check_number(name: str, value: float, *, low: float = 0.0, high: float = math.inf, above: bool = False) -> None:
    """Refuse a number that is not finite or not in range.

    Args:
        name: The argument's name.
        value: What was given.
        low: Least value.
        high: Greatest value.
        above: ``low`` itself is refused.

    Raises:
        ArgumentError: ``value`` is out of range or no number.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < low or value > high or (above and value == low):
        limits = f"{'>' if above else '>='} {low:g}" + (f" and <= {high:g}" if high < math.inf else "")
        raise ArgumentError(f"must be {limits}, got {value!r}", name)


def check_count(name: str, value: int, least: int) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        ArgumentError: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"must be a whole number >= {least}, got {value!r}", name)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse what is not among the choices.

    Raises:
        ArgumentError: ``value`` is not in ``choices``.
    """
    if value not in choices:
        raise ArgumentError(f"must be one of {', '.join(map(repr, choices))}, got {value!r}", name)
