"""The report's plots as PNG files, for a paper or a chat: the same data as on the page, over steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lr_lightning._plotting import new_figure, style_axes
from lr_lightning.reports import wording
from lr_lightning.reports.plots import Plot, Series, Trace

_LONG_LABEL = 40
_LEGEND_ENTRIES = 24


def save_pngs(plots: Sequence[Plot], groups: Sequence[str], folder: Path) -> list[Path]:
    """Draw every plot into ``folder`` and return the files; ``groups`` are the names that the traces' groups have."""
    paths = {plot: folder / f"{plot.id}.png" for plot in plots}
    for plot, path in paths.items():
        _draw(plot, groups).savefig(path)
    return [*paths.values()]


def _draw(plot: Plot, groups: Sequence[str]) -> Any:
    count = len(plot.panels)
    figure = new_figure(12.8, 1.2 + 3.0 * count if count > 1 else 5.6)
    figure.suptitle(_text(plot.title), x=0.01, ha="left", fontsize=12)
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    many = sum(trace.kind == "curve" for trace in plot.traces) > 30
    x_axis = "seconds" if plot.is_cost else "step"
    legend: dict[tuple[int, str], Any] = {}
    for trace in plot.traces:
        series = trace.by_axis.get("") or trace.by_axis.get(x_axis)
        if series is None:
            continue
        handle = _draw_trace(axes[trace.panel], trace, series, error_bars=plot.error_bars, many=many)
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


def _draw_trace(axis: Any, trace: Trace, series: Series, *, error_bars: bool, many: bool) -> Any:
    colour, marker = trace.style.colour, trace.style.marker
    line = {"color": colour, "linestyle": trace.style.linestyle}
    x, y = series.x, series.y
    if trace.kind == "points":
        return axis.plot(x, y, marker, color=colour, alpha=0.45, markersize=5, markeredgewidth=0)[0]
    if trace.kind == "range":
        return axis.plot(x, y, color=colour, linewidth=7, alpha=0.4, solid_capstyle="butt")[0]
    if trace.kind in ("curve", "front"):
        width, alpha = (0.8, 0.4) if many else (1.5, 0.85)
        return axis.plot(x, y, linewidth=width, alpha=alpha, marker="." if x.size < 2 else "", **line)[0]
    if error_bars:
        error = None if series.high is None else np.nan_to_num(series.high - y)
        return axis.errorbar(x, y, yerr=error, marker=marker, markersize=10 if x.size == 1 else 6, capsize=3, **line)
    if series.low is not None and series.high is not None and np.isfinite(series.low).any():
        axis.fill_between(x, series.low, series.high, color=colour, alpha=0.15, linewidth=0)
    return axis.plot(x, y, linewidth=2, marker=marker if x.size <= 60 else "", markersize=5, **line)[0]


def _text(text: str) -> str:
    """Escape a name, so that matplotlib does not read mathematics in it."""
    return wording.printable(text).replace("$", r"\$")
