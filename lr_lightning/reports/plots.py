"""The plots of a report as plain arrays, and as PNG files; the page draws the same arrays."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lr_lightning._checks import check_count
from lr_lightning._plotting import BLACK, FRAME, GREY, Style, new_figure, style_axes, styles
from lr_lightning.diagnosis.comparison import GoodBand, good_band, pareto_front
from lr_lightning.diagnosis.statistics import mean_ci
from lr_lightning.reports import run_metrics, wording
from lr_lightning.reports.groups import ComparedGroups, RunGroup, fork_families
from lr_lightning.reports.run_metrics import AXES, RunResult, RunState, group_name, tag_or_param, with_data_set
from lr_lightning.tracking.query import MetricCurve

Floats = NDArray[np.float64]
# x, mean, and lower and upper end of the mean's t interval (nan if there is one curve).
Band = tuple[Floats, Floats, Floats, Floats]


def thin(values: ArrayLike, limit: int) -> NDArray[np.int64]:
    """Choose the points of a curve that show its shape: both ends, the extrema of every stretch, the sharpest bends.

    Unlike points at equal distances, they include a spike of one step and the exact steps at which a schedule breaks.
    ``values`` are y at equal distances; at most ``limit``, >= 8, rising indices are returned.

    Example:
        >>> spike = [0.0] * 500 + [9.0] + [0.0] * 500
        >>> 500 in thin(spike, 20)
        True
    """
    check_count("limit", limit, 8)
    y = np.asarray(values, np.float64)
    n = y.size
    if n <= limit:
        return np.arange(n)
    buckets = (limit - 2) // 3  # two extrema each, and as many bends
    edges = np.linspace(0, n, buckets + 1).astype(np.int64)
    finite = np.where(np.isfinite(y), y, 0.0)
    keep = {0, n - 1}
    for start, end in pairwise(edges):
        stretch = finite[start:end]
        keep.update((int(start + stretch.argmin()), int(start + stretch.argmax())))
    bend = np.abs(np.diff(finite, 2))
    sharpest = np.argpartition(bend, -buckets)[-buckets:] if bend.size > buckets else np.arange(bend.size)
    rounding = 1e-9 * (np.ptp(finite) or 1.0)  # a bend no larger than that is not worth a point
    keep.update((sharpest[bend[sharpest] > rounding] + 1).tolist())
    return np.array(sorted(keep), np.int64)


def band(curves: list[tuple[ArrayLike, ArrayLike]], level: float = 0.95, points: int = 200) -> Band:
    """Average curves, each x (rising) and y, with a t interval at each x.

    Curves with the same x are averaged as they are; others are interpolated, at ``points`` x. The mean ends where the
    shortest curve ends, so that it does not jump there.
    """
    xs = [np.asarray(x, np.float64) for x, _ in curves]
    ys = [np.asarray(y, np.float64) for _, y in curves]
    start, end = max(x[0] for x in xs), min(x[-1] for x in xs)
    if all(np.array_equal(x, xs[0]) for x in xs[1:]):
        grid, rows = xs[0], np.stack(ys)
    elif start > end:  # the curves do not overlap
        empty = np.empty(0)
        return empty, empty, empty, empty
    else:
        common = xs[0][(xs[0] >= start) & (xs[0] <= end)]
        inside = all(np.isin(common, x).all() for x in xs[1:])  # the same x, but different lengths
        grid = common if inside and common.size else np.linspace(start, end, points)
        rows = np.stack([np.interp(grid, x, y) for x, y in zip(xs, ys, strict=True)])
    n, mean = len(rows), rows.mean(axis=0)
    half = np.full_like(mean, np.nan)
    if n > 1:
        from scipy import stats

        half = stats.t.ppf((1 + level) / 2, n - 1) * rows.std(axis=0, ddof=1) / np.sqrt(n)
    return grid, mean, mean - half, mean + half


Styles = dict[str, Style]  # by a group's name

LR_PARAMS = ("optimizer.lr", "lr")
_FRONT_STYLE = Style(GREY, "dot", "circle")
_BAND_POINTS, _FEWEST_POINTS = 300, 60  # of a curve
_POINTS = 60_000  # of all curves of a plot, so that a phone can open the page; but each keeps _FEWEST_POINTS
_LONG_LABEL, _LEGEND_ENTRIES = 40, 24  # of a PNG


@dataclass(eq=False)
class Series:
    """The points of a trace on one x axis, with the ends of its band or error bars if it has one."""

    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None


@dataclass(eq=False)
class Trace:
    """One curve, band or cloud of points."""

    name: str  # of the run or group; any text
    group: int  # index of its group, or -1
    style: Style
    kind: Literal["curve", "mean", "points", "front", "range"]  # a curve is of one run, a mean has a band
    # Series by x axis; an axis is missing if the run did not record what it takes. A plot's own x axis is "".
    by_axis: dict[str, Series]
    panel: int = 0  # from the top


@dataclass(eq=False)
class Plot:
    """One or more panels above a shared x axis."""

    id: str  # also the file's name
    title: str
    note: str  # how to read the plot
    panels: list[str]  # titles of the y axes
    traces: list[Trace] = field(default_factory=list)
    x_title: str = ""  # of the plot's own x axis; "" if the reader chooses the axis
    log_x: bool = False  # only for the plot's own x axis
    log_panels: tuple[int, ...] = ()  # panels with a logarithmic y axis
    lr_panel: int = -1  # the panel that shows the learning rate, or -1
    error_bars: bool = False  # instead of bands
    is_cost: bool = False  # x is a whole run's cost; for the share of the budget, seconds are shown
    good_lrs: list[str] = field(default_factory=list)  # each schedule's band of good learning rates, as text


def make_plots(compared: ComparedGroups, style_of: Styles, by: Sequence[str]) -> list[Plot]:
    """Return every plot that there is data for."""
    forks, means, curves, cost = (
        make(compared, style_of) for make in (plot_forks, plot_seed_means, plot_run_curves, plot_cost)
    )
    made = [
        forks,
        means,
        curves,
        cost,
        plot_lr_sensitivity(compared, style_of, by),
        plot_loss_against_lr(compared, style_of),
    ]
    plots = [plot for plot in made if plot is not None]
    if any(key in ("trial", *LR_PARAMS) for key in by):  # a search asks first how much the learning rate matters
        plots.sort(key=lambda plot: plot.id != "sensitivity")
    return plots


def plot_forks(compared: ComparedGroups, style_of: Styles) -> Plot | None:
    """Plot what each fork of a run reaches at its end, above the run that they share."""
    key = compared.objective
    results = {r: (index, group) for index, group in enumerate(compared.groups) for r in group.runs}
    families = [family for family in fork_families([*results]) if len(family.forks) > 1]
    if key is None or not families:
        return None
    plot = Plot(
        "forks",
        "What each fork reaches",
        " ".join(family.describe() for family in families) + " Black: the run before the forks.",
        [key],
        x_title="steps",
    )
    for family in families:
        longest = max(family.forks, key=lambda r: r.fork_step)
        if (curve := longest.curve(key)) is not None and (before := curve.step < longest.fork_step).any():
            series = Series(_steps_made(curve.step[before]), curve.value[before])
            plot.traces.append(Trace("before the forks", -1, Style(BLACK, "solid", "circle"), "curve", {"": series}))
        ends = [(r.steps, r.best) for r in family.forks if math.isfinite(r.best)]
        if ends:
            plot.traces.append(Trace("best of each fork", -1, _FRONT_STYLE, "front", {"": Series(*np.array(ends).T)}))
        for r in family.forks:
            if (curve := r.curve(key)) is not None:
                index, group = results[r]
                own = curve.step >= r.fork_step
                series = Series(_steps_made(curve.step[own]), curve.value[own])
                plot.traces.append(Trace(r.run.name, index, style_of[group.name], "curve", {"": series}))
                end = Series(np.array([r.steps]), np.array([r.best]))
                plot.traces.append(Trace(r.run.name, index, style_of[group.name], "points", {"": end}))
    return plot


def _steps_made(step: NDArray[np.int64]) -> Floats:
    return (step + 1).astype(np.float64)


def plot_run_curves(compared: ComparedGroups, style_of: Styles) -> Plot | None:
    """Plot learning rate and losses of every run above a shared x axis."""
    runs = [(index, group.name, r) for index, group in enumerate(compared.groups) for r in group.runs]
    wanted = [run_metrics.LR, run_metrics.TRAIN_LOSS, run_metrics.VAL_LOSS]
    panels = [key for key in wanted if any(r.curve(key) for _, _, r in runs)]
    if not panels:
        return None
    thinned = "Thinned: every stretch keeps its extrema, and a schedule keeps its breaks."
    plot = Plot(
        "curves",
        "Learning rate and loss of every run",
        thinned,
        [{run_metrics.LR: "learning rate"}.get(key, key) for key in panels],
        log_panels=tuple(i for i, key in enumerate(panels) if "loss" in key),
        lr_panel=panels.index(run_metrics.LR) if run_metrics.LR in panels else -1,
    )
    limit = max(_FEWEST_POINTS, min(1000, _POINTS // (len(runs) * len(panels))))
    for panel, key in enumerate(panels):
        for index, name, r in runs:
            if curve := r.curve(key):
                plot.traces.append(
                    Trace(r.run.name, index, style_of[name], "curve", _on_all_axes(r, curve, limit), panel)
                )
            if key == run_metrics.VAL_LOSS and (curve := r.curve(run_metrics.VAL_LOSS_IF_COOLED)):
                series, style = _on_all_axes(r, curve, limit), replace(style_of[name], dash="dash")
                plot.traces.append(Trace(f"{r.run.name}, if cooled", index, style, "curve", series, panel))
                plot.note = f"{thinned} Dashed, in the panel of val/loss: what a cooldown would reach."
    return plot


def _on_all_axes(r: RunResult, curve: MetricCurve, limit: int) -> dict[str, Series]:
    """Return a run's curve, thinned, on each x axis that the run recorded."""
    keep = thin(curve.value, limit)
    step, y = curve.step[keep], curve.value[keep]
    return {axis: Series(x, y) for axis in AXES if (x := r.axes.at(axis, step)) is not None}


