"""Runs taken together as groups, the groups compared with each other, and the data sets they must not mix."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from posixpath import commonprefix

import numpy as np

from lr_lightning.diagnosis.comparison import GroupDifference, Ranking, compare_groups, rank_groups
from lr_lightning.diagnosis.statistics import Mean, mean_ci
from lr_lightning.reports.run_metrics import VAL_LOSS, RunResult, RunState, tag_or_param, with_data_set
from lr_lightning.tracking.keys import short_number

_MANY_GROUPS = 12  # beyond this number only the leading group is compared with the others
_KEYS_LISTED, _VALUES_LISTED = 6, 3  # in the note on runs of one group that differ
# Prefixes of params that say where a run is kept or comes from, not what it does. Earlier versions wrote "study".
_NOT_COMPARED = ("tracking.", "output_root", "fork", "lr_effects", "study")
_DATA_NAME = "data.name"
# Params that identify a run's images; the name alone does not, since ``image_folder`` stands for any folder.
_DATA_KEYS = (_DATA_NAME, "data.path", "data.subset", "data.root", "data.train", "data.val", "data.test")
_FINGERPRINT = "dataset.fingerprint"


@dataclass(eq=False)
class RunGroup:
    """Runs that share the values by which runs are compared."""

    name: str  # those values
    runs: list[RunResult] = field(default_factory=list)  # all, however they ended
    data_set: str = ""  # label of their data set, if there are several

    @property
    def counted(self) -> list[RunResult]:
        """The runs that finished and have the objective."""
        return [r for r in self.runs if r.counts]

    @property
    def diverged(self) -> list[RunResult]:
        """The runs that diverged."""
        return [r for r in self.runs if r.state is RunState.DIVERGED]

    @property
    def not_counted(self) -> str:
        """How the runs that are not counted ended, such as "1 diverged, 2 running"; "" if all are counted."""
        missing = [r.state for r in self.runs if not r.counts]
        lost = Counter("without the metric" if state is RunState.FINISHED else state for state in missing)
        return ", ".join(f"{count} {state}" for state, count in sorted(lost.items()))

    @property
    def verdicts(self) -> str:
        """The runs' own verdicts with their counts."""
        found = Counter(verdict for r in self.counted if (verdict := r.run.tags.get("verdict")))
        return ", ".join(f"{count}× {verdict}" for verdict, count in found.most_common())

    def mean(self, value: Callable[[RunResult], float]) -> Mean:
        """Return the mean over seeds with its interval; several runs of one seed are averaged first."""
        return mean_ci([*_by_seed((r, value(r)) for r in self.counted if math.isfinite(value(r))).values()])

    def results(self, worst: float) -> dict[str, float]:
        """Return the objective of each seed; a seed with a diverged run has the ``worst`` value, -inf or inf."""
        finite = [(r, r.best) for r in self.counted if math.isfinite(r.best)]
        return _by_seed([*finite, *((r, worst) for r in self.diverged)])


def _by_seed(values: Iterable[tuple[RunResult, float]]) -> dict[str, float]:
    """Average the values of each seed; a run without a seed stands for itself, and forks of one run for one."""
    found: dict[str, list[float]] = {}
    for result, value in values:
        found.setdefault(result.seed or f"run {result.trunk or result.run.id}", []).append(value)
    return {seed: several[0] if len(several) == 1 else float(np.mean(several)) for seed, several in found.items()}


@dataclass(frozen=True)
class DataSets:
    """Several data sets that the compared runs are of."""

    labels: dict[str, str]  # of each run's data set, by run id
    counts: tuple[tuple[str, int], ...]  # full label and number of runs with results, most frequent first
    filter_string: str  # admits one data set only, in MLflow's search language
    by: tuple[str, ...]  # what to group by in order to compare the data sets with each other


