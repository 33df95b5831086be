"""The report as one HTML file that needs nothing else: no network, no other file.

Names, tags and params may come from anybody. Jinja escapes them, the data block cannot end its script element, and a
content policy lets only the scripts of this page run, by their hash, so that what slipped through would do nothing.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lr_lightning._plotting import Style
from lr_lightning.diagnosis.cost import Target
from lr_lightning.reports import tables
from lr_lightning.reports import wording as words
from lr_lightning.reports.groups import Outcome
from lr_lightning.reports.plots import Figure, Floats, Trace
from lr_lightning.reports.run_metrics import AXES
from lr_lightning.tracking.query import Run

METHODS = (
    "Best and last are the extreme and the final row of the metric in MLflow; the test metric is the one the run "
    "logged. Best of many validations is a little optimistic; it is so for every group alike.",
    "Only runs that came to their end (FINISHED, not diverged) are in means; every other run is listed and its curves "
    "are drawn.",
    "In comparisons a run that diverged is the worst there is: of its pair it loses. Where any run of two groups did, "
    "p is of ranks (signed ranks of pairs, or ranks of all runs), and the mean difference is of the other runs, "
    "without an interval. Runs that failed, were killed or still run are in no comparison.",
    "Differences are between runs of the same seed, where at least half of the smaller group's seeds match; p is that "
    "of an exact sign-flip test, two-sided. Otherwise the groups are independent samples and p is that of a "
    "permutation test.",
    "Adjusted p: Holm's correction over all comparisons in the table, of several data sets over those of each. "
    "Told apart means adjusted p ≤ 0.05.",
    "Intervals of differences are bootstrapped (BCa, 9999 resamples, not adjusted for several comparisons); from few "
    "seeds they are too narrow, so no finding rests on them.",
    "Time to a target: the first row that meets it. A run that ended or was stopped before is censored, one that "
    "diverged never reaches it; the median is Kaplan and Meier's.",
    "Worst setback: the largest fall of the metric below its best so far, mean over runs.",
)


def render(
    outcome: Outcome,
    drawn: Sequence[Figure],
    styles: dict[str, Style],
    left: Sequence[tuple[Run, str]],
    *,
    title: str,
    facts: str,
    target: Target | None,
    base: str,
) -> str:
    """Write the page.

    Args:
        outcome: What is said.
        drawn: Its figures.
        styles: Group to style.
        left: Runs that were left out, and why.
        title: Of the page.
        facts: Where the runs are from, and when.
        target: What times are taken to, or None.
        base: Address of the MLflow server that links lead to.
    """
    template_files = files("lr_lightning.reports") / "template"
    js, plotly = (template_files / "report.js").read_text("utf-8"), _plotly() if drawn else ""
    environment = Environment(
        loader=PackageLoader("lr_lightning.reports", "template"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html.j2").render(
        title=words.plain(title),
        facts=words.plain(facts),
        findings=[words.plain(text) for text in words.findings(outcome)],
        warnings=[words.plain(text) for text in outcome.warnings],
        css=Markup((template_files / "report.css").read_text("utf-8")),
        js=Markup(js),
        plotly=Markup(plotly),
        hashes=Markup(" ".join(f"'sha256-{_hash(script)}'" for script in (plotly, js))),
        data=Markup(_safe_json({"axes": AXES, "figures": [_figure(figure) for figure in drawn]})),
        axes=list(AXES.items()),
        figures=[
            {
                "id": figure.id,
                "title": figure.title,
                "note": figure.note,
                "height": 104 + 240 * len(figure.panels),
                "legend": _own_legend(figure),
            }
            for figure in drawn
        ],
        methods=METHODS,
        **_groups(outcome, styles, target),
        **_runs(outcome, left, base),
    )


def _groups(outcome: Outcome, styles: dict[str, Style], target: Target | None) -> dict[str, object]:
    """The tables of the groups and of their comparisons."""
    groups, pairs = tables.group_table(outcome, target), tables.comparison_table(outcome)
    swatches = [_swatch(styles[group.name]) for group in outcome.groups]
    return {
        "group_columns": groups.columns,
        "group_rows": [
            {"name": row[0], "cells": row[1:], "swatch": swatch}
            for row, swatch in zip(groups.rows, swatches, strict=True)
        ],
        "group_note": (
            f"Ordered by {'data set and, of each, by ' * bool(outcome.mixed)}the mean, which is no finding by itself."
            if len(groups.rows) > 1
            else ""
        ),
        "comparison_columns": pairs.columns,
        "comparison_rows": pairs.rows,
        "no_comparison": words.plain(words.not_compared(outcome)),
        "comparison_note": (
            "By the best validation value, not the test metric: choosing by the test set would use it up. "
            "An interval that leaves out 0 is no finding where there are too few seeds."
        ),
    }


def _runs(outcome: Outcome, left: Sequence[tuple[Run, str]], base: str) -> dict[str, object]:
    """The tables of the runs and of those that were left out."""
    runs, of = tables.run_table(outcome)
    return {
        "differed_note": f"{tables.differed_note(outcome)} Links lead to {base}, where `make ui` serves a local store.",
        "run_columns": runs.columns,
        "run_rows": [
            {"name": row[0], "cells": row[1:], "link": tables.link(base, run)}
            for row, run in zip(runs.rows, of, strict=True)
        ],
        "left_rows": [
            {"name": words.plain(run.name), "why": words.plain(why), "link": tables.link(base, run)}
            for run, why in left
        ],
    }


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _hash(text: str) -> str:
    # The parser turns line ends into \n before the browser takes the hash.
    normal = text.replace("\r\n", "\n").replace("\r", "\n")
    return base64.b64encode(hashlib.sha256(normal.encode("utf-8")).digest()).decode("ascii")


def _safe_json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _figure(figure: Figure) -> dict[str, object]:
    return {
        "id": figure.id,
        "panels": [words.plain(panel) for panel in figure.panels],
        "x_title": figure.x_title,
        "log_x": figure.log_x,
        "log_panels": list(figure.log_panels),
        "traces": [_trace(figure, trace) for trace in figure.traces],
    }


def _trace(figure: Figure, trace: Trace) -> dict[str, object]:
    places = {
        axis: {
            key: _packed(values)
            for key, values in (("x", p.x), ("y", p.y), ("low", p.low), ("high", p.high))
            if values is not None
        }
        for axis, p in trace.places.items()
    }
    return {
        "name": words.plain(trace.name),
        "group": trace.group,
        "panel": trace.panel,
        "kind": trace.kind,
        "bars": figure.id in ("cost", "sensitivity"),
        "colour": trace.style.colour,
        "dash": trace.style.dash,
        "symbol": trace.style.symbol,
        "places": places,
    }


def _packed(values: Floats) -> str:
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode("ascii")


def _own_legend(figure: Figure) -> list[dict[str, object]]:
    """A legend below a figure whose lines are not the groups."""
    names = {
        trace.name: trace.style for trace in figure.traces if trace.group < 0 and trace.kind not in ("front", "range")
    }
    return [{"name": words.plain(name), "swatch": _swatch(style)} for name, style in names.items()]


_MARKS = {
    "circle": '<circle cx="17" cy="6" r="4"/>',
    "square": '<rect x="13" y="2" width="8" height="8"/>',
    "diamond": '<path d="M17 1l5 5-5 5-5-5z"/>',
    "cross": '<path d="M15.500 1h3v3.500H22v3h-3.500V11h-3V7.500H12v-3h3.500z"/>',
    "x": '<path d="M13 4l2-2 2 2 2-2 2 2-2 2 2 2-2 2-2-2-2 2-2-2 2-2z"/>',
    "triangle-up": '<path d="M17 1l5 9H12z"/>',
    "star": '<path d="M17 0l2 4 4 .4-3 2.800 1 4.300-4-2.300-4 2.300 1-4.300-3-2.800 4-.4z"/>',
}
_DASHES = {"solid": "", "dash": "6 3", "dot": "2 2"}


def _swatch(style: Style) -> Markup:
    """The line and marker of a group, as they are in the figures."""
    line = f'<path d="M0 6h34" stroke="{style.colour}" stroke-width="2" stroke-dasharray="{_DASHES[style.dash]}"/>'
    mark = f'<g fill="{style.colour}">{_MARKS[style.symbol]}</g>'
    return Markup(f'<svg class="swatch" width="34" height="12" aria-hidden="true">{line}{mark}</svg>')