def plot_seed_means(compared: ComparedGroups, style_of: Styles) -> Plot | None:
    """Plot each group's mean over its finished runs, with the interval of the mean."""
    panels: list[str] = []
    traces: list[Trace] = []
    losses = (run_metrics.VAL_LOSS, run_metrics.TRAIN_LOSS, run_metrics.GAP_LOSS)
    for key in dict.fromkeys((compared.objective or run_metrics.VAL_LOSS, *losses)):
        found = [
            Trace(group.name, index, style_of[group.name], "mean", series, len(panels))
            for index, group in enumerate(compared.groups)
            if (series := _mean_bands(group, key))
        ]
        if found:
            panels.append(key)
            traces += found
    if not panels:
        return None
    note = (
        "Mean over the finished runs of each group; the band is its 95 % t interval (on a logarithmic axis, at "
        "most down to a tenth of the mean). The mean ends where the shortest run ends. The training loss is smoothed "
        "over a fiftieth of the run."
    )
    log_panels = tuple(i for i, key in enumerate(panels) if "loss" in key and "gap" not in key)
    return Plot("means", "Means over seeds", note, panels, traces, log_panels=log_panels)


def _mean_bands(group: RunGroup, key: str) -> dict[str, Series]:
    """Return the mean and band of a metric on each axis on which every counted run has positions."""
    found = [(r, curve) for r in group.counted if (curve := r.curve(key)) is not None]
    values = [_smooth(curve.value) if key == run_metrics.TRAIN_LOSS else curve.value for _, curve in found]
    by_axis: dict[str, Series] = {}
    for axis in AXES if found else ():
        xs = [x for r, curve in found if (x := r.axes.at(axis, curve.step)) is not None]
        if len(xs) == len(found):
            averaged = band([*zip(xs, values, strict=True)])
            keep = thin(averaged[1], _BAND_POINTS)
            if keep.size:
                by_axis[axis] = Series(*(part[keep] for part in averaged))
    return by_axis


