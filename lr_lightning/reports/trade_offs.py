"""Two figures about choices: what accuracy costs, and how much the result depends on the peak rate."""

import math
from collections.abc import Sequence

import numpy as np

from lr_lightning.diagnosis.compare import pareto_front
from lr_lightning.diagnosis.good_band import good_band
from lr_lightning.diagnosis.statistics import mean_ci
from lr_lightning.reports.axes import AXES
from lr_lightning.reports.figures import FRONT, Figure, Place, Trace
from lr_lightning.reports.groups import Outcome
from lr_lightning.reports.measure import Measured, group_of
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
        "group is cheaper and better than one of them. For the share of the budget, seconds are shown.",
        [outcome.objective],
    )
    means: dict[str, list[tuple[float, float]]] = {axis: [] for axis in AXES}
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
            means[axis].append((x, centre.mean))
        if runs:
            figure.traces.append(Trace(group.name, index, looks[group.name], "points", runs))
            figure.traces.append(Trace(group.name, index, looks[group.name], "mean", mean))
    fronts = {}
    for axis, points in means.items():
        if points:
            x, y = np.array(points).T
            chosen = pareto_front(x, sign * y)
            fronts[axis] = Place(x[chosen], y[chosen])
    if not figure.traces:
        return None
    figure.traces.insert(0, Trace("best trade-offs", -1, FRONT, "front", fronts))
    return figure


def sensitivity(outcome: Outcome, looks: dict[str, Style], by: Sequence[str]) -> Figure | None:
    """The objective over the peak rate, for each schedule, where a sweep has more than one rate."""
    if outcome.objective is None:
        return None
    rest = [key for key in by if key not in (*RATE, "trial")] or ["schedule"]
    lines: dict[str, dict[float, dict[str, list[float]]]] = {}
    lost: dict[str, list[tuple[float, float]]] = {}
    for group in outcome.groups:
        for m in group.runs:
            # a rate that a range test found varies with the seed: it is no rate of a sweep
            if not math.isfinite(m.peak) or m.peak <= 0 or "lr_finder.lr" in m.run.params:
                continue
            if m.counts:
                seeds = lines.setdefault(group_of(m.run, rest), {}).setdefault(m.peak, {})
                seeds.setdefault(m.seed or m.run.id, []).append(m.best)
            elif m.state in ("diverged", "pruned"):
                lost.setdefault(group_of(m.run, rest), []).append((m.peak, m.best))
    lines = {name: peaks for name, peaks in lines.items() if len(peaks) + len(lost.get(name, [])) > 1}
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
    for name, peaks in sorted(lines.items()):
        xs = sorted(peaks)
        found = [mean_ci([float(np.mean(v)) for v in peaks[x].values()]) for x in xs]
        place = Place(
            np.array(xs),
            np.array([m.mean for m in found]),
            np.array([m.low for m in found]),
            np.array([m.high for m in found]),
        )
        figure.traces.append(Trace(name, index.get(name, -1), own[name], "mean", {"": place}))
    _add_lost(figure, lost, own)
    _add_bands(figure, outcome, lines, lost, own)
    return figure


def _add_lost(figure: Figure, lost: dict[str, list[tuple[float, float]]], own: dict[str, Style]) -> None:
    """A cross where a run diverged or was pruned, at the best it had come to."""
    for name, points in lost.items():
        known = [(x, y) for x, y in points if math.isfinite(y)]
        if known and name in own:
            x, y = np.array(known).T
            style = Style(own[name].colour, "solid", "x")
            figure.traces.append(Trace(f"{name}: diverged or pruned", -1, style, "points", {"": Place(x, y)}))


def _add_bands(
    figure: Figure,
    outcome: Outcome,
    lines: dict[str, dict[float, dict[str, list[float]]]],
    lost: dict[str, list[tuple[float, float]]],
    own: dict[str, Style],
) -> None:
    """The band of good rates of each line, as a bar at its limit and in words."""
    higher = outcome.higher_is_better
    said = []
    for name, peaks in sorted(lines.items()):
        means = {rate: float(np.mean([v for seed in seeds.values() for v in seed])) for rate, seeds in peaks.items()}
        means |= {rate: -math.inf if higher else math.inf for rate, _ in lost.get(name, []) if rate not in means}
        tolerance = _tolerance(str(outcome.objective), [v for v in means.values() if math.isfinite(v)], higher)
        band = good_band([*means], [*means.values()], higher=higher, tolerance=tolerance)
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


def _tolerance(objective: str, values: Sequence[float], higher: bool) -> float:
    """A point of accuracy, or a tenth of the best loss."""
    return 0.01 if higher else 0.1 * abs(min(values, default=0.0))
