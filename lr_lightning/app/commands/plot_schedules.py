"""Schedules drawn without training: as a picture, and as text for a terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill, wrap
from typing import Any

from lr_lightning.app.build import build_schedule, momentum_of, plateau_of
from lr_lightning.app.composition import choices_of, load_config, prepare
from lr_lightning.app.schemas.schedule import ScheduleConfig
from lr_lightning.errors import ConfigError
from lr_lightning.schedules import Clock

__all__ = ["Curve", "as_text", "curves", "save_figure"]

_TOGETHER = 6
"""So many curves share one panel; more get one each."""
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00")  # Okabe & Ito, told apart by everybody
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))  # and without colour
_COLUMNS = 6
_LONG = 28
_BLOCKS = " ▁▂▃▄▅▆▇█"
_GREY = "#555555"


@dataclass(frozen=True)
class Curve:
    """What is drawn of one schedule.

    Attributes:
        label: Its choice, with the overrides that are its own.
        caption: What it does, in one line.
        lr: The rate of each step, as a share of the peak or absolute.
        momentum: The momentum of each step, or None where it does not move.
        note: What the curve cannot show, or nothing.
    """

    label: str
    caption: str
    lr: list[float]
    momentum: list[float] | None = None
    note: str = ""


def curves(words: Sequence[str], root: Path, *, steps: int, epochs: float, peak: float | None = None) -> list[Curve]:
    """Compose, build and evaluate schedules.

    Args:
        words: Choices of the group `schedule`, and overrides: one after a choice is for that choice, one before the
            first choice is for all. Without a choice, all there are.
        root: The checkout, whose `conf/` is read.
        steps: Updates in the run.
        epochs: Epochs in it.
        peak: The peak rate, for rates that are absolute; None for shares of the peak.

    Raises:
        ConfigError: If a choice or an override is bad, or a schedule does not fit into the steps.
    """
    prepare(root)
    lr = [] if peak is None else [f"optimizer.lr={peak!r}"]
    clock = Clock(steps, steps_per_epoch=steps / epochs)
    found = []
    for name, common, own in _requests(words, choices_of(root)["schedule"]):
        config = load_config(root, [f"schedule={name}", *lr, *common, *own])
        schedule, momentum = build_schedule(config), momentum_of(config.schedule)
        unit = 1.0 if peak is None else config.optimizer.lr
        try:
            found.append(
                Curve(
                    " ".join([name, *(override.removeprefix("schedule.") for override in own)]),
                    schedule.describe(clock),
                    [unit * schedule(step, clock) for step in range(steps)],
                    None if momentum is None else [momentum(step, clock) for step in range(steps)],
                    _note(config.schedule),
                )
            )
        except ValueError as e:
            raise ConfigError(f"schedule={name}, {steps} steps, {epochs:g} epochs: {e}") from e
    return found


def _note(node: ScheduleConfig) -> str:
    """What moves a run of this choice besides the steps."""
    if (plateau := plateau_of(node)) is not None:
        return f"× {plateau.factor:g} when {plateau.monitor} stalls"
    return "the batch grows" if getattr(node, "growth", None) is not None else ""


def _requests(words: Sequence[str], choices: Sequence[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Name, overrides for all and own overrides of each schedule that is asked for."""
    common: list[str] = []
    asked: list[tuple[str, list[str]]] = []
    for word in words:
        bare = word.removeprefix("schedule=")
        if "=" not in bare:
            asked += [(name, []) for name in bare.split(",")]
        else:
            (asked[-1][1] if asked else common).append(word)
    for name, own in asked or [(choice, []) for choice in choices]:
        yield name, common, own


