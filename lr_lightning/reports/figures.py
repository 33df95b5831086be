"""Every figure of a comparison, and those over the course of a run."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lr_lightning.diagnosis.thinning import band, thin
from lr_lightning.reports import names
from lr_lightning.reports.axes import AXES
from lr_lightning.reports.groups import Group, Outcome
from lr_lightning.reports.measure import Measured
from lr_lightning.reports.traces import Figure, Floats, Place, Trace
from lr_lightning.reports.trade_offs import RATE, accuracy_against_cost, sensitivity
from lr_lightning.tracking.colours import Style
from lr_lightning.tracking.runs import Curve

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


def _curve(m: Measured, key: str) -> Curve | None:
    curve = m.curves.get(key)
    return curve if curve is not None and curve.step.size else None


def _places(m: Measured, curve: Curve, limit: int) -> dict[str, Place]:
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
