"""Check arguments: numbers, counts, flags, choices and batches. A wrong one is an ArgumentError."""

import math
from collections.abc import Iterable, Iterator, Sequence

from lr_lightning.errors import ArgumentError


def check_number(name: str, value: float, *, low: float = 0.0, high: float = math.inf, above: bool = False) -> None:
    """Check that a number is finite and in range; ``above`` refuses ``low`` itself."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < low or value > high or (above and value == low):
        limits = f"{'>' if above else '>='} {low:g}" + (f" and <= {high:g}" if high < math.inf else "")
        raise ArgumentError(f"must be {limits}, got {value!r}", name)


def check_count(name: str, value: int, least: int) -> None:
    """Check that a value is a whole number >= ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"must be a whole number >= {least}, got {value!r}", name)


def check_flag(name: str, value: bool) -> None:
    """Check that a value is True or False."""
    if not isinstance(value, bool):
        raise ArgumentError(f"must be True or False, got {value!r}", name)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check that a value is one of the choices."""
    if value not in choices:
        raise ArgumentError(f"must be one of {', '.join(map(repr, choices))}, got {value!r}", name)


def check_batches(name: str, value: Iterable[object] | None) -> None:
    """Check that batches, if they are given, can be iterated again: an iterator or a generator is used up once."""
    if isinstance(value, Iterator) or not (value is None or hasattr(value, "__iter__")):
        kind = type(value).__name__
        raise ArgumentError(f"must be batches that can be iterated again, such as a DataLoader, got a {kind}", name)
