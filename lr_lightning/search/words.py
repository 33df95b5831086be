"""A search's command line: which words are the search's own, which span the space, which are every trial's."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException

from lr_lightning.app.errors import ConfigError
from lr_lightning.app.schemas.search import SearchConfig
from lr_lightning.search.domains import KINDS

__all__ = ["Words", "parse"]

SHORT = tuple(f.name for f in fields(SearchConfig) if f.name not in ("name", "space", "seed"))
"""Keys of `search` that may be given without it in front: n_trials=20. `seed` is the training's."""

_SPACE = "search.space."


@dataclass(frozen=True)
class Words:
    """A command line, sorted.

    Attributes:
        search: Overrides of the search itself.
        space: Entries of the space, by key; None takes one out.
        training: What every trial is started with.
        fixed: Keys that were given one value: they are not searched.
    """

    search: list[str]
    space: dict[str, Any]
    training: list[str]
    fixed: set[str]


def parse(words: Sequence[str]) -> Words:
    """Sort a command line.

    A key with several values is searched, as in `schedule=cosine,wsd`, `optimizer.lr=tag(log,interval(1e-4,1))`
    or `search.space.optimizer.lr={log: [1e-4, 1]}`; `seed=0,1,2` asks for a run with each in every trial.

    Raises:
        ConfigError: A word cannot be read.
    """
    found = Words([], {}, [], set())
    parser = OverridesParser.create()
    for word in words:
        if word.startswith("-"):
            raise ConfigError(f"{word}: no such option. Several values of a key are searched: schedule=cosine,wsd.")
        name = word.split("=", 1)[0].lstrip("+")
        if name in SHORT:
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
                found.space.pop(name, None)  # the last word on a key counts
    return found


def _add_sweep(found: Words, name: str, override: Override) -> None:
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
    raise ConfigError(f"{name}: a search does not take {type(sweep).__name__}. Give a list of values or an interval.")


def _plain(value: Any) -> Any:
    """Hydra's value as YAML would give it; words that are numbers with an exponent become numbers."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, dict):
        return {str(_plain(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value
