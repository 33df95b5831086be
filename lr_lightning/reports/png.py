"""The figures as PNG files, for a paper or a chat: the same arrays as on the page, above steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lr_lightning.reports import wording as words
from lr_lightning.reports.plots import Figure, Place, Trace

_DASHES = {"solid": "-", "dash": "--", "dot": ":"}
_MARKS = {"circle": "o", "square": "s", "diamond": "D", "cross": "P", "x": "X", "triangle-up": "^", "star": "*"}
_GREY = "#555555"
_LONG = 40


def save_pictures(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Draw every figure into ``folder``; give the files."""
    paths = []
    for figure in figures:
        path = folder / f"{figure.id}.png"
        _draw(figure).savefig(path)
        paths.append(path)
    return paths


def _draw(figure: Figure) -> Any:
    from matplotlib.figure import Figure as Canvas

    count = len(figure.panels)
    canvas = Canvas(figsize=(12.8, 1.2 + 3.0 * count if count > 1 else 5.6), layout="constrained", dpi=100)
    canvas.suptitle(_text(figure.title), x=0.01, ha="left", fontsize=12)
    axes = canvas.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    many = sum(trace.kind == "curve" for trace in figure.traces) > 30
    x_title = figure.x_title or "step"
    handles: dict[str, Any] = {}
    for trace in figure.traces:
        place = trace.places.get("") or trace.places.get("seconds" if figure.id == "cost" else "step")
        if figure.id == "cost":
            x_title = "seconds"
        if place is None:
            continue
        line = _trace(axes[trace.panel], trace, place, bars=figure.id in ("cost", "sensitivity"), many=many)
        handles.setdefault(f"{trace.group} {_key(figure, trace)}", line)
    for i, (axis, title) in enumerate(zip(axes, figure.panels, strict=True)):
        axis.set_ylabel(_text(title))
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(_GREY)
        axis.tick_params(colors=_GREY)
        if i in figure.log_panels:
            axis.set_yscale("log")
        if figure.log_x:
            axis.set_xscale("log")
    axes[-1].set_xlabel(x_title)
    labels = {f"{t.group} {_key(figure, t)}": _key(figure, t) for t in figure.traces}
    bars = {f"{t.group} {_key(figure, t)}" for t in figure.traces if t.kind == "range"}
    shown = [key for key in handles if labels[key] and key not in bars][:24]
    canvas.legend(
        [handles[key] for key in shown],
        [_text(labels[key]) for key in shown],
        loc="outside lower left",
        ncols=2 if any(len(labels[key]) > _LONG for key in shown) else 6,
        frameon=False,
        handlelength=3,
    )
    return canvas


def _key(figure: Figure, trace: Trace) -> str:
    """What a trace is called in the legend: runs go by their group's name, so only one of them is listed."""
    return figure.legend_names.get(trace.group, trace.name)


def _trace(axis: Any, trace: Trace, place: Place, *, bars: bool, many: bool) -> Any:
    look = {"color": trace.style.colour, "linestyle": _DASHES[trace.style.dash]}
    mark = _MARKS[trace.style.symbol]
    if trace.kind == "points":
        cloud = {"alpha": 0.45, "markersize": 5, "markeredgewidth": 0}
        return axis.plot(place.x, place.y, mark, color=trace.style.colour, **cloud)[0]
    if trace.kind == "range":
        bar = {"linewidth": 7, "alpha": 0.4, "solid_capstyle": "butt"}
        return axis.plot(place.x, place.y, color=trace.style.colour, **bar)[0]
    if trace.kind in ("curve", "front"):
        width, alpha = (0.8, 0.4) if many else (1.5, 0.85)
        dot = "." if place.x.size < 2 else ""
        return axis.plot(place.x, place.y, linewidth=width, alpha=alpha, marker=dot, **look)[0]
    if bars:
        error = None if place.high is None else np.nan_to_num(place.high - place.y)
        return axis.errorbar(
            place.x, place.y, yerr=error, marker=mark, markersize=10 if place.x.size == 1 else 6, capsize=3, **look
        )
    if place.low is not None and place.high is not None and np.isfinite(place.low).any():
        axis.fill_between(place.x, place.low, place.high, color=trace.style.colour, alpha=0.15, linewidth=0)
    few = place.x.size <= 60
    return axis.plot(place.x, place.y, linewidth=2, marker=mark if few else "", markersize=5, **look)[0]


def _text(text: str) -> str:
    """A name is a name, not mathematics."""
    return words.plain(text).replace("$", r"\$")
