"""What values a searched key may take: ranges and choices, how they are written, and how a value is typed."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lr_lightning.app.errors import did_you_mean

__all__ = ["EXTRAS", "KINDS", "Choice", "Range", "SpaceError", "Value", "domain_of", "override"]

Value = float | int | str | bool | None
_RANGES = ("log", "linear", "int", "log_int")
KINDS = frozenset({*_RANGES, "choice"})
"""How the values of a key may be given, besides a list."""
EXTRAS = ("points", "step", "when")
"""What may stand beside a kind."""
_POINTS = 7  # of a range on a grid


class SpaceError(ValueError):
    """A space that cannot be searched. Its text names the key, the value and the remedy."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included.

    Attributes:
        low: Lowest value.
        high: Highest value.
        log: Whether they are spread evenly in their logarithm.
        integer: Whether they are integers.
        step: Distance of neighbouring values, or None.
        points: Values of it on a grid, or None for the usual number.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False
    step: float | None = None
    points: int | None = None

    def grid(self) -> list[Value]:
        """Its values on a grid, the lowest first; to three digits, where that keeps them apart."""
        if self.step is not None:
            count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            values = [self.low + i * self.step for i in range(count)]
        else:
            count = self.points or _POINTS
            shares = [i / (count - 1) for i in range(count)] if count > 1 else [0.5]
            values = [self._at(share) for share in shares]
        if self.integer:
            return list(dict.fromkeys(round(value) for value in values))
        values = [self._inside(value) for value in values]
        short = dict.fromkeys(self._inside(float(f"{value:.3g}")) for value in values)
        return list(short if len(short) == len(values) else dict.fromkeys(values))

    def __str__(self) -> str:
        return f"a number in {self.low:g}..{self.high:g}"

    def _inside(self, value: float) -> float:
        return min(self.high, max(self.low, value))

    def _at(self, share: float) -> float:
        if self.log:
            return math.exp(math.log(self.low) * (1 - share) + math.log(self.high) * share)
        return self.low + share * (self.high - self.low)

    @property
    def examples(self) -> list[Value]:
        """Its two ends."""
        return [int(self.low), int(self.high)] if self.integer else [self.low, self.high]

    def holds(self, value: Any) -> bool:
        """Whether a value lies in it."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and (not self.integer or float(value).is_integer())


@dataclass(frozen=True)
class Choice:
    """One of some values, such as the choices of a config group."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))

    def grid(self) -> list[Value]:
        """All of them."""
        return list(self.values)

    @property
    def examples(self) -> list[Value]:
        """All of them."""
        return list(self.values)

    def holds(self, value: Any) -> bool:
        """Whether a value is one of them."""
        return any(value == own and type(value) is type(own) for own in self.values)


def domain_of(key: str, entry: Any) -> Range | Choice:
    """Read the values of a key as they are written in conf/search/*.yaml.

    Raises:
        SpaceError: They are bad: the key, the value and the remedy.
    """
    where = f"search.space.{key}"
    if isinstance(entry, str | int | float):
        entry = [entry]
    if isinstance(entry, Sequence):
        return _choice(where, entry)
    known = (*_RANGES, "choice", *EXTRAS)
    for name in entry:
        if name not in known:
            raise SpaceError(
                f"{where}: there is no '{name}'.{did_you_mean(str(name), known)} Known: {', '.join(known)}."
            )
    kinds = [name for name in (*_RANGES, "choice") if name in entry]
    if len(kinds) != 1:
        raise SpaceError(
            f"{where}: needs one of {', '.join((*_RANGES, 'choice'))}, got {', '.join(kinds) or 'none'}. "
            "Write a list of values, or {log: [1e-4, 1]}."
        )
    kind = kinds[0]
    return _choice(where, entry["choice"]) if kind == "choice" else _range(where, kind, entry)


def _choice(where: str, values: Any) -> Choice:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise SpaceError(f"{where}: needs a list of one or more values, got {values!r}.")
    for value in values:
        if not isinstance(value, str | int | float | bool | None):
            raise SpaceError(f"{where}: {value!r} is no single value. Give numbers, words, true, false or null.")
    if len({(type(v), v) for v in values}) < len(values):
        raise SpaceError(f"{where}: a value stands there twice: {list(values)}. Give each once.")
    return Choice(tuple(values))


def _range(where: str, kind: str, entry: Mapping[str, Any]) -> Range:
    ends = entry[kind]
    numbers = (
        isinstance(ends, Sequence)
        and len(ends) == 2
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in ends)
    )
    if not numbers:
        raise SpaceError(f"{where}.{kind}: needs two finite numbers, such as [1e-4, 1], got {ends!r}.")
    low, high = ends
    log, integer = kind in ("log", "log_int"), kind in ("int", "log_int")
    if low >= high:
        raise SpaceError(f"{where}.{kind}: the first must be below the second, got {list(ends)}.")
    if log and low <= 0:
        raise SpaceError(
            f"{where}.{kind}: a logarithm needs numbers above 0, got {list(ends)}. Give for instance "
            f"[{high / 1e4:g}, {high:g}], or use {'int' if integer else 'linear'}."
        )
    if integer and not all(float(v).is_integer() for v in ends):
        raise SpaceError(f"{where}.{kind}: needs integers, got {list(ends)}.")
    step, points = entry.get("step"), entry.get("points")
    good = isinstance(step, int | float) and not isinstance(step, bool) and step > 0
    if step is not None and (log or not good or (integer and not float(step).is_integer())):
        what = "an integer of 1 or more" if integer else "a number above 0"
        raise SpaceError(f"{where}.step: must be {what}, of linear or int, got {step!r}.")
    if points is not None and (not isinstance(points, int) or isinstance(points, bool) or points < 1):
        raise SpaceError(f"{where}.points: must be 1 or more, got {points!r}.")
    return Range(float(low), float(high), log, integer, step, points)


def override(key: str, value: Value) -> str:
    """A value as an override of the command line: ``optimizer.lr=0.1``."""
    if value is None:
        return f"{key}=null"
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    if isinstance(value, float):
        return f"{key}={value!r}"  # every digit: it is the trial's command line
    if isinstance(value, str) and (not _BARE.fullmatch(value) or _MEANS_ELSE.fullmatch(value)):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"{key}='{escaped}'"
    return f"{key}={value}"


_BARE = re.compile(r"[\w./:%+@-]+")
_MEANS_ELSE = re.compile(r"(?i)null|true|false|nan|[+-]?(inf|[\d.]+(e[+-]?\d+)?)")
