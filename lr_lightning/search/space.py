"""What is searched: config keys, their values, and the conditions between them. Optuna is not imported here."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lr_lightning.app.errors import did_you_mean
from lr_lightning.search.domains import EXTRAS, KINDS, Choice, Range, SpaceError, Value, domain_of

__all__ = ["Space"]


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
            keys[key] = domain_of(key, entry)
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
                raise SpaceError(f"{where}.{key}: {value!r} is not in search.space, which has: {domain}.")


def _same(a: Value, b: Value) -> bool:
    return a == b or (a is not None and b is not None and str(a) == str(b))


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Entries by dotted key. Those written with dots come first: what the command line nests replaces them."""
    found: dict[str, Any] = {}
    for key, entry in sorted(node.items(), key=lambda item: "." not in str(item[0])):
        name = f"{prefix}{key}"
        if entry is None:
            found.pop(name, None)  # search.space.optimizer.lr=null takes a key out
        elif isinstance(entry, Mapping) and not entry.keys() & {*KINDS, *EXTRAS}:
            for inner, value in _flat(entry, f"{name}.").items():
                found[inner] = value
        else:
            found[name] = entry
    return {key: value for key, value in found.items() if value is not None}


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
