"""Whether runs are of several data sets: then no mean over them, and no winner among them, means anything."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from posixpath import commonprefix

from lr_lightning.reports.measure import Measured, value_of

_NAME = "data.name"
_KEYS = (_NAME, "data.path", "data.subset", "data.root", "data.train", "data.val", "data.test")
"""Params that say which images a run had; the choice of a data set alone may stand for any folder."""
_SAME = "dataset.fingerprint"
_MOST = 6


def tell_apart(measured: Sequence[Measured], by: Sequence[str], asked: Sequence[str], filter_string: str) -> str:
    """Where the runs which results come from are of several data sets, note that of every run, and say which there are.

    Args:
        measured: The runs. One that does not say its data set is taken to have that of the others, where there is one.
        by: What makes the groups.
        asked: What was asked to make them; by a data set among these, runs may differ. That a multirun varied it is no
            such wish.
        filter_string: What was asked for already.

    Returns:
        Which data sets there are and how to compare them otherwise. Nothing, with nothing noted, where there is one, or
        where they were to be compared by it.
    """
    runs = [m.run for m in measured if _has_results(m)]
    sets = {m.run.id: tuple(m.run.params.get(key, "") for key in _KEYS) for m in measured}
    known = [run for run in runs if any(sets[run.id])]
    wanted = [key for key in asked if key in ("data", _SAME, "dataset.name", *_KEYS)]
    apart: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for run in known:
        apart.setdefault(tuple(value_of(run, key) for key in wanted), set()).add(sets[run.id])
    fingerprints = {run.params.get(_SAME, "") for run in known}
    moved = len(fingerprints) == 1 and "" not in fingerprints  # the same images, in another place
    if moved or all(len(found) == 1 for found in apart.values()):
        return ""
    counts = Counter(sets[run.id] for run in known)
    differ = _telling(counts)
    shared = {key: _folders({one[i] for one in counts}) for i, key in enumerate(_KEYS)}
    for m in measured:
        own = [
            f"…/{value.removeprefix(shared[key])}" if shared[key] and value.startswith(shared[key]) else value
            for key, value in zip(_KEYS, sets[m.run.id], strict=True)
        ]
        m.data_set = _label(own, differ) or "(no data set)"
    labels = [f"{_label(one, differ)} ({count} run{'s' * (count > 1)})" for one, count in counts.most_common(_MOST)]
    more = [f"{len(counts) - _MOST} more"] * (len(counts) > _MOST)
    example = next(text for one, _ in counts.most_common() if (text := _filter(one, differ)))
    narrowed = f"{filter_string} and {example}" if filter_string else example
    return (
        f"The runs are of {len(counts)} data sets, {', '.join([*labels, *more])}: they are grouped by it as well, and "
        "only runs of one data set are compared. To compare one alone: "
        f"scripts/compare.py --filter {_in_quotes(narrowed)} "
        f"(data sets with each other: --by {','.join([*differ, *without(by)])})."
    )


def without(by: Sequence[str]) -> list[str]:
    """What makes the groups beside the data set: all that says where its images are goes with its label."""
    return [key for key in by if key not in ("data", *_KEYS)]


def _has_results(m: Measured) -> bool:
    """Whether a mean, a comparison or a time to a target is over the run."""
    timed = m.steps_to is not None or "summary/target_reached" in m.run.last
    return m.counts or m.state in ("diverged", "pruned") or timed


def _telling(counts: Collection[tuple[str, ...]]) -> list[str]:
    """The one key by which all data sets differ, the first of several, else every key by which some do."""
    values = [len({one[i] for one in counts}) for i in range(len(_KEYS))]
    one = [key for key, count in zip(_KEYS, values, strict=True) if count == len(counts)]
    return one[:1] or [key for key, count in zip(_KEYS, values, strict=True) if count > 1]


def _folders(paths: set[str]) -> str:
    """The leading folders that all of several paths share, which a name of theirs need not repeat."""
    some = [path for path in paths if path]
    return commonprefix(some).rpartition("/")[0] + "/" if len(some) > 1 and "/" in commonprefix(some)[1:] else ""


def _label(one: Sequence[str], differ: Sequence[str]) -> str:
    places = [f"{key}={value}" for key, value in zip(_KEYS, one, strict=True) if value and key in differ]
    if not any((one[0], *places)):  # it lacks what others have: then all it has
        return " ".join(f"{key}={value}" for key, value in zip(_KEYS, one, strict=True) if value)
    return " ".join([one[0], *places[differ[0] == _NAME and bool(one[0]) :]]).strip()


def _filter(one: tuple[str, ...], differ: Sequence[str]) -> str:
    """In MLflow's search language, in which what a run lacks cannot be asked for: nothing where it lacks it all."""
    wanted = [(key, value) for key, value in zip(_KEYS, one, strict=True) if value and key in differ]
    return " and ".join(
        f"params.`{key}` = " + (f'"{value}"' if "'" in value else f"'{value}'") for key, value in wanted
    )


def _in_quotes(text: str) -> str:
    """One word of a shell's command line, with the backticks of the search language as they are."""
    return '"' + re.sub(r'([\\"$`])', r"\\\1", text) + '"'
