"""What is searched: config keys and the values they may take. Pure functions; Optuna is not imported here."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lr_lightning.app.errors import did_you_mean

__all__ = ["KINDS", "Choice", "Range", "Space", "SpaceError", "Value", "override"]

Value = float | int | str | bool | None
_RANGES = ("log", "linear", "int", "log_int")
KINDS = frozenset({*_RANGES, "choice"})
"""How the values of a key may be given, besides a list."""
_EXTRAS = ("points", "step", "when")
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


@dataclass(frozen=True)
class Space:
    """Config keys, each with its values and, where it has some, the conditions under which it is searched.

    Attributes:
        keys: The values of each key. Keys that others depend on come first.
        conditions: For a key, the values that other keys must have.

    Example:
        >>> space = Space.of({
        ...     "optimizer": ["sgd", "adam"],
        ...     "optimizer.momentum": {"linear": [0.5, 0.9], "points": 2, "when": {"optimizer": "sgd"}},
        ... })
        >>> [dict(point) for point in space.grid({})]  # doctest: +NORMALIZE_WHITESPACE
        [{'optimizer': 'sgd', 'optimizer.momentum': 0.5}, {'optimizer': 'sgd', 'optimizer.momentum': 0.9},
         {'optimizer': 'adam'}]
    """

    keys: dict[str, Range | Choice]
    conditions: dict[str, dict[str, tuple[Value, ...]]] = field(default_factory=dict)

    @staticmethod
    def of(node: Mapping[str, Any]) -> "Space":
        """Read a space as it is written in conf/search/*.yaml.

        Args:
            node: For each key (dotted or nested) a list of values, or a mapping with one of ``log``, ``linear``,
                ``int``, ``log_int`` (two numbers) or ``choice`` (a list), and, as wanted, ``step``, ``points`` (on a
                grid) and ``when`` (a key and the value or values it must have).

        Raises:
            SpaceError: It is empty or one of its entries is bad.
        """
        entries = _flat(node)
        if not entries:
            raise SpaceError(
                "search.space: is empty, so there is nothing to search. Give a key, such as "
                "'search.space.optimizer.lr={log: [1e-4, 1]}'."
            )
        keys: dict[str, Range | Choice] = {}
        conditions: dict[str, dict[str, tuple[Value, ...]]] = {}
        for key, entry in entries.items():
            keys[key] = _domain(key, entry)
            if isinstance(entry, Mapping) and entry.get("when"):
                conditions[key] = _conditions(key, entry["when"])
        return Space({key: keys[key] for key in _ordered(keys, conditions)}, conditions)

    def active(self, key: str, chosen: Mapping[str, Value], base: Mapping[str, Value]) -> bool:
        """Whether a key is searched, given the values of those before it.

        Args:
            key: The key.
            chosen: Values of this trial so far.
            base: Values that the keys of conditions have where they are not searched.
        """
        found = {**base, **chosen}
        return all(
            any(_same(found.get(other), value) for value in values)
            for other, values in self.conditions.get(key, {}).items()
        )

    def grid(self, base: Mapping[str, Value]) -> Iterator[dict[str, Value]]:
        """All points of the grid, each once; a key whose condition does not hold is left out."""
        seen: set[tuple[tuple[str, Value], ...]] = set()
        for values in itertools.product(*(domain.grid() for domain in self.keys.values())):
            point: dict[str, Value] = {}
            for key, value in zip(self.keys, values, strict=True):
                if self.active(key, point, base):
                    point[key] = value
            if (mark := tuple(point.items())) not in seen:
                seen.add(mark)
                yield point

    def size(self) -> int:
        """An upper limit of the number of points of the grid."""
        return math.prod(len(domain.grid()) for domain in self.keys.values())

    @property
    def other_keys(self) -> list[str]:
        """Keys that conditions name and that are not searched themselves."""
        named = {other for conditions in self.conditions.values() for other in conditions}
        return sorted(named - self.keys.keys())

    def described(self) -> dict[str, Any]:
        """The space as plain values, equal for equal spaces."""
        return {
            key: {
                **({"choice": list(d.values)} if isinstance(d, Choice) else {k: v for k, v in vars(d).items() if v}),
                **({"when": {k: list(v) for k, v in self.conditions[key].items()}} if key in self.conditions else {}),
            }
            for key, d in sorted(self.keys.items())
        }

    def check_point(self, point: Mapping[str, Any], where: str) -> None:
        """Find values of a given trial that the space does not have.

        Raises:
            SpaceError: With the key, the value and what it may be.
        """
        for key, value in point.items():
            if key not in self.keys:
                raise SpaceError(
                    f"{where}: '{key}' is not searched.{did_you_mean(key, self.keys)} Keys: {', '.join(self.keys)}."
                )
            domain = self.keys[key]
            if not domain.holds(value):
                allowed = (
                    ", ".join(map(str, domain.values))
                    if isinstance(domain, Choice)
                    else f"a number in {domain.low:g}..{domain.high:g}"
                )
                raise SpaceError(f"{where}.{key}: {value!r} is not in search.space, which has: {allowed}.")


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


def _same(a: Value, b: Value) -> bool:
    return a == b or (a is not None and b is not None and str(a) == str(b))


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Entries by dotted key. Those written with dots come first: what the command line nests replaces them."""
    found: dict[str, Any] = {}
    for key, entry in sorted(node.items(), key=lambda item: "." not in str(item[0])):
        name = f"{prefix}{key}"
        if entry is None:
            found.pop(name, None)  # search.space.optimizer.lr=null takes a key out
        elif isinstance(entry, Mapping) and not entry.keys() & {*_RANGES, "choice", *_EXTRAS}:
            for inner, value in _flat(entry, f"{name}.").items():
                found[inner] = value
        else:
            found[name] = entry
    return {key: value for key, value in found.items() if value is not None}


def _domain(key: str, entry: Any) -> Range | Choice:
    where = f"search.space.{key}"
    if isinstance(entry, str | int | float):
        entry = [entry]
    if isinstance(entry, Sequence):
        return _choice(where, entry)
    known = (*_RANGES, "choice", *_EXTRAS)
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


def _conditions(key: str, when: Any) -> dict[str, tuple[Value, ...]]:
    flat = _flat(when) if isinstance(when, Mapping) else {}
    if not flat:
        raise SpaceError(
            f"search.space.{key}.when: needs a key and its value, such as {{optimizer: sgd}}, got {when!r}."
        )
    return {
        other: tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else (values,)
        for other, values in flat.items()
    }


def _ordered(keys: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Keys after those that their conditions name, otherwise as they were written."""
    done: list[str] = []
    waiting = list(keys)
    while waiting:
        ready = [key for key in waiting if all(o in done or o not in keys for o in conditions.get(key, {}))]
        if not ready:
            raise SpaceError(f"search.space: the conditions of {', '.join(waiting)} depend on each other in a circle.")
        done.append(ready[0])
        waiting.remove(ready[0])
    return done