def save_figure(drawn: Sequence[Curve], path: Path, *, title: str, unit: str) -> None:
    """Draw into a file: one panel for a few curves, a panel each for many; the momentum gets panels of its own.

    Args:
        drawn: At least one curve.
        path: The file; its suffix says which format. Its folder is made.
        title: Above the whole.
        unit: What the rates are in, beside their axis.

    Raises:
        ConfigError: If matplotlib is not installed or does not know the format, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ConfigError(
            "matplotlib, which draws pictures, is not installed: pip install 'lr-lightning[plot]'. "
            "--terminal draws without it."
        ) from e
    figure = Figure(layout="constrained", dpi=100)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    if len(drawn) <= _TOGETHER:
        _draw_together(figure, drawn, unit)
    else:
        _draw_apart(figure, drawn, unit)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except ValueError as e:
        raise ConfigError(f"--out: {path}: {e}") from e
    except OSError as e:
        raise ConfigError(f"--out: {path} cannot be written ({e.strerror}). Give another place.") from e


def _draw_together(figure: Any, drawn: Sequence[Curve], unit: str) -> None:
    moving = [curve for curve in drawn if curve.momentum is not None]
    rows = 2 if moving else 1
    figure.set_size_inches(12.8, 6.4 if moving else 4.8)
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=[2, 1][:rows])[:, 0]
    for i, curve in enumerate(drawn):
        style: dict[str, Any] = {"color": _COLOURS[i], "linestyle": _STYLES[i], "linewidth": 2}
        axes[0].plot(curve.lr, label=f"{curve.label} ({curve.note})" if curve.note else curve.label, **style)
        if curve.momentum is not None:
            axes[1].plot(curve.momentum, **style)
    _frame(axes[0], unit, max(max(curve.lr) for curve in drawn))
    if moving:
        _frame(axes[1], "momentum")
    axes[-1].set_xlabel("step")
    long = any(len(curve.label + curve.note) > _LONG for curve in drawn)
    figure.legend(loc="outside lower left", ncols=2 if long else _TOGETHER, frameon=False, handlelength=4)


def _draw_apart(figure: Any, drawn: Sequence[Curve], unit: str) -> None:
    panels = []
    for curve in drawn:
        panels.append((curve.label, curve.note, curve.lr, _COLOURS[0]))
        if curve.momentum is not None:
            panels.append((f"{curve.label}: momentum", "", curve.momentum, _COLOURS[1]))
    rows = -(-len(panels) // _COLUMNS)
    figure.set_size_inches(12.8, 0.6 + 1.75 * rows)
    axes = figure.subplots(rows, _COLUMNS, sharex=True, squeeze=False).ravel()
    top = max(max(curve.lr) for curve in drawn)
    for i, (axis, (label, note, values, colour)) in enumerate(zip(axes, panels, strict=False)):
        axis.plot(values, color=colour, linewidth=1.8)
        axis.text(0.5, 0.5, fill(note, 18), transform=axis.transAxes, ha="center", va="center", fontsize=9)
        axis.set_title(label if len(label) <= _LONG else f"{label[: _LONG - 1]}…", loc="left", fontsize=11)
        if colour == _COLOURS[0]:
            axis.fill_between(range(len(values)), values, color=colour, alpha=0.12, linewidth=0)
            _frame(axis, unit if i % _COLUMNS == 0 else "", top)
        else:
            _frame(axis, "")
        if i + _COLUMNS >= len(panels):
            axis.set_xlabel("step")
            axis.tick_params(labelbottom=True)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)


def _frame(axis: Any, label: str, top: float | None = None) -> None:
    axis.set_ylabel(label)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_GREY)
    axis.tick_params(colors=_GREY)
    axis.margins(x=0)
    if top is not None:
        axis.set_ylim(0, 1.04 * top if top > 0 else 1)  # from 0: a height is a rate


def as_text(drawn: Sequence[Curve], width: int = 100) -> str:
    """Draw with block characters.

    Args:
        drawn: The curves.
        width: Columns there are.
    """
    rows = max(3, min(8, 40 // max(1, len(drawn))))
    top = max((max(curve.lr) for curve in drawn), default=1.0)  # one scale for all
    lines: list[str] = []
    for curve in drawn:
        caption = f"{curve.label}: {curve.caption}" + (f"; {curve.note}" if curve.note else "")
        lines += [*wrap(caption, width), *_blocks(curve.lr, (0.0, top), rows, width), ""]
        if curve.momentum is not None:
            ends = min(curve.momentum), max(curve.momentum)
            lines += [*wrap(f"{curve.label}: momentum", width), *_blocks(curve.momentum, ends, rows, width), ""]
    return "\n".join(lines).rstrip()


def _blocks(values: Sequence[float], ends: tuple[float, float], rows: int, width: int) -> list[str]:
    """Columns as high as the values, on an axis with these ends, in eighths of a row."""
    floor, top = ends
    span = top - floor or 1.0
    head, foot = f"{top:.3g}", f"{floor:.3g}"
    margin = max(len(head), len(foot)) + 1
    columns = min(len(values), max(10, width - margin - 1))
    # the middle of each column's steps
    sample = [values[(2 * i + 1) * len(values) // (2 * columns)] for i in range(columns)]
    levels = [round((value - floor) / span * rows * 8) for value in sample]
    drawn = []
    for row in reversed(range(rows)):
        label = head if row == rows - 1 else ""
        drawn.append(f"{label:>{margin - 1}} │" + "".join(_BLOCKS[min(8, max(0, n - 8 * row))] for n in levels))
    return [*drawn, f"{foot:>{margin - 1}} └" + "─" * columns]
