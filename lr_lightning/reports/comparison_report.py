"""A comparison from the store to its files: read the runs, compare them, and write the report."""

import base64
import csv
import gzip
import hashlib
import json
import logging
import math
import re
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import ArrayLike

from lr_lightning._commands import python_command
from lr_lightning._loggers import NOTE_TAG
from lr_lightning._plotting import Style, styles
from lr_lightning.diagnosis.cost import Target, parse_target
from lr_lightning.errors import CompareError, Rejected, StoreUnavailable, TrackingError
from lr_lightning.reports import run_metrics, tables, wording
from lr_lightning.reports.groups import ComparedGroups, find_data_sets, group_and_compare, without_data_keys
from lr_lightning.reports.plots import Plot, Styles, Trace, make_plots, save_pngs
from lr_lightning.reports.run_metrics import AXES, RunResult, find_metric, group_name
from lr_lightning.tracking import Store
from lr_lightning.tracking.files import write_atomically
from lr_lightning.tracking.keys import JOB_TAG, LR_EFFECTS_TAG
from lr_lightning.tracking.query import BadFilter, Run, experiments, garbage_collector_paused, read_curves, read_runs
from lr_lightning.tracking.ui import REPORT_NAME, chart_link, run_page

COMPARE_JOB = "compare"  # the tag ``job`` of a report's own run, which excludes it from later comparisons
DEFAULT_EXPERIMENT = "lr_lightning"
DEFAULT_SERVER = "http://127.0.0.1:5000"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportRequest:
    """What to compare."""

    store: Store
    output_root: Path  # the report's folder is made in its folder compare/
    experiments: Sequence[str] = ()  # if empty, the default experiment, or the only one with runs
    by: Sequence[str] | None = None  # tags or params that make the groups; at least one run must have each of them
    by_varied: Sequence[str] = ()  # instead of `by`: the keys that a multirun varied; runs need not have recorded them
    filter_string: str = ""  # in MLflow's search language
    target: str | None = None  # such as val/acc>=0.97
    metric: str | None = None  # the validation metric that decides; by default val/acc, else val/loss
    higher_is_better: bool | None = None  # by default judged by the metric's name
    against: str | None = None  # a group chosen beforehand, the only one that others are compared with
    same_within: float | None = (
        None  # a difference of the metric that does not matter: whether groups are as near is tested
    )
    log_run: bool = True  # log the files to MLflow
    server: str | None = None  # address of the MLflow UI, for links

    @property
    def keys(self) -> Sequence[str]:
        """The tags or params that make the groups; by default the schedule, which no run needs to have."""
        return self.by or self.by_varied or ("schedule",)


@dataclass
class ComparisonReport:
    """A comparison and its files."""

    compared: ComparedGroups
    target: Target | None
    folder: Path
    title: str  # one line that says what was compared
    files: list[Path] = field(default_factory=list)  # the page, the CSV and the pictures, in this order
    address: str | None = None  # of the page in MLflow, if it is there
    charts: dict[str, str] = field(default_factory=dict)  # addresses of the runs' charts there, by experiment
    served: bool = False  # the store is a server, so that the addresses work without `make ui`
    good_lrs: list[str] = field(default_factory=list)  # each schedule's band of good learning rates, as text


@dataclass(frozen=True)
class _Measured:
    """What the store has for a request."""

    experiments: dict[str, str]  # name to id
    results: list[RunResult]
    excluded: list[tuple[Run, str]]  # with the reasons
    target: Target | None
    objective: str | None  # the metric that decides
    higher_is_better: bool


def compare(request: ReportRequest) -> ComparisonReport:
    """Read the runs, compare them and write a report.

    If something that was asked for does not exist, the error is a CompareError that names it.
    """
    started = time.monotonic()
    with garbage_collector_paused():
        measured = _read(request)
        compared, keys = _compare_results(request, measured)
        report = _write(request, measured, compared, keys)
    log.debug("compared %d runs in %.1f s", len(measured.results), time.monotonic() - started)
    return report


