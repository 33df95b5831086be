"""`scripts/plot_schedules.py`: draw schedules without training, as a picture or as text for a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill, wrap
from typing import Any

from lr_lightning._plotting import BLUE, LINE_STYLES, ORANGE, SERIES, new_figure, style_axes
from lr_lightning.app.build import build_schedules
from lr_lightning.app.composition import choices_of, load_config, prepare
from lr_lightning.errors import ConfigError
from lr_lightning.schedules import Clock

__all__ = ["SchedulePreview", "as_text", "preview", "save_figure"]

_MOST_TOGETHER = 6  # in one panel; more schedules get one panel each
_COLUMNS = 6
_LONG_LABEL = 28
_BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class SchedulePreview:
    """The values of one schedule at each step of a run."""

    label: str  # its choice, with the overrides for it alone
    caption: str
    lr: list[float]  # absolute, or as a share of the peak
    momentum: list[float] | None = None  # None: constant
    note: str = ""  # what the values cannot show


def preview(
    words: Sequence[str], checkout: Path, *, steps: int, epochs: float, peak: float | None = None
) -> list[SchedulePreview]:
    """Compose, build and evaluate schedules: absolute learning rates for a ``peak``, else shares of the peak.

    ``words`` are choices of the group `schedule`, and overrides. An override after a choice is for that choice, one
    before the first choice is for all. Without a choice, all choices are taken.
    """
    prepare(checkout)
    lr = [] if peak is None else [f"optimizer.lr={peak!r}"]
    clock = Clock(steps, steps_per_epoch=steps / epochs)
    common: list[str] = []
    asked: list[tuple[str, list[str]]] = []
    for word in words:
        bare = word.removeprefix("schedule=")
        if "=" not in bare:
            asked += [(name, []) for name in bare.split(",")]
        else:
            (asked[-1][1] if asked else common).append(word)
    found = []
    for name, own in asked or [(choice, []) for choice in choices_of(checkout)["schedule"]]:
        config = load_config(checkout, [f"schedule={name}", *lr, *common, *own])
        built = build_schedules(config.schedule, config.optimizer.lr)
        unit = 1.0 if peak is None else config.optimizer.lr
        label = " ".join([name, *(override.removeprefix("schedule.") for override in own)])
        note = "the batch grows" if getattr(config.schedule, "growth", None) is not None else ""
        if (plateau := built.plateau) is not None:
            note = f"× {plateau.factor:g} when {plateau.monitor} stalls"
        try:
            lrs = [unit * built.lr(step, clock) for step in range(steps)]
            momentum = None if built.momentum is None else [built.momentum(step, clock) for step in range(steps)]
            found.append(SchedulePreview(label, built.lr.describe(clock), lrs, momentum, note))
        except ValueError as e:
            raise ConfigError(f"schedule={name}, {steps} steps, {epochs:g} epochs: {e}") from e
    return found


def save_figure(drawn: Sequence[SchedulePreview], path: Path, *, title: str, unit: str) -> None:
    """Draw into a file: one panel for a few schedules, a panel each for many; momentum gets its own panels.

    The file's suffix chooses the format, and its folder is made. ``unit`` is that of the learning rates.
    """
    try:
        figure = new_figure(12.8, 4.8)
    except ImportError as e:
        raise ConfigError(f"{e} --terminal draws without it.") from e
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    draw = _draw_together if len(drawn) <= _MOST_TOGETHER else _draw_apart
    draw(figure, drawn, unit)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except ValueError as e:
        raise ConfigError(f"--out: {path}: {e}") from e
    except OSError as e:
        raise ConfigError(f"--out: {path} cannot be written ({e.strerror}). Give another place.") from e


def _draw_together(figure: Any, drawn: Sequence[SchedulePreview], unit: str) -> None:
    moving = any(curve.momentum is not None for curve in drawn)
    rows = 2 if moving else 1
    figure.set_size_inches(12.8, 6.4 if moving else 4.8)
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=[2, 1][:rows])[:, 0]
    for curve, colour, line in zip(drawn, SERIES, LINE_STYLES, strict=False):
        style: dict[str, Any] = {"color": colour, "linestyle": line, "linewidth": 2}
        axes[0].plot(curve.lr, label=f"{curve.label} ({curve.note})" if curve.note else curve.label, **style)
        if curve.momentum is not None:
            axes[1].plot(curve.momentum, **style)
    _frame(axes[0], unit, max(max(curve.lr) for curve in drawn))
    if moving:
        _frame(axes[1], "momentum")
    axes[-1].set_xlabel("step")
    long = any(len(curve.label + curve.note) > _LONG_LABEL for curve in drawn)
    figure.legend(loc="outside lower left", ncols=2 if long else _MOST_TOGETHER, frameon=False, handlelength=4)


def _draw_apart(figure: Any, drawn: Sequence[SchedulePreview], unit: str) -> None:
    panels = []
    for curve in drawn:
        panels.append((curve.label, curve.note, curve.lr, BLUE))
        if curve.momentum is not None:
            panels.append((f"{curve.label}: momentum", "", curve.momentum, ORANGE))
    rows = -(-len(panels) // _COLUMNS)
    figure.set_size_inches(12.8, 0.6 + 1.75 * rows)
    axes = figure.subplots(rows, _COLUMNS, sharex=True, squeeze=False).ravel()
    top = max(max(curve.lr) for curve in drawn)
    for i, (axis, (label, note, values, colour)) in enumerate(zip(axes, panels, strict=False)):
        axis.plot(values, color=colour, linewidth=1.8)
        axis.text(0.5, 0.5, fill(note, 18), transform=axis.transAxes, ha="center", va="center", fontsize=9)
        shown = label if len(label) <= _LONG_LABEL else f"{label[: _LONG_LABEL - 1]}…"
        axis.set_title(shown, loc="left", fontsize=11)
        if colour == BLUE:
            axis.fill_between(range(len(values)), values, color=colour, alpha=0.12, linewidth=0)
        _frame(axis, unit if colour == BLUE and i % _COLUMNS == 0 else "", top if colour == BLUE else None)
        if i + _COLUMNS >= len(panels):
            axis.set_xlabel("step")
            axis.tick_params(labelbottom=True)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)


def _frame(axis: Any, label: str, top: float | None = None) -> None:
    style_axes(axis, y=label)
    axis.margins(x=0)
    if top is not None:
        axis.set_ylim(0, 1.04 * top if top > 0 else 1)  # from 0, so that heights compare


def as_text(drawn: Sequence[SchedulePreview], width: int = 100) -> str:
    """Draw with block characters, on a terminal of ``width`` columns."""
    rows = max(3, min(8, 40 // max(1, len(drawn))))
    top = max((max(curve.lr) for curve in drawn), default=1.0)  # one scale for all schedules
    lines: list[str] = []
    for curve in drawn:
        caption = f"{curve.label}: {curve.caption}" + (f"; {curve.note}" if curve.note else "")
        lines += [*wrap(caption, width), *_blocks(curve.lr, (0.0, top), rows, width), ""]
        if curve.momentum is not None:
            ends = min(curve.momentum), max(curve.momentum)
            lines += [*wrap(f"{curve.label}: momentum", width), *_blocks(curve.momentum, ends, rows, width), ""]
    return "\n".join(lines).rstrip()


def _blocks(values: Sequence[float], ends: tuple[float, float], rows: int, width: int) -> list[str]:
    """Return columns as high as the values, in eighths of a row, on an axis between ``ends``."""
    floor, top = ends
    span = top - floor or 1.0
    head, foot = f"{top:.3g}", f"{floor:.3g}"
    margin = max(len(head), len(foot)) + 1
    columns = min(len(values), max(10, width - margin - 1))
    middles = [(2 * i + 1) * len(values) // (2 * columns) for i in range(columns)]  # of each column's steps
    levels = [round((values[i] - floor) / span * rows * 8) for i in middles]
    drawn = []
    for row in reversed(range(rows)):
        label = head if row == rows - 1 else ""
        drawn.append(f"{label:>{margin - 1}} │" + "".join(_BLOCKS[min(8, max(0, n - 8 * row))] for n in levels))
    return [*drawn, f"{foot:>{margin - 1}} └" + "─" * columns]
