"""The report as one HTML file that needs nothing else: no network, no other file.

Names, tags and params may come from anybody. Jinja escapes them, the data block cannot end its script element, and a
content policy admits only this page's scripts, by their hashes, so that a script that slips through would not run.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lr_lightning._plotting import Style
from lr_lightning.diagnosis.cost import Target
from lr_lightning.reports import tables, wording
from lr_lightning.reports.groups import ComparedGroups
from lr_lightning.reports.plots import Plot, Styles, Trace
from lr_lightning.reports.run_metrics import AXES
from lr_lightning.tracking.query import Run


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
    """Return the text of the page; ``facts`` says where the runs are from, links lead to the MLflow ``server``."""
    from plotly.offline import get_plotlyjs

    folder = files("lr_lightning.reports") / "template"
    css, js = ((folder / name).read_text("utf-8") for name in ("report.css", "report.js"))
    plotly = _normal(str(get_plotlyjs())) if plots else ""
    loader = PackageLoader("lr_lightning.reports", "template")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters["printable"] = wording.printable
    run_table, runs = tables.run_table(compared)
    return environment.get_template("report.html.j2").render(
        title=title,
        facts=facts,
        findings=wording.findings(compared),
        warnings=compared.warnings,
        css=Markup(css),
        js=Markup(js),
        plotly=Markup(_base64(gzip.compress(plotly.encode("utf-8"), mtime=0))),  # which the browser unpacks
        hashes=Markup(" ".join(f"'sha256-{_hash(script)}'" for script in (plotly, js))),
        data=Markup(_safe_json({"axes": AXES, "plots": [_plot_data(plot) for plot in plots]})),
        axes=AXES,
        plots=[(plot, _legend(plot)) for plot in plots],
        groups=tables.group_table(compared, target),
        styles=[styles[group.name] for group in compared.groups],
        several_data_sets=compared.data_sets is not None,
        pairs=tables.comparison_table(compared),
        not_compared=wording.not_compared(compared),
        varying_note=tables.varying_note(compared),
        run_table=run_table,
        runs=runs,
        run_link=tables.run_link,
        excluded=excluded,
        server=server,
    )


def _hash(text: str) -> str:
    return _base64(hashlib.sha256(_normal(text).encode("utf-8")).digest())


def _normal(text: str) -> str:
    """Return a text with its line ends as the parser makes them before the browser takes the hash."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _safe_json(value: object) -> str:
    """Return JSON that cannot end the script element around it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plot_data(plot: Plot) -> dict[str, object]:
    return {
        **_fields(plot, "id", "x_title", "log_x", "log_panels", "lr_panel", "error_bars", "is_cost"),
        "panels": [wording.printable(panel) for panel in plot.panels],
        "traces": [_trace_data(trace) for trace in plot.traces],
    }


def _trace_data(trace: Trace) -> dict[str, object]:
    series = {axis: _fields(one, "x", "y", "low", "high") for axis, one in trace.by_axis.items()}
    return {
        "name": wording.printable(trace.name),
        **_fields(trace, "group", "panel", "kind"),
        **_fields(trace.style, "colour", "dash", "symbol"),
        "by_axis": {
            axis: {
                key: _base64(np.asarray(values, "<f4").tobytes()) for key, values in one.items() if values is not None
            }
            for axis, one in series.items()
        },
    }


def _fields(value: object, *names: str) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _legend(plot: Plot) -> dict[str, Style]:
    """Return the legend of the lines that are not groups."""
    return {t.name: t.style for t in plot.traces if t.group < 0 and t.kind not in ("front", "range")}