def find_data_sets(
    results: Sequence[RunResult], by: Sequence[str], asked: Sequence[str], filter_string: str
) -> DataSets | None:
    """Find out whether results come from runs of several data sets, whose means and winners would mean nothing.

    The result is None if there is one data set, or if the runs are to be compared by it: if ``asked``, the part of
    ``by`` that the user asked for, names the data set. A multirun may vary the data set without asking for this
    comparison. If all other runs have one data set, a run that states none counts as one of them. ``filter_string`` is
    in use already.
    """
    sets = {r.run.id: tuple(r.run.params.get(key, "") for key in _DATA_KEYS) for r in results}
    known = [r.run for r in results if _has_results(r) and any(sets[r.run.id])]
    wanted = [key for key in asked if key in ("data", _FINGERPRINT, "dataset.name", *_DATA_KEYS)]
    within: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for run in known:
        within.setdefault(tuple(tag_or_param(run, key) for key in wanted), set()).add(sets[run.id])
    fingerprints = {run.params.get(_FINGERPRINT, "") for run in known}
    moved = len(fingerprints) == 1 and "" not in fingerprints  # the same images in another place
    if moved or all(len(found) == 1 for found in within.values()):
        return None
    counts = Counter(sets[run.id] for run in known)
    differing = _differing_keys(counts)
    folders = [_shared_folder({one[i] for one in counts}) for i in range(len(_DATA_KEYS))]

    def short(one: Sequence[str]) -> list[str]:
        pairs = zip(one, folders, strict=True)
        return [f"…/{v.removeprefix(folder)}" if folder and v.startswith(folder) else v for v, folder in pairs]

    example = next(text for one, _ in counts.most_common() if (text := _filter(one, differing)))
    return DataSets(
        labels={run_id: _label(short(one), differing) or "(no data set)" for run_id, one in sets.items()},
        counts=tuple((_label(one, differing), count) for one, count in counts.most_common()),
        filter_string=f"{filter_string} and {example}" if filter_string else example,
        by=(*differing, *without_data_keys(by)),
    )


def without_data_keys(by: Sequence[str]) -> list[str]:
    """Return the keys that do not identify the data set."""
    return [key for key in by if key not in ("data", *_DATA_KEYS)]


def _has_results(result: RunResult) -> bool:
    """Check whether the run is part of a mean, a comparison or a time to a target."""
    timed = result.steps_to_target is not None or "summary/target_reached" in result.run.last
    return result.counts or result.state in (RunState.DIVERGED, RunState.PRUNED) or timed


def _differing_keys(sets: Collection[tuple[str, ...]]) -> list[str]:
    """Return the first key in which all data sets differ, else every key in which some differ."""
    values = {key: len({one[i] for one in sets}) for i, key in enumerate(_DATA_KEYS)}
    in_all = [key for key, count in values.items() if count == len(sets)]
    return in_all[:1] or [key for key, count in values.items() if count > 1]


def _shared_folder(paths: set[str]) -> str:
    """Return the leading folders that all of several paths share, which labels need not repeat."""
    some = [path for path in paths if path]
    prefix = commonprefix(some)
    return prefix.rpartition("/")[0] + "/" if len(some) > 1 and "/" in prefix[1:] else ""


def _label(one: Sequence[str], differing: Sequence[str]) -> str:
    pairs = [(key, value) for key, value in zip(_DATA_KEYS, one, strict=True) if value]
    places = [f"{key}={value}" for key, value in pairs if key in differing]
    if not any((one[0], *places)):  # the data set lacks what the others differ in: show all it has
        return " ".join(f"{key}={value}" for key, value in pairs)
    return " ".join([one[0], *places[differing[0] == _DATA_NAME and bool(one[0]) :]]).strip()


def _filter(one: tuple[str, ...], differing: Sequence[str]) -> str:
    """Return a filter in MLflow's search language; empty for a group that lacks a param, since no filter finds that."""
    wanted = {key: value for key, value in zip(_DATA_KEYS, one, strict=True) if value and key in differing}
    quotes = {key: '"' if "'" in value else "'" for key, value in wanted.items()}
    return " and ".join(f"params.`{key}` = {quotes[key]}{value}{quotes[key]}" for key, value in wanted.items())