def _read(request: ReportRequest) -> _Measured:
    """Find the runs to compare and the metric that decides, read the runs' curves and measure them."""
    within = request.same_within
    if within is not None and not 0 < within < math.inf:
        raise CompareError(f"must be above 0, such as 0.003, got {within:g}.", "same-within")
    try:
        target = parse_target(request.target) if request.target else None
    except ValueError as e:
        raise CompareError(str(e), "target") from None
    chosen = _choose_experiments(request)
    runs, excluded = _select_runs(request, chosen)
    for key in request.by or ():
        if not any(run_metrics.tag_or_param(run, key) for run in runs):
            raise CompareError(run_metrics.unknown_key_message(runs, key), "by")
    objective, higher = _choose_objective(request, runs)
    if target:
        _check_metric(target.metric, runs, "target")
    asked = [metric for metric in (objective, target and target.metric) if metric]
    _read_curves_by_own_names(request.store, runs, [*run_metrics.REPORT_METRICS, *asked])
    results = [run_metrics.measure_run(run, request.keys, objective, target, higher_is_better=higher) for run in runs]
    return _Measured(chosen, results, excluded, target, objective, higher)


def _write(
    request: ReportRequest, measured: _Measured, compared: ComparedGroups, keys: Sequence[str]
) -> ComparisonReport:
    """Write the page, the CSV and the pictures into a new folder, and log them to the store if asked to."""
    store, target, name = request.store, measured.target, ", ".join(measured.experiments)
    style_of = styles(group.name for group in compared.groups)
    plots = make_plots(compared, style_of, keys)
    split_by = [*keys, "data set"] if compared.data_sets else keys
    title = f"{name}: {len(measured.results)} runs by {', '.join(split_by)}"
    filtered = f", filter {request.filter_string}" if request.filter_string else ""
    facts = f"{datetime.now():%Y-%m-%d %H:%M}, {store.public_uri}{filtered}"
    served = store.artifact_root is None
    server = (request.server or (store.uri if served else DEFAULT_SERVER)).rstrip("/")
    page = _render_page(
        compared, plots, style_of, measured.excluded, title=title, facts=facts, target=target, server=server
    )

    report = ComparisonReport(
        compared, target, _new_folder(request.output_root / "compare", name), wording.printable(title)
    )
    report.good_lrs = [text for plot in plots for text in plot.good_lrs]
    report.files += [report.folder / "report.html", report.folder / "runs.csv"]
    write_atomically(report.files[0], page)
    with report.files[1].open("w", encoding="utf-8", errors="replace", newline="") as file:
        csv.writer(file).writerows(tables.csv_rows(measured.results, target, [*compared.varying]))
    report.files += save_pngs(plots, [group.name for group in compared.groups], report.folder)
    if request.log_run and store.reads_only:
        log.warning("the comparison is not logged to MLflow: this user may only read %s", store.public_uri)
    elif request.log_run:
        ids, report.served = measured.experiments, served
        if (address := _log_to_store(request, next(iter(ids.values())), report, server)) is not None:
            report.address = address
            report.charts = {name: chart_link(store, server, ids[name], request.filter_string) for name in ids}
    return report


def _choose_experiments(request: ReportRequest) -> dict[str, str]:
    """Return name and id of the experiments to read."""
    known = experiments(request.store)
    for name in request.experiments:
        if name not in known:
            there = f"It has: {', '.join(sorted(known)) or 'none'}."
            raise CompareError(f"{request.store.public_uri} has no experiment {name!r}. {there}", "experiment")
    if request.experiments:
        return {name: known[name] for name in request.experiments}
    if DEFAULT_EXPERIMENT in known:
        return {DEFAULT_EXPERIMENT: known[DEFAULT_EXPERIMENT]}
    used = {name: key for name, key in known.items() if name != "Default"} or known
    if len(used) == 1:
        return used
    if not used:
        raise CompareError(f"{request.store.public_uri} has no runs yet. Train some first: {_example()}")
    raise CompareError(f"choose one of {', '.join(sorted(used))}.", "experiment")


