"""One look for every figure: the palette, a style for each schedule, and helpers for matplotlib.

The colours are those of Okabe & Ito 2008 ("Color Universal Design"), which people with colour blindness can
distinguish. matplotlib is an optional extra, so it is imported when a figure is made.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLACK",
    "BLUE",
    "FRAME",
    "GREEN",
    "GREY",
    "LINE_STYLES",
    "ORANGE",
    "PINK",
    "PROBE",
    "SERIES",
    "SKY",
    "VALIDATION",
    "VERDICT_COLOURS",
    "YELLOW",
    "Style",
    "axes_of",
    "new_figure",
    "style",
    "style_axes",
    "styles",
]

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
YELLOW, SKY, GREY, BLACK = "#E69F00", "#56B4E9", "#808080", "#000000"
FRAME = "#555555"  # axes and their ticks
VALIDATION, PROBE = ORANGE, BLUE
SERIES = (BLUE, ORANGE, GREEN, BLACK, PINK, YELLOW)
"""Colours of a few lines in one panel, with ``LINE_STYLES`` beside them."""
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
VERDICT_COLOURS = {
    "healthy": GREEN,
    "overfitting": ORANGE,
    "underfitting": BLUE,
    "collapsed": PINK,
    "diverged": BLACK,
    "inconclusive": GREY,
}

# The hues of schedules are legible on white and on black; each also comes darker and lighter, with another line style.
_HUES = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, GREY)
_DARK = ("#004A75", "#8F3F00", "#00664B", "#8E4A70", "#996A00", "#2F7FAE", "#4D4D4D")
_LIGHT = ("#5BA7D6", "#F08D4A", "#4CC4A2", "#E3AECB", "#F2C45F", "#93D2F5", "#B0B0B0")
_DASHES = ("solid", "dash", "dot")
_SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
_LINES = dict(zip(_DASHES, ("-", "--", ":"), strict=True))  # as matplotlib names them
_MARKERS = dict(zip(_SYMBOLS, "osDPX^*", strict=True))
# Schedules that are often compared differ in hue.
_KNOWN = (
    *("cosine", "constant", "wsd", "one_cycle", "linear", "triangular2", "step"),
    *("warmup_constant", "multistep", "cosine_restarts", "rex", "exponential", "triangular", "plateau"),
    *("polynomial", "inverse_sqrt", "exp_range", "batch_growth", "schedule_free", "triangular_staged", "fixed"),
)
_SLOTS = len(_HUES) * 3
_DISTINCT = 5  # the first of the hues: sky is close to blue, and grey looks faint


@dataclass(frozen=True)
class Style:
    """How the curves of a group are drawn."""

    colour: str  # as #RRGGBB
    dash: str  # solid, dash or dot
    symbol: str  # Plotly's name of a marker

    @property
    def linestyle(self) -> str:
        """The dash, as matplotlib names it."""
        return _LINES[self.dash]

    @property
    def marker(self) -> str:
        """The symbol, as matplotlib names it."""
        return _MARKERS[self.symbol]


def _slot(name: str) -> int:
    if name in _KNOWN:
        return _KNOWN.index(name)
    return int(hashlib.sha256(name.encode("utf-8", "replace")).hexdigest(), 16) % _DISTINCT


def _style(slot: int) -> Style:
    shade, hue = divmod(slot, len(_HUES))
    return Style((_HUES, _DARK, _LIGHT)[shade][hue], _DASHES[shade], _SYMBOLS[(hue + shade) % len(_SYMBOLS)])


def _distance(slot: int, own: int) -> tuple[int, bool, int]:
    """Order slots by how well they suit a name: full hues before their shades, clearly different hues first."""
    shade, hue = divmod(slot, len(_HUES))
    return shade, hue >= _DISTINCT, (hue - own) % len(_HUES)


def style(name: str) -> Style:
    """Return the style of one name: the same in MLflow's charts and in reports, on every machine."""
    return _style(_slot(name))


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each name: the name's own if it is free, so that up to 21 names all differ.

    The seven full hues with solid lines are given before their darker and lighter shades.
    """
    wanted = sorted(set(names), key=lambda name: (name not in _KNOWN, name))
    taken: set[int] = set()
    found: dict[str, Style] = {}
    for name in wanted:
        slot = own = _slot(name)
        if name not in _KNOWN and (free := set(range(_SLOTS)) - taken):
            slot = min(free, key=partial(_distance, own=own))
        taken.add(slot)
        found[name] = _style(slot)
    return found


def new_figure(
    width: float, height: float, dpi: int = 100, layout: Literal["constrained"] | None = "constrained"
) -> "Figure":
    """Return an empty figure, in inches, that belongs to no window and no global state of pyplot."""
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError(
            "matplotlib, which draws pictures, is not installed: pip install 'lr-lightning[plot]'."
        ) from e
    return Figure(figsize=(width, height), layout=layout, dpi=dpi)


def axes_of(ax: "Axes | None", width: float = 8, height: float = 4.8, dpi: int = 120) -> tuple[Any, Any]:
    """Return the axes to draw on and their figure; without ``ax``, both are new."""
    if ax is not None:
        return ax.figure, ax
    figure = new_figure(width, height, dpi)
    return figure, figure.add_subplot()


def style_axes(axes: Any, *, x: str | None = None, y: str | None = None, grid: bool = False) -> None:
    """Give axes the common look: two spines, a grey frame, the labels ``x`` and ``y``, and a light grid if asked."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)
    axes.tick_params(colors=FRAME)
    if grid:
        axes.grid(alpha=0.25)
    if x is not None:
        axes.set_xlabel(x)
    if y is not None:
        axes.set_ylabel(y)
