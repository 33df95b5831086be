"""What is searched: config keys, their values and conditions, and how a command line gives them. Pure of Optuna."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeGuard, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString
from hydra.errors import HydraException

from lr_lightning.app.error_messages import did_you_mean
from lr_lightning.app.schemas.search import SearchConfig
from lr_lightning.errors import ConfigError, SpaceError

Value = float | int | str | bool | None
_RANGES = ("log", "linear", "int", "log_int")
KINDS = (*_RANGES, "choice")
"""How the values of a key can be given, besides as a list."""
_ENTRY = (*KINDS, "points", "step", "when")
_POINTS = 7  # values of a range on a grid


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; ``points`` is their number on a grid, None for 7."""

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
            values = [self._at(i / (count - 1)) for i in range(count)] if count > 1 else [self._at(0.5)]
        if self.integer:
            return list(dict.fromkeys(map(round, values)))
        values = [self.clip(value) for value in values]
        short = dict.fromkeys(self.clip(float(f"{value:.3g}")) for value in values)
        return list(short if len(short) == len(values) else dict.fromkeys(values))

    def __str__(self) -> str:
        return f"a number in {self.low:g}..{self.high:g}"

    def clip(self, value: float) -> float:
        """Return the nearest number between the ends."""
        return min(self.high, max(self.low, value))

    def short(self, value: float) -> float:
        """Round a sampled value to four digits. Values with up to eight digits were given by the user and stay."""
        return value if value == float(f"{value:.8g}") else self.clip(float(f"{value:.4g}"))

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
        return _is_number(value) and self.low <= value <= self.high and (not self.integer or float(value).is_integer())


@dataclass(frozen=True)
class Choice:
    """A list of values, such as the choices of a config group."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))

    def grid(self) -> list[Value]:
        """Return all values."""
        return list(self.values)

    examples = property(grid)

    def holds(self, value: Any) -> bool:
        """Tell whether a value, with its type, is one of the key's values."""
        return any(value == own and type(value) is type(own) for own in self.values)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _domain(where: str, entry: Any) -> Range | Choice:
    """Parse the values of a key as conf/search/*.yaml gives them."""
    if not isinstance(entry, Mapping):
        return _choice(where, entry if _is_list(entry) else [entry])
    for name in entry:
        if name not in _ENTRY:
            close = did_you_mean(str(name), _ENTRY)
            raise SpaceError(f"{where}: there is no '{name}'.{close} Known: {', '.join(_ENTRY)}.")
    kinds = [name for name in KINDS if name in entry]
    if len(kinds) != 1:
        got = ", ".join(kinds) or "none"
        raise SpaceError(
            f"{where}: needs one of {', '.join(KINDS)}, got {got}. Write a list of values, or {{log: [1e-4, 1]}}."
        )
    return _choice(where, entry["choice"]) if kinds == ["choice"] else _range(where, kinds[0], entry)


def _choice(where: str, values: Any) -> Choice:
    if not _is_list(values) or not values:
        raise SpaceError(f"{where}: needs a list of one or more values, got {values!r}.")
    for value in values:
        if not isinstance(value, str | int | float | bool | None):
            raise SpaceError(f"{where}: {value!r} is no single value. Give numbers, text, true, false or null.")
    if len({(type(v), v) for v in values}) < len(values):
        raise SpaceError(f"{where}: a value is given twice: {list(values)}. Give each once.")
    return Choice(tuple(values))


def _range(where: str, kind: str, entry: Mapping[str, Any]) -> Range:
    ends, step, points = entry[kind], entry.get("step"), entry.get("points")
    log, integer = kind.startswith("log"), kind.endswith("int")
    at = f"{where}.{kind}"
    if not _is_list(ends) or len(ends) != 2 or not all(_is_number(v) and math.isfinite(v) for v in ends):
        raise SpaceError(f"{at}: needs two finite numbers, such as [1e-4, 1], got {ends!r}.")
    low, high = map(float, ends)
    if low >= high:
        raise SpaceError(f"{at}: the first must be below the second, got {list(ends)}.")
    if log and low <= 0:
        hint = f"Give [{high / 1e4:g}, {high:g}] for instance, or use {'int' if integer else 'linear'}."
        raise SpaceError(f"{at}: a logarithm needs numbers above 0, got {list(ends)}. {hint}")
    if integer and not (low.is_integer() and high.is_integer()):
        raise SpaceError(f"{at}: needs integers, got {list(ends)}.")
    good = _is_number(step) and step > 0 and not log and (not integer or float(step).is_integer())
    if step is not None and not good:
        what = "an integer of 1 or more" if integer else "a number above 0"
        raise SpaceError(f"{where}.step: must be {what}, of linear or int, got {step!r}.")
    if points is not None and (not isinstance(points, int) or isinstance(points, bool) or points < 1):
        raise SpaceError(f"{where}.points: must be 1 or more, got {points!r}.")
    return Range(low, high, log, integer, step, points)