def _example() -> str:
    return python_command("train.py", "-m", "schedule=constant,cosine", "seed=0,1,2,3,4,5")


def _select_runs(request: ReportRequest, chosen: Mapping[str, str]) -> tuple[list[Run], list[tuple[Run, str]]]:
    """Return the runs to compare, and the excluded runs with the reasons."""
    try:
        found = read_runs(request.store, [*chosen.values()], request.filter_string)
    except BadFilter as e:
        raise CompareError(str(e), "filter") from None
    runs, excluded = [], []
    for run in found:
        if run.job != "train":
            excluded.append((run, f"a run of the job {run.job!r}, not a training"))
        elif (
            run.tags.get(LR_EFFECTS_TAG) == "lr_effects" and not request.filter_string
        ):  # its learning rates are bad on purpose
            excluded.append((run, "a run of experiment=lr_effects. Such runs are included only with --filter"))
        else:
            runs.append(run)
    if runs:
        return runs, excluded
    where = f"experiment {', '.join(chosen)} of {request.store.public_uri}"
    if request.filter_string:
        raise CompareError(f"no training run of {where} matches {request.filter_string!r}.", "filter")
    jobs = Counter(run.job for run in found)
    only = f" (only {', '.join(f'{n} of the job {job}' for job, n in jobs.items())})" if jobs else ""
    raise CompareError(f"{where} has no training run yet{only}. Train some first: {_example()}")


def _choose_objective(request: ReportRequest, runs: Sequence[Run]) -> tuple[str | None, bool]:
    """Return the metric that decides, and whether a higher value is better.

    The metric has the name that this project gives it; None if no run has one.
    """
    if request.metric:
        _check_metric(request.metric, runs, "metric")
    candidates = [request.metric] if request.metric else [run_metrics.VAL_ACC, run_metrics.VAL_LOSS]
    objective = next((key for key in candidates if any(find_metric(key, run.last) for run in runs)), None)
    higher = request.higher_is_better
    if higher is None:
        higher = objective is None or run_metrics.is_higher_better(objective)
    if higher is None:
        untold = f"the name {objective!r} does not tell whether a higher value is better."
        raise CompareError(f"{untold} Give --higher-is-better or --lower-is-better.", "metric")
    return objective, higher


def _check_metric(metric: str, runs: Sequence[Run], argument: str) -> None:
    if not any(find_metric(metric, run.last) for run in runs):
        known = sorted({key for run in runs for key in run.last if not key.startswith("summary/")})
        listed = f"They have: {', '.join(known[:30]) or 'none'}{', ...' if len(known) > 30 else ''}."
        raise CompareError(f"no run has a metric {metric!r}. {listed}", argument)


def _read_curves_by_own_names(store: Store, runs: Sequence[Run], keys: Sequence[str]) -> None:
    """Read the curves by the names that each run has for them, which may be another program's."""
    own: dict[frozenset[str], frozenset[str]] = {}  # the names that a run has, and those of them that are read
    by_names: dict[frozenset[str], list[Run]] = {}
    for run in runs:
        names = frozenset(run.last)
        if names not in own:
            own[names] = frozenset(found for key in keys if (found := find_metric(key, names)) is not None)
        by_names.setdefault(own[names], []).append(run)
    for names, some in by_names.items():
        read_curves(store, some, names)


def _compare_results(request: ReportRequest, measured: _Measured) -> tuple[ComparedGroups, Sequence[str]]:
    """Group the results and compare the groups. Also returns the keys that make the groups beside the data set."""
    keys, results = request.keys, measured.results
    data_sets = find_data_sets(results, keys, request.by or (), request.filter_string)
    if data_sets:
        keys = without_data_keys(keys)
    names, exact = ([group_name(result.run, keys, digits) for result in results] for digits in (4, 10))
    if len(set(names)) < len(set(exact)):  # four digits do not tell them apart
        names = exact
    if request.against is not None and request.against not in names:
        listed = ", ".join(sorted({*names} - {""})) or "none"
        raise CompareError(f"there is no group {request.against!r}. Groups: {listed}.", "against")
    for result, name in zip(results, names, strict=True):
        if data_sets:
            result.data_set = data_sets.labels[result.run.id]
        result.group = run_metrics.with_data_set(name, result.data_set)
    objective, higher = measured.objective, measured.higher_is_better
    compared = group_and_compare(
        results,
        objective,
        request.against,
        higher_is_better=higher,
        data_sets=data_sets,
        same_within=request.same_within,
    )
    return compared, keys


