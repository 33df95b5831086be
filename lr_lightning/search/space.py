"""What is searched: config keys, their values and conditions, and how a command line gives them. Pure of Optuna."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException

from lr_lightning.app.error_messages import did_you_mean
from lr_lightning.app.schemas.search import SearchConfig
from lr_lightning.errors import ConfigError, SpaceError

__all__ = [
    "EXTRAS",
    "KINDS",
    "Arguments",
    "Choice",
    "Range",
    "Space",
    "SpaceError",
    "Value",
    "domain_of",
    "override",
    "parse_arguments",
]

Value = float | int | str | bool | None
_RANGES = ("log", "linear", "int", "log_int")
KINDS = frozenset({*_RANGES, "choice"})
"""How the values of a key can be given, besides as a list."""
EXTRAS = ("points", "step", "when")
"""What else an entry can have beside its kind."""
_POINTS = 7  # values of a range on a grid


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included.

    Attributes:
        low: Lowest value.
        high: Highest value.
        log: Whether values are spread evenly in their logarithm.
        integer: Whether only integers count.
        step: Distance of neighbouring values, or None.
        points: Number of values on a grid; None for 7.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False
    step: float | None = None
    points: int | None = None

    def grid(self) -> list[Value]:
        """Return the values on a grid in ascending order, rounded to three digits unless two would become equal."""
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
        """Return the two ends."""
        return [int(self.low), int(self.high)] if self.integer else [self.low, self.high]

    def holds(self, value: Any) -> bool:
        """Tell whether the range contains a value."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and (not self.integer or float(value).is_integer())


