"""A colour for each schedule, the same in MLflow's charts and in the reports, and a line style beside it.

The seven hues are those of Okabe & Ito 2008 ("Color Universal Design") that are legible on white and on black; each
also comes darker and lighter, and then with another line style.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

COLOUR_TAG = "mlflow.runColor"
"""Run tag that MLflow's charts take a run's colour from."""

_HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#808080")
_DARK = ("#004A75", "#8F3F00", "#00664B", "#8E4A70", "#996A00", "#2F7FAE", "#4D4D4D")
_LIGHT = ("#5BA7D6", "#F08D4A", "#4CC4A2", "#E3AECB", "#F2C45F", "#93D2F5", "#B0B0B0")
_DASHES = ("solid", "dash", "dot")
_SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
# Those compared most often differ in hue.
_KNOWN = (
    *("cosine", "constant", "wsd", "one_cycle", "linear", "triangular2", "step"),
    *("warmup_constant", "multistep", "cosine_restarts", "rex", "exponential", "triangular", "plateau"),
    *("polynomial", "inverse_sqrt", "exp_range", "batch_growth", "schedule_free", "triangular_staged", "fixed"),
)
_SLOTS = len(_HUES) * 3


@dataclass(frozen=True)
class Style:
    """How the curves of a group are drawn.

    Attributes:
        colour: As #RRGGBB.
        dash: solid, dash or dot.
        symbol: Plotly's name of a marker.
    """

    colour: str
    dash: str
    symbol: str


def _slot(name: str) -> int:
    if name in _KNOWN:
        return _KNOWN.index(name)
    return int(hashlib.sha256(name.encode("utf-8", "replace")).hexdigest(), 16) % _SLOTS


def _style(slot: int) -> Style:
    shade, hue = divmod(slot, len(_HUES))
    return Style((_HUES, _DARK, _LIGHT)[shade][hue], _DASHES[shade], _SYMBOLS[(hue + shade) % len(_SYMBOLS)])


def style(name: str) -> Style:
    """The style of one name: always the same, on every machine."""
    return _style(_slot(name))


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Styles of several names: each its own where it is free, so that up to 21 of them all differ.

    Args:
        names: Schedules, or the values of whatever else runs are grouped by.
    """
    wanted = sorted(set(names), key=lambda name: (name not in _KNOWN, name))
    taken: set[int] = set()
    found: dict[str, Style] = {}
    for name in wanted:
        slot = _slot(name)
        if name not in _KNOWN and len(taken) < _SLOTS:
            slot = next(s for s in ((slot + i) % _SLOTS for i in range(_SLOTS)) if s not in taken)
        taken.add(slot)
        found[name] = _style(slot)
    return found