def _smooth(values: Floats) -> Floats:
    """Average over a centred window of a fiftieth of the curve, which is cut off at the ends."""
    half = len(values) // 100
    if half == 0:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    start, end = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return np.asarray((sums[end] - sums[start]) / (end - start), np.float64)


def plot_loss_against_lr(compared: ComparedGroups, style_of: Styles) -> Plot | None:
    """Plot the training loss over the learning rate in use."""
    plot = Plot(
        "loss_vs_lr",
        "Training loss against the learning rate",
        "The loss is smoothed over a fiftieth of the run, and averaged over seeds whose learning rates are equal. "
        "A curve follows the run in time, so a schedule that rises and falls passes a learning rate twice.",
        [run_metrics.TRAIN_LOSS],
        x_title="learning rate",
        log_x=True,
        log_panels=(0,),
    )
    lines: list[tuple[int, str, Floats, Floats]] = []
    for index, group in enumerate(compared.groups):
        pairs = [*_lr_and_loss(group)]
        if len(pairs) > 1 and all(np.array_equal(lr, pairs[0][0]) for lr, _ in pairs[1:]):
            pairs = [(pairs[0][0], np.mean([loss for _, loss in pairs], axis=0))]
        for lr, loss in pairs:
            keep = thin(loss, _BAND_POINTS)  # at once, so that not all curves are in memory; again for many lines
            lines.append((index, group.name, lr[keep], loss[keep]))
    limit = max(_FEWEST_POINTS, min(_BAND_POINTS, _POINTS // max(1, len(lines))))
    for index, name, lr, loss in lines:
        keep = thin(loss, limit)
        keep = keep[lr[keep] > 0]
        if keep.size:
            series = {"": Series(lr[keep], loss[keep])}
            plot.traces.append(Trace(name, index, style_of[name], "curve", series))
    return plot if plot.traces else None


def _lr_and_loss(group: RunGroup) -> Iterator[tuple[Floats, Floats]]:
    """Yield learning rate and smoothed loss of each run, at the steps that have both."""
    for r in group.runs:
        lr, loss = r.curve(run_metrics.LR), r.curve(run_metrics.TRAIN_LOSS)
        if lr is not None and loss is not None:
            _, i, j = np.intersect1d(lr.step, loss.step, assume_unique=True, return_indices=True)
            if i.size > 1:
                yield lr.value[i], _smooth(loss.value)[j]


def plot_cost(compared: ComparedGroups, style_of: Styles) -> Plot | None:
    """Plot the best value of the objective over the run's cost, and the groups that are not beaten in both."""
    if compared.objective is None:
        return None
    plot = Plot(
        "cost",
        f"Best {compared.objective} against cost",
        "Small: runs. Large: means of groups, with 95 % t intervals. The dotted line joins the best trade-offs: no "
        f"group{' of its data set' * bool(compared.data_sets)} is cheaper and better than one of them. This plot "
        'shows seconds where the axis "share of the budget" is chosen.',
        [compared.objective],
        error_bars=True,
        is_cost=True,
    )
    means: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for index, group in enumerate(compared.groups):
        runs, mean = dict[str, Series](), dict[str, Series]()
        for axis in AXES:
            known = [(cost, r.best) for r in group.counted if math.isfinite(cost := _cost(r, axis))]
            if not known:
                continue
            cost, best = np.array(known).T
            runs[axis] = Series(cost, best)
            centre, x = group.mean(lambda r: r.best), float(cost.mean())
            ends = () if math.isnan(centre.low) else (np.array([centre.low]), np.array([centre.high]))
            mean[axis] = Series(np.array([x]), np.array([centre.mean]), *ends)
            means.setdefault(group.data_set, {}).setdefault(axis, []).append((x, centre.mean))
        if runs:
            plot.traces.append(Trace(group.name, index, style_of[group.name], "points", runs))
            plot.traces.append(Trace(group.name, index, style_of[group.name], "mean", mean))
    sign = 1.0 if compared.higher_is_better else -1.0
    for by_axis in reversed(means.values()):
        points = {axis: np.array(pairs) for axis, pairs in by_axis.items()}
        front = {axis: Series(*xy[pareto_front(xy[:, 0], sign * xy[:, 1])].T) for axis, xy in points.items()}
        plot.traces.insert(0, Trace("best trade-offs", -1, _FRONT_STYLE, "front", front))
    return plot if plot.traces else None


def _cost(r: RunResult, axis: str) -> float:
    """Return what a whole run cost, in the unit of an x axis."""
    return {"step": r.steps, "examples": r.examples, "epochs": r.axes.end("epochs")}.get(axis, r.seconds)


@dataclass(eq=False)
class _LRSweep:
    """The results of one schedule's runs by peak learning rate."""

    bests: dict[float, dict[str, list[float]]] = field(default_factory=dict)  # learning rate to seed to its runs' bests
    lost: list[tuple[float, float]] = field(default_factory=list)  # learning rate and best, if diverged or pruned

    def add(self, result: RunResult) -> None:
        if result.counts:
            by_seed = self.bests.setdefault(result.peak_lr, {})
            by_seed.setdefault(result.seed or result.run.id, []).append(result.best)
        elif result.state in (RunState.DIVERGED, RunState.PRUNED):
            self.lost.append((result.peak_lr, result.best))

    def over_seeds(self) -> Series:
        """Return mean and interval at each learning rate."""
        lrs = sorted(self.bests)
        means = [mean_ci([float(np.mean(bests)) for bests in self.bests[lr].values()]) for lr in lrs]
        mean, low, high = np.array([(m.mean, m.low, m.high) for m in means]).T
        return Series(np.array(lrs), mean, low, high)

    def good_band(self, higher: bool) -> GoodBand | None:
        """Return the learning rates as good as the best; a learning rate whose runs were all lost is the worst."""
        means = {lr: float(np.mean([v for seed in seeds.values() for v in seed])) for lr, seeds in self.bests.items()}
        # A point of accuracy, or a tenth of the best loss.
        tolerance = 0.01 if higher else 0.1 * abs(min(filter(math.isfinite, means.values()), default=0.0))
        means |= {lr: -math.inf if higher else math.inf for lr, _ in self.lost if lr not in means}
        return good_band([*means], [*means.values()], higher=higher, tolerance=tolerance)


def plot_lr_sensitivity(compared: ComparedGroups, style_of: Styles, by: Sequence[str]) -> Plot | None:
    """Plot the objective over the peak learning rate of each schedule that has several."""
    if compared.objective is None:
        return None
    every_run = [r.run for group in compared.groups for r in group.runs]
    # A key with nearly as many values as runs, such as those that a search draws, would make lines of one point.
    drawn = {key for key in by if len({tag_or_param(run, key) for run in every_run}) > max(2, len(every_run) // 2)}
    rest = [key for key in by if key not in (*LR_PARAMS, "trial", *drawn)] or ["schedule"]
    every: dict[str, _LRSweep] = defaultdict(_LRSweep)
    for r in (r for group in compared.groups for r in group.runs):
        # A learning rate that a range test found varies with the seed: it is not part of a sweep.
        if math.isfinite(r.peak_lr) and r.peak_lr > 0 and "lr_finder.lr" not in r.run.params:
            every[with_data_set(group_name(r.run, rest), r.data_set)].add(r)
    sweeps = {name: sweep for name, sweep in every.items() if sweep.bests and len(sweep.bests) + len(sweep.lost) > 1}
    if not sweeps:
        return None
    index = {group.name: i for i, group in enumerate(compared.groups)}
    own = style_of if sweeps.keys() <= style_of.keys() else styles(sweeps)
    plot = Plot(
        "sensitivity",
        f"Best {compared.objective} against the peak learning rate",
        "Mean over seeds with its 95 % t interval. A flat curve is a schedule that forgives a wrong learning rate.",
        [compared.objective],
        x_title="peak learning rate",
        log_x=True,
        error_bars=True,
    )
    for name, sweep in sorted(sweeps.items()):
        plot.traces.append(Trace(name, index.get(name, -1), own[name], "mean", {"": sweep.over_seeds()}))
    for name, sweep in every.items():
        known = [(x, y) for x, y in sweep.lost if math.isfinite(y)]
        if known and name in own:
            x, y = np.array(known).T
            cross = Style(own[name].colour, "solid", "x")
            plot.traces.append(Trace(f"{name}: diverged or pruned", -1, cross, "points", {"": Series(x, y)}))
    _add_good_bands(plot, sweeps, own, compared.higher_is_better)
    return plot


def _add_good_bands(plot: Plot, sweeps: dict[str, _LRSweep], own: Styles, higher: bool) -> None:
    """Draw the band of good learning rates of each schedule as a bar, and state it in the note."""
    for name, sweep in sorted(sweeps.items()):
        if (good := sweep.good_band(higher)) is None:
            continue
        bar = Series(np.array([good.low, good.high]), np.array([good.limit, good.limit]))
        plot.traces.append(Trace(f"{name}: good learning rates", -1, own[name], "range", {"": bar}))
        plot.good_lrs.append(f"{name}: {wording.good_lrs(good)}")
    if plot.good_lrs:
        plot.note += (
            " The bars mark the good learning rates, whose result lies within 0.01 (of a loss: 10 %) of the line's "
            f"best, smoothed over neighbours from seven learning rates on: {'; '.join(plot.good_lrs)}. Crosses: runs "
            "that diverged or were pruned."
        )


def save_pngs(plots: Sequence[Plot], groups: Sequence[str], folder: Path) -> list[Path]:
    """Draw every plot into ``folder`` and return the files; ``groups`` are the names that the traces' groups have."""
    paths = {plot: folder / f"{plot.id}.png" for plot in plots}
    for plot, path in paths.items():
        _draw_plot(plot, groups).savefig(path)
    return [*paths.values()]


def _draw_plot(plot: Plot, groups: Sequence[str]) -> Any:
    from matplotlib.ticker import LogLocator

    count = len(plot.panels)
    figure = new_figure(12.8, 1.2 + 3.0 * count if count > 1 else 5.6)
    figure.suptitle(_text(plot.title), x=0.01, ha="left", fontsize=12)
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    many = sum(trace.kind == "curve" for trace in plot.traces) > 30
    x_axis = "seconds" if plot.is_cost else "step"
    found = [(trace, trace.by_axis.get("") or trace.by_axis.get(x_axis)) for trace in plot.traces]
    shown = [(trace, series) for trace, series in found if series is not None]
    curves: defaultdict[tuple[int, Style], list[Floats]] = defaultdict(list)  # by panel and look
    for trace, series in shown:
        if trace.kind == "curve" and series.x.size > 1:
            curves[trace.panel, trace.style].append(np.column_stack([series.x, series.y]))
    drawn = {look: _draw_lines(axes[look[0]], look[1], lines, many=many) for look, lines in curves.items()}
    legend: dict[tuple[int, str], Any] = {}
    for trace, series in shown:
        if trace.kind == "curve" and series.x.size > 1:
            handle = drawn[trace.panel, trace.style]
        else:
            log = trace.panel in plot.log_panels
            handle = _draw_trace(axes[trace.panel], trace, series, error_bars=plot.error_bars, many=many, log=log)
        # The runs of a group are listed once, under its name.
        label = trace.name if trace.group < 0 else groups[trace.group]
        if label and trace.kind != "range":
            legend.setdefault((trace.group, label), handle)
    for i, (axis, title) in enumerate(zip(axes, plot.panels, strict=True)):
        style_axes(axis, y=_text(title))
        if i in plot.log_panels:
            axis.set_yscale("log")
        if plot.log_x:
            axis.set_xscale("log")
            axis.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")  # 0.02, not 2 x 10^-2
            axis.xaxis.set_minor_formatter("{x:g}")
            axis.tick_params(which="minor", colors=FRAME, length=3.5)
        axis.autoscale_view()  # which a line asks for by itself, and a collection of lines does not
    axes[-1].set_xlabel(plot.x_title or x_axis)
    labels = [label for _, label in legend][:_LEGEND_ENTRIES]
    figure.legend(
        [*legend.values()][:_LEGEND_ENTRIES],
        [_text(label) for label in labels],
        loc="outside lower left",
        ncols=2 if any(len(label) > _LONG_LABEL for label in labels) else 6,
        frameon=False,
        handlelength=3,
    )
    return figure


def _draw_lines(axis: Any, style: Style, lines: list[Floats], *, many: bool) -> Any:
    """Draw lines of one look, each [points, 2], as one artist: one for each of a thousand runs takes seconds."""
    from matplotlib.collections import LineCollection

    width, alpha = _weight(many)
    return axis.add_collection(
        LineCollection(lines, colors=style.colour, linestyles=style.linestyle, linewidths=width, alpha=alpha, zorder=2)
    )


def _weight(many: bool) -> tuple[float, float]:
    """Return the width and the alpha of a line."""
    return (0.8, 0.4) if many else (1.5, 0.85)


def _draw_trace(axis: Any, trace: Trace, series: Series, *, error_bars: bool, many: bool, log: bool) -> Any:
    colour, marker = trace.style.colour, trace.style.marker
    line = {"color": colour, "linestyle": trace.style.linestyle}
    x, y = series.x, series.y
    if trace.kind == "points":
        return axis.plot(x, y, marker, color=colour, alpha=0.45, markersize=5, markeredgewidth=0)[0]
    if trace.kind == "range":
        return axis.plot(x, y, color=colour, linewidth=7, alpha=0.4, solid_capstyle="butt")[0]
    if trace.kind in ("curve", "front"):
        width, alpha = _weight(many)
        return axis.plot(x, y, linewidth=width, alpha=alpha, marker="." if x.size < 2 else "", **line)[0]
    if error_bars:
        error = None if series.high is None else np.nan_to_num(series.high - y)
        return axis.errorbar(x, y, yerr=error, marker=marker, markersize=10 if x.size == 1 else 6, capsize=3, **line)
    if series.low is not None and series.high is not None and np.isfinite(series.low).any():
        low = np.maximum(series.low, y / 10) if log else series.low  # as on the page
        axis.fill_between(x, low, series.high, color=colour, alpha=0.15, linewidth=0)
    return axis.plot(x, y, linewidth=2, marker=marker if x.size <= 60 else "", markersize=5, **line)[0]


def _text(text: str) -> str:
    """Escape a name, so that matplotlib does not read mathematics in it."""
    return wording.printable(text).replace("$", r"\$")