def _new_folder(root: Path, experiment: str) -> Path:
    """Make a new folder below ``root``, named after the time and the experiment."""
    slug = re.sub(r"[^\w.]+", "_", experiment)[:60].strip("._") or "experiment"
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    while True:
        folder = root / f"{stamp}-{slug}-{secrets.token_hex(2)}"
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder


def _log_to_store(request: ReportRequest, experiment_id: str, report: ComparisonReport, server: str) -> str | None:
    """Log the files as a separate run and return the page's address, or None if the store fails."""
    call = request.store.call
    tags = {
        JOB_TAG: COMPARE_JOB,
        "compare.by": ", ".join(request.keys),
        "compare.filter": request.filter_string or "-",
        "compare.runs": str(sum(len(group.runs) for group in report.compared.groups)),
        "output_dir": str(report.folder),
        NOTE_TAG: wording.printable(wording.headline(report.compared))[:5000],
        "mlflow.source.name": "scripts/compare.py",
        "mlflow.source.type": "LOCAL",
    }
    try:
        run_id = str(call("create_run", experiment_id, tags=tags, run_name=REPORT_NAME).info.run_id)
        status = "FAILED"
        try:
            call("log_artifacts", run_id, str(report.folder))
            status = "FINISHED"
        finally:
            call("set_terminated", run_id, status)
    except (TrackingError, Rejected, StoreUnavailable) as e:  # the files are complete without the store
        log.warning("the comparison could not be logged to MLflow: %s", e)
        return None
    return run_page(server, experiment_id, run_id, "report.html")


# -- the report as one HTML file that needs nothing else: no network, no other file ------------------------------------
#
# Names, tags and params may come from anybody. Jinja escapes them, the data block cannot end its script element, and a
# content policy admits only this page's scripts, by their hashes, so that a script that slips through would not run.


def _render_page(
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
        plotly=Markup(_base64(gzip.compress(plotly.encode("utf-8"), 6, mtime=0))),  # which the browser unpacks
        hashes=Markup(" ".join(f"'sha256-{_hash(script)}'" for script in (plotly, js))),
        data=Markup(_safe_json({"axes": AXES, "plots": [_plot_data(plot) for plot in plots]})),
        axes=AXES,
        plots=[(plot, _legend(plot)) for plot in plots],
        groups=tables.group_table(compared, target),
        styles=[styles[group.name] for group in compared.groups],
        several_data_sets=compared.data_sets is not None,
        pairs=tables.comparison_table(compared),
        not_compared=wording.not_compared(compared),
        same_within=next((d.same_within for d in compared.differences), None),
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
    """Return what the page draws; values that an axis shares with the axis before it are left out."""
    by_axis: dict[str, dict[str, str | None]] = {}
    before: dict[str, Any] = {}
    for axis, series in trace.by_axis.items():
        arrays = _fields(series, "x", "y", "low", "high")
        changed = {key: values for key, values in arrays.items() if values is not before.get(key)}
        by_axis[axis] = {key: None if one is None else _floats(one) for key, one in changed.items()}
        before = arrays
    return {
        "name": wording.printable(trace.name),
        **_fields(trace, "group", "panel", "kind"),
        **_fields(trace.style, "colour", "dash", "symbol"),
        "by_axis": by_axis,
    }


def _fields(value: object, *names: str) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}


def _floats(values: ArrayLike) -> str:
    return _base64(np.asarray(values, "<f4").tobytes())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _legend(plot: Plot) -> dict[str, Style]:
    """Return the legend of the lines that are not groups."""
    return {t.name: t.style for t in plot.traces if t.group < 0 and t.kind not in ("front", "range")}