@dataclass(frozen=True)
class Choice:
    """A list of values, such as the choices of a config group."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))

    def grid(self) -> list[Value]:
        """Return all values."""
        return list(self.values)

    @property
    def examples(self) -> list[Value]:
        """Return all values."""
        return list(self.values)

    def holds(self, value: Any) -> bool:
        """Tell whether a value is one of them, with its type."""
        return any(value == own and type(value) is type(own) for own in self.values)


def domain_of(key: str, entry: Any) -> Range | Choice:
    """Parse the values of a key as conf/search/*.yaml gives them.

    Raises:
        SpaceError: They are bad; the message names the key, the value and the remedy.
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
            raise SpaceError(f"{where}: {value!r} is no single value. Give numbers, text, true, false or null.")
    if len({(type(v), v) for v in values}) < len(values):
        raise SpaceError(f"{where}: a value is given twice: {list(values)}. Give each once.")
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
    """Format a value as an override for the command line: ``optimizer.lr=0.1``."""
    if value is None:
        return f"{key}=null"
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    if isinstance(value, float):
        return f"{key}={value!r}"  # every digit, since it is the trial's command line
    if isinstance(value, str) and (not _BARE.fullmatch(value) or _MEANS_ELSE.fullmatch(value)):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"{key}='{escaped}'"
    return f"{key}={value}"


_BARE = re.compile(r"[\w./:%+@-]+")
_MEANS_ELSE = re.compile(r"(?i)null|true|false|nan|[+-]?(inf|[\d.]+(e[+-]?\d+)?)")


@dataclass(frozen=True)
class Space:
    """The searched config keys with their values and conditions.

    Attributes:
        keys: The values of each key. A key comes after those that its condition names.
        conditions: The values that other keys must have for a key to be searched.

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
        """Parse a space as conf/search/*.yaml gives it.

        Args:
            node: For each key (dotted or nested) a list of values, or a mapping with one of ``log``, ``linear``,
                ``int``, ``log_int`` (two numbers) or ``choice`` (a list), and optionally ``step``, ``points`` (on a
                grid) and ``when`` (a key and the value or values that it must have).

        Raises:
            SpaceError: The space is empty, or an entry is bad.
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
        """Tell whether the condition of a key is met.

        Args:
            key: The key.
            chosen: The values of this trial so far.
            base: The values of keys that are not searched.
        """
        found = {**base, **chosen}
        return all(
            any(_same(found.get(other), value) for value in values)
            for other, values in self.conditions.get(key, {}).items()
        )

    def grid(self, base: Mapping[str, Value]) -> Iterator[dict[str, Value]]:
        """Yield each point of the grid once; a point leaves out the keys whose condition is not met."""
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
        """Return an upper bound of the number of grid points."""
        return math.prod(len(domain.grid()) for domain in self.keys.values())

    @property
    def condition_keys(self) -> list[str]:
        """Return the keys that conditions name but that are not searched."""
        named = {other for conditions in self.conditions.values() for other in conditions}
        return sorted(named - self.keys.keys())

    def as_dict(self) -> dict[str, Any]:
        """Return the space as plain values, equal for equal spaces."""
        return {
            key: {
                **({"choice": list(d.values)} if isinstance(d, Choice) else {k: v for k, v in vars(d).items() if v}),
                **({"when": {k: list(v) for k, v in self.conditions[key].items()}} if key in self.conditions else {}),
            }
            for key, d in sorted(self.keys.items())
        }

    def check_point(self, point: Mapping[str, Any], where: str) -> None:
        """Check that a given point lies in the space.

        Raises:
            SpaceError: It does not; the message names the key, the value and what it can be.
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
    """Return entries by dotted key; nested ones, which the command line gives, replace dotted ones."""
    found: dict[str, Any] = {}
    for key, entry in sorted(node.items(), key=lambda item: "." not in str(item[0])):
        name = f"{prefix}{key}"
        if entry is None:
            found.pop(name, None)  # search.space.optimizer.lr=null removes a key
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
    """Sort keys after those that their conditions name, and otherwise keep their order."""
    done: list[str] = []
    waiting = list(keys)
    while waiting:
        ready = [key for key in waiting if all(o in done or o not in keys for o in conditions.get(key, {}))]
        if not ready:
            raise SpaceError(f"search.space: the conditions of {', '.join(waiting)} depend on each other in a circle.")
        done.append(ready[0])
        waiting.remove(ready[0])
    return done


SHORT_KEYS = tuple(f.name for f in fields(SearchConfig) if f.name not in ("name", "space", "seed"))
"""Keys of `search` that can be given without that prefix, such as n_trials=20. `seed` is the training's."""

_SPACE = "search.space."


@dataclass(frozen=True)
class Arguments:
    """The arguments of a search.

    Attributes:
        search: Overrides of the search itself.
        space: Entries of the space by key; None removes one.
        training: Overrides for every trial.
        fixed: Keys with one value, which are not searched.
    """

    search: list[str]
    space: dict[str, Any]
    training: list[str]
    fixed: set[str]


def parse_arguments(words: Sequence[str]) -> Arguments:
    """Parse the command line of a search.

    A key with several values is searched, as in `schedule=cosine,wsd`, `optimizer.lr=tag(log,interval(1e-4,1))`
    or `search.space.optimizer.lr={log: [1e-4, 1]}`; `seed=0,1,2` asks for a run with each seed in every trial.

    Raises:
        ConfigError: An argument cannot be read.
    """
    found = Arguments([], {}, [], set())
    parser = OverridesParser.create()
    for word in words:
        if word.startswith("-"):
            raise ConfigError(f"{word}: no such option. Several values of a key are searched: schedule=cosine,wsd.")
        name = word.split("=", 1)[0].lstrip("+")
        if name in SHORT_KEYS:
            word = f"search.{word.lstrip('+')}"
            name = f"search.{name}"
        try:
            override = parser.parse_override(word)
        except HydraException as e:
            raise ConfigError(
                f"cannot read '{word}'. Write key=value, in quotes if it has spaces or brackets: "
                "'search.space.optimizer.lr={log: [1e-4, 1]}'."
            ) from e
        if name.startswith(_SPACE):
            found.space[name.removeprefix(_SPACE)] = None if override.is_delete() else _plain(override.value())
        elif name == "search" or name.startswith("search."):
            if override.is_sweep_override():
                raise ConfigError(f"{name}: takes one value here; a list is written {name}=[a,b].")
            found.search.append(word)
        elif name == "hydra" or name.startswith("hydra."):
            raise ConfigError(f"{name}: a search is not run by Hydra. Leave it out.")
        elif override.is_sweep_override():
            _add_sweep(found, name, override)
        elif isinstance(value := _plain(override.value()), dict) and value.keys() & KINDS:
            found.space[name] = value
            found.fixed.discard(name)
        else:
            found.training.append(word)
            if not override.is_delete():
                found.fixed.add(name)
                found.space.pop(name, None)  # the last argument for a key counts
    return found


def _add_sweep(found: Arguments, name: str, override: Override) -> None:
    entry = _entry(name, override.value())
    if name != "seed":
        found.space[name] = entry
        found.fixed.discard(name)
        found.training[:] = [word for word in found.training if word.split("=", 1)[0].lstrip("+") != name]
        return
    if not isinstance(entry, list):
        raise ConfigError("seed: give the seeds of a trial as a list, such as search.seeds=[0,1,2].")
    found.search.append(f"search.seeds=[{','.join(map(str, entry))}]")


def _entry(name: str, sweep: Any) -> Any:
    if isinstance(sweep, ChoiceSweep):
        return [_plain(value) for value in sweep.list]
    if isinstance(sweep, IntervalSweep):
        ends = [sweep.start, sweep.end]
        integer = all(isinstance(v, int) for v in ends)
        kind = ("log_int" if integer else "log") if "log" in sweep.tags else ("int" if integer else "linear")
        return {kind: ends}
    if isinstance(sweep, RangeSweep):
        start, stop, step = (float(cast(float, v)) for v in (sweep.start, sweep.stop, sweep.step))
        if step == 0 or (stop - start) / step <= 0:
            raise ConfigError(f"{name}: range({start:g},{stop:g},{step:g}) is empty. Give range(first,beyond,step).")
        values = [start + i * step for i in range(math.ceil((stop - start) / step))]
        return [int(v) if float(v).is_integer() else v for v in values]
    raise ConfigError(f"{name}: a search cannot use {type(sweep).__name__}. Give a list of values or an interval.")


def _plain(value: Any) -> Any:
    """Return Hydra's value as YAML would give it; text such as 1e-4 becomes a number."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, dict):
        return {str(_plain(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value
