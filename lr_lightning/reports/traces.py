"""What is drawn, as plain arrays: the page and the pictures draw the same."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lr_lightning.tracking.colours import Style

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