@dataclass(eq=False)
class ComparedGroups:
    """Groups of runs and how they compare."""

    objective: str | None  # the metric that decides
    groups: list[RunGroup]  # by data set, then by their mean, best first; those without a counted run come last
    differences: list[GroupDifference]  # between pairs of groups of one data set
    varying: dict[str, list[str]]  # params that differ between runs, with their values
    warnings: list[str]  # what weakens the comparison
    higher_is_better: bool = True
    data_sets: DataSets | None = None  # None if there is one

    @property
    def testable(self) -> list[GroupDifference]:
        """The differences over more than one seed; one seed allows no test."""
        return [d for d in self.differences if d.n > 1]

    @property
    def ranking(self) -> Ranking:
        """What the comparison of the groups of one data set shows."""
        counted = [group.name for group in self.groups if group.counted] if self.objective else []
        return rank_groups(counted, self.differences)

    def by_data_set(self) -> dict[str, "ComparedGroups"]:
        """Return the part of each data set, by its label; the label is "" if there is only one data set."""
        found = {}
        for data_set, groups in _by_data_set(self.groups).items():
            differences = [d for d in self.differences if d.better in {group.name for group in groups}]
            found[data_set] = replace(self, groups=groups, differences=differences, data_sets=None)
        return found


def _by_data_set(groups: Iterable[RunGroup]) -> dict[str, list[RunGroup]]:
    """Split groups that are sorted by data set."""
    return {data_set: [*some] for data_set, some in groupby(groups, attrgetter("data_set"))}


def group_and_compare(
    results: Sequence[RunResult],
    objective: str | None,
    against: str | None,
    *,
    higher_is_better: bool = True,
    data_sets: DataSets | None = None,
    same_within: float | None = None,
) -> ComparedGroups:
    """Group runs and compare the groups by the best value of the objective.

    A run that diverged is in no mean, but it counts as a loss (see
    :func:`~lr_lightning.diagnosis.comparison.compare_groups`). A run that failed says nothing about its learning rate
    and is left out. Groups of one data set are compared by its runs alone, and the correction for several comparisons
    is made for each data set by itself.

    ``against`` is the name, without the data set, of the only group that others are compared with.
    """
    by_name: dict[str, RunGroup] = {}
    for r in results:
        by_name.setdefault(r.group, RunGroup(r.group, data_set=r.data_set)).runs.append(r)
    sign = 1.0 if higher_is_better else -1.0

    def rank(group: RunGroup) -> tuple[str, bool, float, float, str]:
        mean, loss = (group.mean(value).mean for value in (lambda r: r.best, _lowest_loss))
        known = not math.isnan(mean)
        place = -sign * mean if known else 0.0
        # A tie is decided by the validation loss, as in a search.
        return group.data_set, not known, place, math.inf if math.isnan(loss) else loss, group.name

    groups = sorted(by_name.values(), key=rank)
    differences: list[GroupDifference] = []
    for data_set, some in _by_data_set(groups).items():
        differences += compare_groups(
            {group.name: group.results(-sign * math.inf) for group in some} if objective else {},
            higher_is_better=higher_is_better,
            against=None if against is None else with_data_set(against, data_set),
            leader_only=len(some) > _MANY_GROUPS,
            same_within=same_within,
        )
    varying = _varying_params(results)
    warnings = [*_mixture_warnings(groups, varying), *_length_warnings(groups)]
    warnings += [family.describe() for family in fork_families(results)]
    warnings += [
        f"{group.name}: {len(group.counted)} of {len(group.runs)} runs are in its means ({group.not_counted})."
        for group in groups
        if group.not_counted
    ]
    return ComparedGroups(objective, groups, differences, varying, warnings, higher_is_better, data_sets)


