"""Whether runs are of several data sets: then no mean over them, and no winner, means anything."""

import re
from collections import Counter
from collections.abc import Sequence

from lr_lightning.reports.measure import Measured, value_of

_NAME = "data.name"
_KEYS = (_NAME, "data.path", "data.subset", "data.root", "data.train", "data.val", "data.test")
"""Params that say which images a run had; the choice of a data set alone may stand for any folder."""
_SAME = "dataset.fingerprint"
_MOST = 6


def mixed(measured: Sequence[Measured], by: Sequence[str], filter_string: str) -> str:
    """That the runs which results come from are of several data sets, which, and how to compare them apart.

    Args:
        measured: The runs. One that does not say its data set is taken to have that of the others.
        by: What makes the groups; by a data set that is asked for, runs may differ.
        filter_string: What was asked for already.

    Returns:
        Nothing where they are of one data set, or were to be compared by it.
    """
    runs = [m.run for m in measured if m.counts or m.state in ("diverged", "pruned")]
    sets = {run.id: tuple(run.params.get(key, "") for key in _KEYS) for run in runs}
    known = [run for run in runs if any(sets[run.id])]
    asked = [key for key in by if key in ("data", _SAME, "dataset.name", *_KEYS)]
    apart: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for run in known:
        apart.setdefault(tuple(value_of(run, key) for key in asked), set()).add(sets[run.id])
    fingerprints = {run.params.get(_SAME, "") for run in known}
    moved = len(fingerprints) == 1 and "" not in fingerprints  # the same images, in another place
    if moved or all(len(found) == 1 for found in apart.values()):
        return ""
    counts = Counter(sets[run.id] for run in known)
    named = len({one[0] for one in counts}) == len(counts)
    differ = [_NAME] if named else [key for i, key in enumerate(_KEYS) if len({one[i] for one in counts}) > 1]
    labels = [f"{_label(one, differ)} ({count} run{'s' * (count > 1)})" for one, count in counts.most_common(_MOST)]
    more = [f"{len(counts) - _MOST} more"] * (len(counts) > _MOST)
    example = next(text for one, _ in counts.most_common() if (text := _filter(one, differ)))
    wanted = f"{filter_string} and {example}" if filter_string else example
    return (
        f"No winner can be named: the runs are of {len(counts)} data sets, {', '.join([*labels, *more])}, and means "
        f"over several say nothing of any. Compare one at a time, scripts/compare.py --filter {_in_quotes(wanted)}, "
        f"or group by it: --by {','.join([*differ, *(key for key in by if key not in differ)])}"
    )


def _label(one: tuple[str, ...], differ: Sequence[str]) -> str:
    places = [f"{key}={value}" for key, value in zip(_KEYS, one, strict=True) if value and key in differ]
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
