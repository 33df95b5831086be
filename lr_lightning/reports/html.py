"""The report as one HTML file that needs nothing else: no network, no other file.

Names, tags and params may come from anybody. Jinja escapes them, the data block cannot end its script element, and a
content policy admits only this page's scripts, by their hashes, so that a script that slips through would not run.
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
from lr_lightning.reports import tables, wording
from lr_lightning.reports.curves import Floats
from lr_lightning.reports.groups import ComparedGroups
from lr_lightning.reports.plots import Plot, Styles, Trace
from lr_lightning.reports.run_metrics import AXES
from lr_lightning.tracking.query import Run

METHODS = (
    "Best and last are the extreme value and the final value of the metric in MLflow; the test metric is the one that "
    "the run logged. The best of many validations is a little optimistic, for every group alike.",
    "Only runs that ended normally (FINISHED, not diverged) are in means; every other run is listed and its curves "
    "are drawn.",
    "In comparisons a diverged run is the worst possible result: it loses its pair. If any run of two groups diverged, "
    "p is of ranks (signed ranks of pairs, or ranks of all runs), and the mean difference is of the other runs, "
    "without an interval. Runs that failed, were killed or are still running are in no comparison.",
    "Differences are between runs of the same seed if at least half of the smaller group's seeds match; p is that "
    "of an exact, two-sided sign-flip test. Otherwise the groups are independent samples and p is that of a "
    "permutation test.",
    "Adjusted p: Holm's correction over all comparisons in the table, or over those of one data set if there are "
    "several. Significant means adjusted p ≤ 0.05.",
    "Intervals of differences are bootstrapped (BCa, 9999 resamples, not adjusted for several comparisons). With few "
    "seeds they are too narrow, so no finding rests on them.",
    "Time to a target: the first value that meets it. A run that ended or was stopped earlier is censored, a run that "
    "diverged never reaches it; the median is Kaplan and Meier's.",
    "Worst setback: the largest fall of the metric below its best so far, mean over runs.",
)


def render(
    compared: ComparedGroups,
    plots: Sequence[Plot],
    styles: Styles,
    excluded: Sequence[tuple[Run, str]],
    *,
    title: str,
    facts: str,
    target: Target | None,
    server: str,
) -> str:
    """Return the text of the page.

    ``excluded`` are the runs that were not compared, each with the reason; ``facts`` says where the runs are from and
    when the report was made; links lead to the MLflow ``server``.
    """
    template_files = files("lr_lightning.reports") / "template"
    js, plotly = (template_files / "report.js").read_text("utf-8"), _plotly() if plots else ""
    environment = Environment(
        loader=PackageLoader("lr_lightning.reports", "template"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html.j2").render(
        title=wording.printable(title),
        facts=wording.printable(facts),
        findings=[wording.printable(text) for text in wording.findings(compared)],
        warnings=[wording.printable(text) for text in compared.warnings],
        css=Markup((template_files / "report.css").read_text("utf-8")),
        js=Markup(js),
        plotly=Markup(plotly),
        hashes=Markup(" ".join(f"'sha256-{_hash(script)}'" for script in (plotly, js))),
        data=Markup(_safe_json({"axes": AXES, "plots": [_plot_data(plot) for plot in plots]})),
        axes=list(AXES.items()),
        plots=[
            {
                "id": plot.id,
                "title": plot.title,
                "note": plot.note,
                "height": 104 + 240 * len(plot.panels),
                "legend": _own_legend(plot),
            }
            for plot in plots
        ],
        methods=METHODS,
        **_group_tables(compared, styles, target),
        **_run_tables(compared, excluded, server),
    )


def _group_tables(compared: ComparedGroups, styles: Styles, target: Target | None) -> dict[str, object]:
    groups, pairs = tables.group_table(compared, target), tables.comparison_table(compared)
    swatches = [_swatch(styles[group.name]) for group in compared.groups]
    order = f"Ordered by {'data set, and within each by ' * bool(compared.data_sets)}the mean, which is not a finding."
    return {
        "group_columns": groups.titles,
        "group_rows": [
            {"name": row[0], "cells": row[1:], "swatch": swatch}
            for row, swatch in zip(groups.rows, swatches, strict=True)
        ],
        "group_note": order if len(groups.rows) > 1 else "",
        "comparison_columns": pairs.titles,
        "comparison_rows": pairs.rows,
        "not_compared": wording.printable(wording.not_compared(compared)),
        "comparison_note": (
            "By the best validation value, not the test metric: a choice by the test set would use it up. "
            "With too few seeds, an interval that excludes 0 is not a finding."
        ),
    }


def _run_tables(compared: ComparedGroups, excluded: Sequence[tuple[Run, str]], server: str) -> dict[str, object]:
    table, runs = tables.run_table(compared)
    links = f"Links lead to {server}, where `make ui` serves a local store."
    return {
        "varying_note": f"{tables.varying_note(compared)} {links}",
        "run_columns": table.titles,
        "run_rows": [
            {"name": row[0], "cells": row[1:], "link": tables.run_link(server, run)}
            for row, run in zip(table.rows, runs, strict=True)
        ],
        "excluded_rows": [
            {
                "name": wording.printable(run.name),
                "why": wording.printable(why),
                "link": tables.run_link(server, run),
            }
            for run, why in excluded
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
    """Return JSON that cannot end the script element around it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plot_data(plot: Plot) -> dict[str, object]:
    return {
        "id": plot.id,
        "panels": [wording.printable(panel) for panel in plot.panels],
        "x_title": plot.x_title,
        "log_x": plot.log_x,
        "log_panels": list(plot.log_panels),
        "lr_panel": plot.lr_panel,
        "error_bars": plot.error_bars,
        "is_cost": plot.is_cost,
        "traces": [_trace_data(trace) for trace in plot.traces],
    }


def _trace_data(trace: Trace) -> dict[str, object]:
    by_axis = {
        axis: {
            key: _packed(values)
            for key, values in (("x", s.x), ("y", s.y), ("low", s.low), ("high", s.high))
            if values is not None
        }
        for axis, s in trace.by_axis.items()
    }
    return {
        "name": wording.printable(trace.name),
        "group": trace.group,
        "panel": trace.panel,
        "kind": trace.kind,
        "colour": trace.style.colour,
        "dash": trace.style.dash,
        "symbol": trace.style.symbol,
        "by_axis": by_axis,
    }


def _packed(values: Floats) -> str:
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode("ascii")


def _own_legend(plot: Plot) -> list[dict[str, object]]:
    """Return the legend of the lines that are not groups."""
    styles = {t.name: t.style for t in plot.traces if t.group < 0 and t.kind not in ("front", "range")}
    return [{"name": wording.printable(name), "swatch": _swatch(style)} for name, style in styles.items()]


_MARKERS = {
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
    """Draw the line and marker of a group as they are in the plots."""
    line = f'<path d="M0 6h34" stroke="{style.colour}" stroke-width="2" stroke-dasharray="{_DASHES[style.dash]}"/>'
    marker = f'<g fill="{style.colour}">{_MARKERS[style.symbol]}</g>'
    return Markup(f'<svg class="swatch" width="34" height="12" aria-hidden="true">{line}{marker}</svg>')
