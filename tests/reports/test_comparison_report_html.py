"""The page: names, tags, params and metrics may come from anybody, and stay text."""

import base64
import gzip
import hashlib
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from lr_lightning._plotting import Style, styles
from lr_lightning.reports import comparison_report, plots
from lr_lightning.reports.comparison_report import ComparisonReport
from lr_lightning.reports.plots import Series, Trace

from .conftest import BREAKOUT, IMAGE, SCRIPT, Runs


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


def test_the_page_has_no_element_of_theirs(hostile: Runs, comparison: Callable[..., ComparisonReport]) -> None:
    done = comparison(log_run=False)
    text = done.files[0].read_text(encoding="utf-8")
    parser = Elements()
    parser.feed(text)
    assert [attributes for tag, attributes in parser.found if tag == "script"] == [
        {"type": "application/json", "id": "data"}, {"type": "text/plain", "id": "plotly"}, {},
    ]  # fmt: skip
    assert not [tag for tag, _ in parser.found if tag in ("img", "b", "iframe", "base", "form")]
    assert not [a for _, attributes in parser.found for a in attributes if a.startswith("on")]
    links = [attributes["href"] or "" for tag, attributes in parser.found if tag == "a"]
    assert links
    assert all(
        re.fullmatch(r"http://127\.0\.0\.1:5000/#/experiments/\d+/runs/[0-9a-f]{32}\?workflowType=\w+", link)
        for link in links
    )
    for name in (SCRIPT, IMAGE, BREAKOUT, f"other {SCRIPT}"):
        assert name in parser.text
    assert "49" not in re.findall(r"\$\{alert\(3\)\}(.{0,6})", parser.text)


def test_only_the_pages_own_scripts_may_run(hostile: Runs, comparison: Callable[..., ComparisonReport]) -> None:
    text = comparison(log_run=False).files[0].read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; ")
    assert re.search(r"script-src 'sha256-[\w+/=]{44}' 'sha256-[\w+/=]{44}'$", policy)
    (packed,) = re.findall(r'id="plotly">([^<]*)<', text)
    plotly = gzip.decompress(base64.b64decode(packed))
    assert plotly.decode() == get_plotlyjs()
    assert base64.b64encode(hashlib.sha256(plotly).digest()).decode() in policy  # so the browser runs what it unpacks
    assert len(text) < 2.5e6


def test_values_that_axes_share_are_on_the_page_once() -> None:
    x, y = np.arange(3.0), np.array([1.0, math.nan, 3.0])
    by_axis = {"step": Series(x, y, y - 1, y + 1), "epochs": Series(x / 3, y), "fraction": Series(x / 3, y)}
    trace = Trace("a", 0, Style("#000000", "solid", "circle"), "mean", by_axis)
    found = comparison_report._trace_data(trace)["by_axis"]
    assert {axis: [*own] for axis, own in found.items()} == {
        "step": ["x", "y", "low", "high"], "epochs": ["x", "low", "high"], "fraction": ["x"],
    }  # fmt: skip
    assert found["epochs"]["low"] is found["epochs"]["high"] is None  # not those of the axis before
    shown = np.frombuffer(base64.b64decode(found["step"]["y"]), "<f4")
    assert np.array_equal(shown, y.astype("<f4"), equal_nan=True)


def test_many_runs_share_the_points_of_a_plot(
    runs: Runs, comparison: Callable[..., ComparisonReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, lr in enumerate((0.1, 0.2, 0.3, 0.4)):  # different rates: a line for each run
        runs.train("cosine", number, 0.9, lr=lr, rows={"lr/group0": [(s, lr / (s + 1)) for s in range(40)]})
    compared = comparison(log_run=False).compared
    style_of = styles(group.name for group in compared.groups)
    monkeypatch.setattr(plots, "_FEWEST_POINTS", 8)
    monkeypatch.setattr(plots, "_POINTS", 48)
    for draw in (plots.plot_loss_against_lr, plots.plot_run_curves):
        plot = draw(compared, style_of)
        assert plot is not None
        assert len(plot.traces) >= 4
        assert max(series.x.size for trace in plot.traces for series in trace.by_axis.values()) in range(5, 13)


def test_a_name_of_an_experiment_leads_nowhere_else(runs: Runs, comparison: Callable[..., ComparisonReport]) -> None:
    evil = Runs(runs.store, "../../evil <b>")
    evil.train("cosine", 0, 0.9)
    done = comparison(experiments=["../../evil <b>"], log_run=False)
    assert done.folder.parent.name == "compare"
    assert re.fullmatch(r"\d{8}-\d{6}-[\w.]+-[0-9a-f]{4}", done.folder.name)
