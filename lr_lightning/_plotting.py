"""One look for every figure: the palette, a style for each schedule, and helpers for matplotlib.

The colours are those of Okabe & Ito 2008 ("Color Universal Design"), which people with colour blindness can
distinguish. matplotlib is an optional extra, so it is imported when a figure is made.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    "colour_ramp",
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

# Clearly different colours on white and on black, for any eyes: those of Okabe & Ito, then each colour that is farthest
# from those before it (CIEDE2000, also as seen without red or green cones). A name beyond them gets another line style.
_COLOURS = (
    *(BLUE, ORANGE, GREEN, PINK, YELLOW, "#961E3C", "#8C9BFF", "#006969", "#C30F96", "#A5B478", "#5A1EF0", GREY),
)
# From a low to a high learning rate: the hue and the lightness rise together, so that the order shows.
_RAMP = ("#3B2FBF", "#7A2FBE", "#B8318F", "#DE5262", "#EE8233", "#D9A400")
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
_SLOTS = len(_COLOURS) * len(_DASHES)
_FEWEST_ORDERED = 4  # names that differ in a number alone; fewer are clearer in different hues
_NUMBER = re.compile(r"(?<==)[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?(?=,|$)", re.IGNORECASE)


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
    known = name in _KNOWN
    number = _KNOWN.index(name) if known else int(hashlib.sha256(name.encode("utf-8", "replace")).hexdigest(), 16)
    return number % len(_COLOURS)


def _style(slot: int) -> Style:
    line, colour = divmod(slot, len(_COLOURS))
    return Style(_COLOURS[colour], _DASHES[line % len(_DASHES)], _SYMBOLS[(colour + line) % len(_SYMBOLS)])


def style(name: str) -> Style:
    """Return the style of one name: the same in MLflow's charts and in reports, on every machine."""
    return _style(_slot(name))


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each name, as different as they can be; one name alone gets its :func:`style`.

    Names that differ in one number, such as a learning rate, are coloured in its order, from four numbers on. Else up
    to twelve names differ in colour, and up to 36 in colour or line.
    """
    wanted = sorted(set(names), key=lambda name: (name not in _KNOWN, name))
    if (ordered := _ordered_styles(wanted)) is not None:
        return ordered
    free = [*range(_SLOTS)]
    found: dict[str, Style] = {}
    for name in wanted:
        own = _slot(name)
        slot = min(free, key=lambda slot: (slot // len(_COLOURS), (slot - own) % len(_COLOURS))) if free else own
        free = [other for other in free if other != slot]
        found[name] = _style(slot)
    return found


def _ordered_styles(names: Sequence[str]) -> dict[str, Style] | None:
    """Return styles in the order of the one number in which the names differ; None if they differ otherwise."""
    found = {name: [*map(float, _NUMBER.findall(name))] for name in names}
    if len({len(numbers) for numbers in found.values()}) != 1:
        return None
    varying = [i for i, values in enumerate(zip(*found.values(), strict=True)) if len(set(values)) > 1]
    templates = sorted({_NUMBER.sub("", name) for name in names})
    if len(varying) != 1 or len(templates) > min(len(_DASHES), max(1, len(names) // _FEWEST_ORDERED)):
        return None
    order = sorted({numbers[varying[0]] for numbers in found.values()})
    if len(order) < _FEWEST_ORDERED:
        return None
    style_of = {}
    for name, numbers in found.items():
        rank, line = order.index(numbers[varying[0]]), templates.index(_NUMBER.sub("", name))
        colour = colour_ramp(rank / (len(order) - 1))
        style_of[name] = Style(colour, _DASHES[line], _SYMBOLS[(rank + line) % len(_SYMBOLS)])
    return style_of


def colour_ramp(position: float) -> str:
    """Return the colour at a position from 0, the lowest learning rate, to 1, the highest."""
    at = min(max(position, 0.0), 1.0) * (len(_RAMP) - 1)
    first = min(int(at), len(_RAMP) - 2)
    low, high = ([int(text[i : i + 2], 16) for i in (1, 3, 5)] for text in _RAMP[first : first + 2])
    return "#" + "".join(f"{round(x + (y - x) * (at - first)):02X}" for x, y in zip(low, high, strict=True))


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