@dataclass(frozen=True)
class Space:
    """The searched config keys with their values and conditions. A key comes after those that its condition names.

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
        """Parse a space as conf/search/*.yaml gives it, with dotted or nested keys."""
        entries = _flat(node)
        if not entries:
            raise SpaceError(
                "search.space: is empty. Give a key, such as 'search.space.optimizer.lr={log: [1e-4, 1]}'."
            )
        keys = {key: _domain(f"search.space.{key}", entry) for key, entry in entries.items()}
        conditions = {
            key: _conditions(key, entry["when"])
            for key, entry in entries.items()
            if isinstance(entry, Mapping) and entry.get("when")
        }
        return Space({key: keys[key] for key in _ordered(keys, conditions)}, conditions)

    def active(self, key: str, chosen: Mapping[str, Value], base: Mapping[str, Value]) -> bool:
        """Tell whether the condition of a key is met by the values chosen so far and by the keys not searched."""
        found = {**base, **chosen}
        return all(
            any(_same(found.get(other), value) for value in values)
            for other, values in self.conditions.get(key, {}).items()
        )

    def point(self, values: Mapping[str, Value], base: Mapping[str, Value]) -> dict[str, Value]:
        """Return the values whose condition is met, in the order of the space."""
        point: dict[str, Value] = {}
        for key in self.keys:
            if key in values and self.active(key, point, base):
                point[key] = values[key]
        return point

    def grid(self, base: Mapping[str, Value]) -> Iterator[dict[str, Value]]:
        """Yield each point of the grid once; a point leaves out the keys whose condition is not met."""
        seen: set[tuple[tuple[str, Value], ...]] = set()
        for values in itertools.product(*(domain.grid() for domain in self.keys.values())):
            point = self.point(dict(zip(self.keys, values, strict=True)), base)
            if (mark := tuple(point.items())) not in seen:
                seen.add(mark)
                yield point

    def middle(self, base: Mapping[str, Value]) -> dict[str, Value]:
        """Return the point in the middle of the space."""
        grids = {key: domain.grid() for key, domain in self.keys.items()}
        return self.point({key: values[len(values) // 2] for key, values in grids.items()}, base)

    def size(self) -> int:
        """Return an upper bound of the number of grid points."""
        return math.prod(len(domain.grid()) for domain in self.keys.values())

    @property
    def condition_keys(self) -> list[str]:
        """Return the keys that conditions name but that are not searched."""
        return sorted({other for named in self.conditions.values() for other in named} - self.keys.keys())

    def as_dict(self) -> dict[str, Any]:
        """Return the space as plain values, equal for equal spaces."""
        return {
            key: {
                **({"choice": list(d.values)} if isinstance(d, Choice) else {k: v for k, v in vars(d).items() if v}),
                **({"when": {k: list(v) for k, v in self.conditions[key].items()}} if key in self.conditions else {}),
            }
            for key, d in sorted(self.keys.items())
        }

    def check_value(self, key: str, value: Any, where: str) -> None:
        """Refuse a given value that is not in the space."""
        if key not in self.keys:
            close = did_you_mean(key, self.keys)
            raise SpaceError(f"{where}: '{key}' is not searched.{close} Keys: {', '.join(self.keys)}.")
        if not self.keys[key].holds(value):
            raise SpaceError(f"{where}.{key}: {value!r} is not in search.space, which has: {self.keys[key]}.")


def _same(a: Value, b: Value) -> bool:
    return a == b or (a is not None and b is not None and str(a) == str(b))


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return entries by dotted key; nested ones, which the command line gives, replace dotted ones."""
    found: dict[str, Any] = {}
    for key, entry in sorted(node.items(), key=lambda item: "." not in str(item[0])):
        name = f"{prefix}{key}"
        if isinstance(entry, Mapping) and not entry.keys() & set(_ENTRY):
            found |= _flat(entry, f"{name}.")
        else:
            found[name] = entry
    return {key: entry for key, entry in found.items() if entry is not None}  # ...lr=null removes a key


def _conditions(key: str, when: Any) -> dict[str, tuple[Value, ...]]:
    flat = _flat(when) if isinstance(when, Mapping) else {}
    if not flat:
        raise SpaceError(f"search.space.{key}.when: needs a key and its value, {{optimizer: sgd}} say, got {when!r}.")
    return {other: tuple(values) if _is_list(values) else (values,) for other, values in flat.items()}


def _ordered(keys: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sort keys after those that their conditions name, and otherwise keep their order."""
    done: list[str] = []
    waiting = list(keys)
    while waiting:
        ready = [key for key in waiting if not conditions.get(key, {}).keys() & set(waiting)]
        if not ready:
            raise SpaceError(f"search.space: the conditions of {', '.join(waiting)} depend on each other in a circle.")
        done.append(ready[0])
        waiting.remove(ready[0])
    return done


_SHORT_KEYS = {f.name for f in fields(SearchConfig)} - {"name", "space", "seed"}
"""Keys of `search` that can be given without that prefix, such as n_trials=20. `seed` is the training's."""
_SPACE = "search.space."


@dataclass(frozen=True)
class Arguments:
    """A search's arguments: overrides of `search`, entries of the space (None removes one), overrides of trials."""

    search: list[str] = field(default_factory=list)
    space: dict[str, Any] = field(default_factory=dict)
    training: list[Override] = field(default_factory=list)

    def add(self, given: Override) -> None:
        """Add an argument; the last one for a key counts."""
        name, entry = given.key_or_group, _entry(given)
        if name.startswith(_SPACE):
            self.space[name.removeprefix(_SPACE)] = entry
        elif name == "search" or name.startswith("search."):
            if given.is_sweep_override():
                raise ConfigError(f"{name}: takes one value here; a list is written {name}=[a,b].")
            self.search.append(str(given.input_line))
        elif name == "hydra" or given.is_hydra_override():
            raise ConfigError(f"{name}: a search is not run by Hydra. Leave it out.")
        elif name == "seed" and given.is_sweep_override():
            if not isinstance(entry, list):
                raise ConfigError("seed: give the seeds of a trial as a list, such as search.seeds=[0,1,2].")
            self.search.append(f"search.seeds=[{','.join(map(str, entry))}]")
        elif given.is_sweep_override() or (isinstance(entry, dict) and entry.keys() & set(KINDS)):
            self.space[name] = entry
            self.training[:] = [other for other in self.training if other.key_or_group != name]
        else:
            self.training.append(given)
            if not given.is_delete():
                self.space.pop(name, None)


def parse_arguments(words: Sequence[str]) -> Arguments:
    """Parse the command line of a search; a key with several values is searched, except for `seed=0,1,2`."""
    found, parser = Arguments(), OverridesParser.create()
    for word in words:
        if word.startswith("-"):
            raise ConfigError(f"{word}: no such option. Several values of a key are searched: schedule=cosine,wsd.")
        bare = word.lstrip("+")
        try:
            given = parser.parse_override(f"search.{bare}" if bare.split("=", 1)[0] in _SHORT_KEYS else word)
        except HydraException as e:
            hint = range_hint(word) or " Such as 'search.space.optimizer.lr={log: [1e-4, 1]}'."
            raise ConfigError(
                f"cannot read '{word}'. Write key=value, in quotes if it has spaces or brackets.{hint}"
            ) from e
        found.add(given)
    return found


_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_LIKE_A_RANGE = re.compile(rf"([\w.+]+)=[a-z_]*\W?({_NUMBER}) *(?:\.\.+|[:,;-]|to) *({_NUMBER})\W?")


def range_hint(word: str) -> str:
    """Return how a range is written if an argument that was refused looks like one, else an empty text."""
    if (match := _LIKE_A_RANGE.fullmatch(word)) is None:
        return ""
    key, low, high = match.groups()
    interval = f"interval({low},{high})"
    return f" A range is written '{key}=tag(log,{interval})', or '{key}={interval}' if it is even without a logarithm."


def _entry(given: Override) -> Any:
    """Return what conf/search/*.yaml would have in place of an argument."""
    if not given.is_sweep_override():
        return given.value()
    if given.is_interval_sweep():
        sweep = cast(IntervalSweep, given.value())
        ends, log = [sweep.start, sweep.end], "log" in sweep.tags
        if all(isinstance(end, int) for end in ends):
            return {"log_int" if log else "int": ends}
        return {"log" if log else "linear": ends}
    try:
        values = list(given.sweep_iterator(lambda value: value.text if isinstance(value, QuotedString) else value))
    except (HydraException, ValueError):  # a glob, or a range with a step of 0
        values = []
    if not values:
        raise ConfigError(
            f"{given.key_or_group}: {str(given.input_line).partition('=')[2]} is empty, or no values for a search. "
            "Give a list of values, interval(low,high) or range(first,beyond,step)."
        )
    return values
