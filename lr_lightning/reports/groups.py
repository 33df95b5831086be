"""Runs of one group taken together, and the groups set against each other."""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from posixpath import commonprefix

import numpy as np

from lr_lightning.diagnosis.comparison import GroupDifference, compare_groups
from lr_lightning.diagnosis.cost import Reach, median_time
from lr_lightning.diagnosis.statistics import Mean, mean_ci
from lr_lightning.reports.run_metrics import Measured, of_data_set, value_of

# --- Whether runs are of several data sets: then no mean over them, and no winner among them, means anything.

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


_MANY = 12  # groups beyond which only the leading one is compared with the others
_NOT_COMPARED = ("tracking.", "output_root")
"""Params that say where a run is kept, not what it does."""


@dataclass(eq=False)
class Group:
    """Runs that share a value of what is compared.

    Attributes:
        name: That value.
        runs: All of them, whatever became of them.
        data_set: Which one they are of, where the runs compared are of several.
    """

    name: str
    runs: list[Measured] = field(default_factory=list)
    data_set: str = ""

    @property
    def counted(self) -> list[Measured]:
        """Those that came to their end and have the objective."""
        return [m for m in self.runs if m.counts]

    @property
    def diverged(self) -> list[Measured]:
        """Those that diverged."""
        return [m for m in self.runs if m.state == "diverged"]

    def units(self, value: Callable[[Measured], float]) -> dict[str, float]:
        """One value for each seed, the mean over its runs; a run without a seed stands for itself."""
        return _by_seed((m, value(m)) for m in self.counted if math.isfinite(value(m)))

    def results(self, worst: float) -> dict[str, float]:
        """The objective of each seed, as it is compared: a seed of which a run diverged has the worst there is.

        Args:
            worst: ``-inf`` or ``inf``.
        """
        lost = ((m, worst) for m in self.diverged)
        return _by_seed([*((m, m.best) for m in self.counted if math.isfinite(m.best)), *lost])

    def mean(self, value: Callable[[Measured], float]) -> Mean:
        """Mean and interval over seeds."""
        return mean_ci([*self.units(value).values()])

    @property
    def states(self) -> str:
        """What became of the runs that are not counted: "1 diverged, 2 running"."""
        lost = Counter(m.state if m.state != "finished" else "without the metric" for m in self.runs if not m.counts)
        return ", ".join(f"{count} {state}" for state, count in sorted(lost.items()))

    @property
    def verdicts(self) -> str:
        """The runs' own verdicts, counted."""
        found = Counter(m.verdict for m in self.counted if m.verdict)
        return ", ".join(f"{count}× {verdict}" for verdict, count in found.most_common())

    def reaches(self, which: Callable[[Measured], Reach | None]) -> list[Reach]:
        """The times to the target of every run that has the metric, finished or not."""
        return [reach for m in self.runs if (reach := which(m)) is not None]

    def time_to_target(self, which: Callable[[Measured], Reach | None], form: str) -> str:
        """The median over runs and how many reached it, the censored ones shown as such."""
        reaches = self.reaches(which)
        if not reaches:
            return "–"
        median = median_time(reaches)
        text = form.format(median) if math.isfinite(median) else "not reached by half"
        missed = [r for r in reaches if not r.reached]
        if not missed:
            return f"{text} (all {len(reaches)})"
        longest = max((r.time for r in missed if math.isfinite(r.time)), default=math.nan)
        beyond = f", {len(missed)} censored" + (f" at > {form.format(longest)}" if math.isfinite(longest) else "")
        return f"{text} ({len(reaches) - len(missed)} of {len(reaches)}{beyond})"