@dataclass(frozen=True)
class ForkFamily:
    """Runs that were forked from one run, and that run if it is among those compared."""

    trunk: RunResult | None
    forks: list[RunResult]  # by their steps

    @property
    def shared_steps(self) -> int:
        """The steps of the forked run: all, or those that the forks are known to share."""
        known = [result.fork_step for result in self.forks]
        return max([*known, int(self.trunk.steps)] if self.trunk and math.isfinite(self.trunk.steps) else known)

    def describe(self) -> str:
        """Say that the forks are one seed, and what they cost together and would have cost apart."""
        own = sum(int(r.steps) - r.fork_step for r in self.forks)
        apart = sum(int(r.steps) for r in self.forks) + (self.shared_steps if self.trunk else 0)
        origins = {r.run.params.get("fork", "").rpartition("@")[0] or r.trunk for r in self.forks}
        name = self.trunk.run.name if self.trunk else " and ".join(sorted(origins))
        return (
            f"{len(self.forks)} runs are forks of {name}: they share its steps, so they are no independent seeds and "
            f"count as one. Together they took {self.shared_steps + own:,} steps, {self.shared_steps:,} before the "
            f"forks and {own:,} after them; trained apart they would have taken {apart:,} steps."
        )


def fork_families(results: Sequence[RunResult]) -> list[ForkFamily]:
    """Return the runs that share a beginning: two forks or more, or a fork and the run that was forked."""
    by_id = {r.run.id: r for r in results}
    by_trunk: dict[str, list[RunResult]] = {}
    for r in sorted((r for r in results if r.trunk and math.isfinite(r.steps)), key=attrgetter("steps")):
        by_trunk.setdefault(r.trunk, []).append(r)
    families = [ForkFamily(by_id.get(trunk), forks) for trunk, forks in by_trunk.items()]
    return [family for family in families if family.trunk or len(family.forks) > 1]


def _lowest_loss(result: RunResult) -> float:
    curve = result.curve(VAL_LOSS)
    return math.nan if curve is None else float(curve.value.min())


def _varying_params(results: Sequence[RunResult]) -> dict[str, list[str]]:
    """Return the params that differ between runs; a missing param is a value too."""
    keys = sorted({key for r in results for key in r.run.params if not key.startswith(_NOT_COMPARED)})
    keys = [key for key in keys if not key.endswith("._target_")]  # a choice has a name as well
    found = {key: sorted({r.run.params.get(key, "–") for r in results}) for key in keys}
    return {key: values for key, values in found.items() if len(values) > 1}


def _mixture_warnings(groups: list[RunGroup], varying: dict[str, list[str]]) -> list[str]:
    inside: dict[str, list[str]] = {}
    for group in groups:
        for key in varying:
            values = sorted({r.run.params.get(key, "–") for r in group.counted})
            if key.rsplit(".", 1)[-1] not in ("seed", "split_seed") and len(values) > len(inside.get(key, "1")):
                inside[key] = values
    if not inside:
        return []
    choices = [key.removesuffix(".name") for key in inside if key.endswith(".name")]
    # Another model has other settings as well: its name says enough.
    others = [key for key in inside if not key.endswith(".name") and key.split(".")[0] not in choices]
    listed = [f"{key} ({_shortened(inside.get(f'{key}.name') or inside[key])})" for key in [*choices, *others]]
    more = [f"{len(listed) - _KEYS_LISTED} more"] * (len(listed) > _KEYS_LISTED)
    return [
        f"Runs of one group also differ in {', '.join([*listed[:_KEYS_LISTED], *more])}. Their mean is over those "
        "values too: group by them as well (scripts/compare.py --by), or leave some runs out (--filter)."
    ]


def _shortened(values: Sequence[str]) -> str:
    some = ", ".join(short_number(value) for value in values[:_VALUES_LISTED])
    return some if len(values) <= _VALUES_LISTED else f"{some} and {len(values) - _VALUES_LISTED} more"


def _length_warnings(groups: list[RunGroup]) -> list[str]:
    warnings = []
    for group in groups:
        lengths = [r.steps for r in group.counted if math.isfinite(r.steps)]
        if lengths and min(lengths) < max(lengths):
            warnings.append(f"{group.name}: the runs have {min(lengths):,.0f} to {max(lengths):,.0f} steps.")
    for data_set, some in _by_data_set(groups).items():
        means = [group.mean(lambda r: r.steps) for group in some]
        ends = {round(mean.mean) for mean in means if mean.n}
        if len(ends) > 1:
            warnings.append(
                f"The groups{f' of {data_set}' if data_set else ''} were trained for different lengths, "
                f"{min(ends):,} to {max(ends):,} steps: look at accuracy against cost."
            )
    return warnings
