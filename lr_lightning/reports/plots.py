"""Every figure of a comparison, and those over the course of a run."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lr_lightning._plotting import Style, styles
from lr_lightning.diagnosis.comparison import GoodBand, good_band, pareto_front
from lr_lightning.diagnosis.statistics import mean_ci
from lr_lightning.reports import run_metrics as names
from lr_lightning.reports.curves import band, thin
from lr_lightning.reports.groups import Group, Outcome
from lr_lightning.reports.run_metrics import AXES, Measured, group_of, of_data_set
from lr_lightning.tracking.query import MetricCurve

# --- What is drawn, as plain arrays: the page and the pictures draw the same.

Floats = NDArray[np.float64]


@dataclass(eq=False)
class Place:
    """Where a trace lies on one of the x axes: x, y, and the ends of a band or error bar where it has one."""

    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None


@dataclass(eq=False)
class Trace:
    """One curve, band or cloud of points.

    Attributes:
        name: Of the run or group; any text.
        group: Index of its group, -1 for none.
        style: Colour, line and marker.
        kind: curve (of one run), mean (with its band), points (one a run), front, or range (a bar).
        places: Axis to place; what has no x in epochs has none there. A figure with an x of its own has one, "".
        panel: Which panel, from the top.
    """

    name: str
    group: int
    style: Style
    kind: str
    places: dict[str, Place]
    panel: int = 0


@dataclass(eq=False)
class Figure:
    """One figure of one or more panels above a shared x.

    Attributes:
        id: Short name, also of the file.
        title: What it shows.
        note: How to read it.
        panels: Titles of the y axes.
        traces: What is drawn.
        x_title: Title of x where the figure has an x of its own, else nothing.
        log_x: Whether that is logarithmic.
        log_panels: Panels with a logarithmic y.
        legend_names: Index of a group to its name, where traces are of its runs.
        good_rates: In words, the band of good rates of each line that has one.
    """

    id: str
    title: str
    note: str
    panels: list[str]
    traces: list[Trace] = field(default_factory=list)
    x_title: str = ""
    log_x: bool = False
    log_panels: tuple[int, ...] = ()
    legend_names: dict[int, str] = field(default_factory=dict)
    good_rates: list[str] = field(default_factory=list)


FRONT = Style("#808080", "dot", "circle")


_POINTS = 60_000
"""Most points of all curves of a figure: a page of 200 runs stays small enough for a phone."""


def run_curves(outcome: Outcome, styles: dict[str, Style]) -> Figure | None:
    """Rate and losses of every run above a shared x."""
    wanted = [names.LR, names.TRAIN_LOSS, names.VAL_LOSS]
    panels = [key for key in wanted if any(_curve(m, key) for group in outcome.groups for m in group.runs)]
    if not panels:
        return None
    figure = Figure(
        "curves",
        "Rate and loss of every run",
        "Thinned, with every extremum of a stretch and every break of a schedule kept.",
        [{names.LR: "learning rate"}.get(key, key) for key in panels],
        log_panels=tuple(i for i, key in enumerate(panels) if "loss" in key),
    )
    runs = sum(len(group.runs) for group in outcome.groups)
    limit = max(60, min(1000, _POINTS // (runs * len(panels))))
    for panel, key in enumerate(panels):
        for index, group in enumerate(outcome.groups):
            for m in group.runs:
                curve = _curve(m, key)
                if curve is not None:
                    places = _places(m, curve, limit)
                    figure.traces.append(Trace(m.run.name, index, styles[group.name], "curve", places, panel))
    return figure


def seed_means(outcome: Outcome, styles: dict[str, Style]) -> Figure | None:
    """Means over the finished runs of each group, with the interval of the mean."""
    wanted = [*([outcome.objective] if outcome.objective else []), names.VAL_LOSS, names.TRAIN_LOSS, names.GAP]
    panels: list[str] = []
    traces: list[Trace] = []
    for key in dict.fromkeys(wanted):
        found = [
            Trace(group.name, index, styles[group.name], "mean", places, len(panels))
            for index, group in enumerate(outcome.groups)
            if (places := _bands(group, key))
        ]
        if found:
            panels.append(key)
            traces += found
    if not panels:
        return None
    note = (
        "Mean over the finished runs of each group; the band is its 95 % t interval. It ends where the first of them "
        "ends. The training loss is smoothed over a fiftieth of the run."
    )
    losses = tuple(i for i, key in enumerate(panels) if "loss" in key and "gap" not in key)
    return Figure("means", "Means over seeds", note, panels, traces, log_panels=losses)


def loss_against_lr(outcome: Outcome, styles: dict[str, Style]) -> Figure | None:
    """The training loss over the rate that was in use."""
    figure = Figure(
        "loss_vs_lr",
        "Training loss against the rate",
        "The loss, smoothed over a fiftieth of the run and averaged over seeds where their rates are equal. "
        "A curve is run through in time, so a schedule that rises and falls crosses a rate twice.",
        [names.TRAIN_LOSS],
        x_title="learning rate",
        log_x=True,
        log_panels=(0,),
    )
    for index, group in enumerate(outcome.groups):
        pairs = [pair for m in group.runs if (pair := _aligned(m)) is not None]
        if len(pairs) > 1 and all(np.array_equal(lr, pairs[0][0]) for lr, _ in pairs[1:]):
            pairs = [(pairs[0][0], np.mean([loss for _, loss in pairs], axis=0))]
        for lr, loss in pairs:
            keep = thin(loss, 300)
            keep = keep[lr[keep] > 0]
            if keep.size:
                place = Place(lr[keep], loss[keep])
                figure.traces.append(Trace(group.name, index, styles[group.name], "curve", {"": place}))
    return figure if figure.traces else None


def _curve(m: Measured, key: str) -> MetricCurve | None:
    curve = m.curves.get(key)
    return curve if curve is not None and curve.step.size else None


def _places(m: Measured, curve: MetricCurve, limit: int) -> dict[str, Place]:
    keep = thin(curve.value, limit)
    step, value = curve.step[keep], curve.value[keep]
    found = ((axis, m.axes.at(axis, step)) for axis in AXES)
    return {axis: Place(x, value) for axis, x in found if x is not None}


def _bands(group: Group, key: str) -> dict[str, Place]:
    """The mean and band of a metric on every axis on which all counted runs have a place."""
    found = [(m, curve) for m in group.counted if (curve := _curve(m, key)) is not None]
    places: dict[str, Place] = {}
    smooth = key == names.TRAIN_LOSS
    for axis in AXES if found else ():
        curves: list[tuple[ArrayLike, ArrayLike]] = []
        for m, curve in found:
            x = m.axes.at(axis, curve.step)
            if x is None:
                break
            curves.append((x, smoothed(curve.value) if smooth else curve.value))
        else:
            x, y, low, high = band(curves)
            if x.size:
                keep = thin(y, 300)
                places[axis] = Place(x[keep], y[keep], low[keep], high[keep])
    return places


def _aligned(m: Measured) -> tuple[Floats, Floats] | None:
    """Rate and smoothed loss at the steps that have both."""
    lr, loss = _curve(m, names.LR), _curve(m, names.TRAIN_LOSS)
    if lr is None or loss is None:
        return None
    _, i, j = np.intersect1d(lr.step, loss.step, assume_unique=True, return_indices=True)
    return (lr.value[i], smoothed(loss.value)[j]) if i.size > 1 else None


def smoothed(values: Floats) -> Floats:
    """Centred moving average over a fiftieth of the curve; at the ends over what there is."""
    half = len(values) // 100
    if half == 0:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    start, end = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return np.asarray((sums[end] - sums[start]) / (end - start), np.float64)


def all_figures(outcome: Outcome, styles: dict[str, Style], by: Sequence[str]) -> list[Figure]:
    """Every figure there is data for."""
    made = [
        seed_means(outcome, styles),
        run_curves(outcome, styles),
        accuracy_against_cost(outcome, styles),
        sensitivity(outcome, styles, by),
        loss_against_lr(outcome, styles),
    ]
    figures = [figure for figure in made if figure is not None]
    if any(key in ("trial", *RATE) for key in by):  # a search: how much the rate matters is what it was for
        figures.sort(key=lambda figure: figure.id != "sensitivity")
    for figure in figures:
        figure.legend_names = {index: group.name for index, group in enumerate(outcome.groups)}
    return figures


# --- Two figures about choices: what accuracy costs, and how much the result depends on the peak rate.

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