def _by_seed(values: Iterable[tuple[Measured, float]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for m, value in values:
        found.setdefault(m.seed or f"run {m.run.id}", []).append(value)
    return {seed: float(np.mean(several)) for seed, several in found.items()}


@dataclass(eq=False)
class Outcome:
    """Everything that is said about the groups.

    Attributes:
        objective: The metric that decides, or None.
        groups: Those of one data set together; best mean first, those without a counted run last.
        comparisons: Of pairs of groups, both of one data set.
        varying: Params that differ between runs, name to the values there are.
        warnings: What makes the comparison less than it seems.
        higher_is_better: Which direction of the objective is better.
        mixed: That the runs are of several data sets, which, and what to do; or nothing.
    """

    objective: str | None
    groups: list[Group]
    comparisons: list[GroupDifference]
    varying: dict[str, list[str]]
    warnings: list[str]
    higher_is_better: bool = True
    mixed: str = ""

    @property
    def of_each_data_set(self) -> dict[str, "Outcome"]:
        """What is said about the groups of each data set; where there is one, about all, under no name."""
        found = {}
        for data_set, groups in by_data_set(self.groups).items():
            own = {group.name for group in groups}
            comparisons = [c for c in self.comparisons if c.better in own]
            found[data_set] = replace(self, groups=groups, comparisons=comparisons, mixed="")
        return found


def by_data_set(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """The groups of each data set, in their order."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.data_set, []).append(group)
    return found


def compare_measured(
    measured: Sequence[Measured],
    objective: str | None,
    against: str | None,
    *,
    higher_is_better: bool = True,
    mixed: str = "",
) -> Outcome:
    """Group measured runs and compare the groups by the best value of the objective.

    A run that diverged is in no mean, but it counts: of its pair it loses (see
    :func:`~lr_lightning.diagnosis.comparison.compare_groups`). One that failed tells nothing of its rate and
    is left out. What is said of one data set's groups rests on its runs alone, the correction for several comparisons
    included.

    Args:
        measured: The runs.
        objective: The metric that decides, or None.
        against: A group chosen beforehand, or None; of several data sets, that group of each, by the name it would have
            if there were one.
        higher_is_better: Which direction of the objective is better.
        mixed: What is to be said of several data sets, if the runs are of several.
    """
    by_name: dict[str, Group] = {}
    for m in measured:
        by_name.setdefault(m.group, Group(m.group, data_set=m.data_set)).runs.append(m)
    sign = 1.0 if higher_is_better else -1.0

    def rank(group: Group) -> tuple[str, bool, float, str]:
        mean = group.mean(lambda m: m.best).mean
        return group.data_set, math.isnan(mean), 0.0 if math.isnan(mean) else -sign * mean, group.name

    groups = sorted(by_name.values(), key=rank)
    comparisons: list[GroupDifference] = []
    for data_set, some in by_data_set(groups).items():
        comparisons += compare_groups(
            {group.name: group.results(-sign * math.inf) for group in some} if objective else {},
            higher_is_better=higher_is_better,
            against=None if against is None else of_data_set(against, data_set),
            leader_only=len(some) > _MANY,
        )
    varying = varying_params(measured)
    return Outcome(objective, groups, comparisons, varying, _warnings(groups, varying), higher_is_better, mixed)


def varying_params(measured: Sequence[Measured]) -> dict[str, list[str]]:
    """The params that differ between runs, a run without one included."""
    keys = sorted({key for m in measured for key in m.run.params if not key.startswith(_NOT_COMPARED)})
    keys = [key for key in keys if not key.endswith("._target_")]  # its choice has a name beside it
    found = {key: sorted({m.run.params.get(key, "–") for m in measured}) for key in keys}
    return {key: values for key, values in found.items() if len(values) > 1}


def _warnings(groups: list[Group], varying: dict[str, list[str]]) -> list[str]:
    warnings = []
    inside: dict[str, int] = {}
    for group in groups:
        for key in varying:
            values = {m.run.params.get(key, "–") for m in group.counted}
            if key.rsplit(".", 1)[-1] not in ("seed", "split_seed") and len(values) > 1:
                inside[key] = max(inside.get(key, 0), len(values))
    if inside:
        listed = ", ".join(f"{key} ({count} values)" for key, count in list(inside.items())[:6])
        warnings.append(
            f"Runs of one group also differ in {listed}. Their mean is over those too; group by them as well, "
            "or leave some out (scripts/compare.py --by, --filter)."
        )
    for group in groups:
        lengths = [m.steps for m in group.counted if math.isfinite(m.steps)]
        if lengths and min(lengths) < max(lengths):
            warnings.append(f"{group.name}: the runs have {min(lengths):,.0f} to {max(lengths):,.0f} steps.")
    for data_set, some in by_data_set(groups).items():
        ends = {round(group.mean(lambda m: m.steps).mean) for group in some if group.mean(lambda m: m.steps).n}
        if len(ends) > 1:
            warnings.append(
                f"The groups{f' of {data_set}' if data_set else ''} were trained for different lengths, "
                f"{min(ends):,} to {max(ends):,} steps: look at accuracy against cost."
            )
    return warnings + _lost(groups)


def _lost(groups: list[Group]) -> list[str]:
    return [
        f"{group.name}: {len(group.counted)} of {len(group.runs)} runs are in its means ({group.states})."
        for group in groups
        if group.states
    ]
