"""Two figures about choices: what accuracy costs, and how much the result depends on the peak rate."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lr_lightning.diagnosis.compare import pareto_front
from lr_lightning.diagnosis.good_band import GoodBand, good_band
from lr_lightning.diagnosis.statistics import mean_ci
from lr_lightning.reports.axes import AXES
from lr_lightning.reports.groups import Outcome
from lr_lightning.reports.measure import Measured, group_of, of_data_set
from lr_lightning.reports.traces import FRONT, Figure, Place, Trace
from lr_lightning.tracking.colours import Style, styles

RATE = ("optimizer.lr", "lr")


def cost_of(m: Measured, axis: str) -> float:
    """What a whole run cost on an axis; its share of the budget is no cost, so seconds stand for it."""
    if axis == "step":
        return m.steps
    if axis == "examples":
        return m.examples
    if axis == "epochs":
        epochs = m.axes.at("epochs", np.array([m.axes.last]))
        return float(epochs[0]) if epochs is not None else math.nan
    return m.seconds


def accuracy_against_cost(outcome: Outcome, looks: dict[str, Style]) -> Figure | None:
    """The best value of the objective over the cost of the run, and the groups that no other one beats in both."""
    if outcome.objective is None:
        return None
    sign = 1.0 if outcome.higher_is_better else -1.0
    figure = Figure(
        "cost",
        f"Best {outcome.objective} against cost",
        "Small: runs. Large: means of groups, with 95 % t intervals. The dotted line joins the best trade-offs: no "
        f"group{' of its data set' * bool(outcome.mixed)} is cheaper and better than one of them. For the share of the "
        "budget, seconds are shown.",
        [outcome.objective],
    )
    means: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for index, group in enumerate(outcome.groups):
        runs: dict[str, Place] = {}
        mean: dict[str, Place] = {}
        for axis in AXES:
            points = [(cost_of(m, axis), m.best) for m in group.counted if math.isfinite(cost_of(m, axis))]
            if not points:
                continue
            cost, best = np.array(points).T
            runs[axis] = Place(cost, best)
            centre = group.mean(lambda m: m.best)
            x = float(cost.mean())
            low, high = (None, None) if math.isnan(centre.low) else (np.array([centre.low]), np.array([centre.high]))
            mean[axis] = Place(np.array([x]), np.array([centre.mean]), low, high)
            means.setdefault(group.data_set, {}).setdefault(axis, []).append((x, centre.mean))
        if runs:
            figure.traces.append(Trace(group.name, index, looks[group.name], "points", runs))
            figure.traces.append(Trace(group.name, index, looks[group.name], "mean", mean))
    if not figure.traces:
        return None
    fronts = [Trace("best trade-offs", -1, FRONT, "front", _front(points, sign)) for points in means.values()]
    figure.traces[:0] = fronts
    return figure


def _front(means: dict[str, list[tuple[float, float]]], sign: float) -> dict[str, Place]:
    """On each axis, the means that no other one of their data set beats in both."""
    places = {}
    for axis, points in means.items():
        x, y = np.array(points).T
        chosen = pareto_front(x, sign * y)
        places[axis] = Place(x[chosen], y[chosen])
    return places


@dataclass(eq=False)
class _Line:
    """What the runs of one schedule came to, by peak rate.

    Attributes:
        found: Peak rate to seed to the bests of its runs.
        lost: Peak rate and best of the runs that diverged or were pruned.
    """

    found: dict[float, dict[str, list[float]]] = field(default_factory=dict)
    lost: list[tuple[float, float]] = field(default_factory=list)

    def add(self, m: Measured) -> None:
        if m.counts:
            self.found.setdefault(m.peak, {}).setdefault(m.seed or m.run.id, []).append(m.best)
        elif m.state in ("diverged", "pruned"):
            self.lost.append((m.peak, m.best))

    def over_seeds(self) -> Place:
        """Mean and interval at each rate."""
        rates = sorted(self.found)
        means = [mean_ci([float(np.mean(bests)) for bests in self.found[rate].values()]) for rate in rates]
        low, high = np.array([m.low for m in means]), np.array([m.high for m in means])
        return Place(np.array(rates), np.array([m.mean for m in means]), low, high)

    def good_band(self, higher: bool) -> GoodBand | None:
        """The rates as good as the best; one at which all runs were lost is the worst there is."""
        means = {
            rate: float(np.mean([v for seed in seeds.values() for v in seed])) for rate, seeds in self.found.items()
        }
        # A point of accuracy, or a tenth of the best loss.
        tolerance = 0.01 if higher else 0.1 * abs(min(filter(math.isfinite, means.values()), default=0.0))
        means |= {rate: -math.inf if higher else math.inf for rate, _ in self.lost if rate not in means}
        return good_band([*means], [*means.values()], higher=higher, tolerance=tolerance)


def sensitivity(outcome: Outcome, looks: dict[str, Style], by: Sequence[str]) -> Figure | None:
    """The objective over the peak rate, for each schedule, where a sweep has more than one rate."""
    if outcome.objective is None:
        return None
    rest = [key for key in by if key not in (*RATE, "trial")] or ["schedule"]
    every: dict[str, _Line] = defaultdict(_Line)
    for m in (m for group in outcome.groups for m in group.runs):
        # a rate that a range test found varies with the seed: it is no rate of a sweep
        if math.isfinite(m.peak) and m.peak > 0 and "lr_finder.lr" not in m.run.params:
            every[of_data_set(group_of(m.run, rest), m.data_set)].add(m)
    lines = {name: line for name, line in every.items() if line.found and len(line.found) + len(line.lost) > 1}
    if not lines:
        return None
    index = {group.name: i for i, group in enumerate(outcome.groups)}
    own = looks if lines.keys() <= looks.keys() else styles(lines)
    figure = Figure(
        "sensitivity",
        f"Best {outcome.objective} against the peak rate",
        "Mean over seeds with its 95 % t interval. A flat curve is a schedule that forgives a wrong rate.",
        [outcome.objective],
        x_title="peak learning rate",
        log_x=True,
    )
    for name, line in sorted(lines.items()):
        figure.traces.append(Trace(name, index.get(name, -1), own[name], "mean", {"": line.over_seeds()}))
    for name, line in every.items():
        if name in own:
            _add_lost(figure, name, line, own[name])
    _add_bands(figure, lines, own, outcome.higher_is_better)
    return figure


def _add_lost(figure: Figure, name: str, line: _Line, style: Style) -> None:
    """A cross where a run diverged or was pruned, at the best it had come to."""
    known = [(x, y) for x, y in line.lost if math.isfinite(y)]
    if known:
        x, y = np.array(known).T
        cross = Style(style.colour, "solid", "x")
        figure.traces.append(Trace(f"{name}: diverged or pruned", -1, cross, "points", {"": Place(x, y)}))


def _add_bands(figure: Figure, lines: dict[str, _Line], own: dict[str, Style], higher: bool) -> None:
    """The band of good rates of each line, as a bar at its limit and in words."""
    said = []
    for name, line in sorted(lines.items()):
        band = line.good_band(higher)
        if band is None:
            continue
        bar = Place(np.array([band.low, band.high]), np.array([band.limit, band.limit]))
        figure.traces.append(Trace(f"{name}: good rates", -1, own[name], "range", {"": bar}))
        ends = [f"{band.low:.3g}{' or lower' if band.open_low else ''}"]
        ends.append(f"{band.high:.3g}{' or higher' if band.open_high else ''}")
        said.append(f"{name}: {' to '.join(ends)} ({band.decades:.1f} decades)")
    if said:
        figure.good_rates = said
        figure.note += (
            " The bars mark the good rates, whose result lies within 0.01 (of a loss: 10 %) of the line's best, "
            f"smoothed over neighbours from seven rates on: {'; '.join(said)}. Crosses: runs that diverged or were "
            "pruned."
        )
