"""One comparison from a store to its files."""

import csv
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from lr_lightning._plotting import styles
from lr_lightning.diagnosis.cost import Target, parse_target
from lr_lightning.errors import CompareError, Rejected, StoreUnavailable, TrackingError
from lr_lightning.reports import groups as data_sets
from lr_lightning.reports import html as page
from lr_lightning.reports import png as pictures
from lr_lightning.reports import run_metrics as names
from lr_lightning.reports import tables
from lr_lightning.reports import wording as words
from lr_lightning.reports.groups import Outcome, compare_measured
from lr_lightning.reports.plots import all_figures
from lr_lightning.reports.run_metrics import group_of, measure, of_data_set, unknown_key, value_of
from lr_lightning.tracking import Store
from lr_lightning.tracking.files import write_atomically
from lr_lightning.tracking.keys import JOB_TAG
from lr_lightning.tracking.query import Run, experiments, read_curves, read_runs
from lr_lightning.tracking.ui import REPORT_NAME

# --- Writing a comparison: its folder, and a run of its own in MLflow.

JOB = "compare"
"""Value of the tag ``job`` of a comparison's own run, which keeps it out of every later one."""


def new_folder(root: Path, experiment: str) -> Path:
    """Make a folder of its own for a comparison below ``root``."""
    slug = re.sub(r"[^\w.]+", "_", experiment)[:60].strip("._") or "experiment"
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    while True:
        folder = root / f"{stamp}-{slug}-{secrets.token_hex(2)}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder


def write_page(folder: Path, text: str) -> Path:
    """Write the report."""
    path = folder / "report.html"
    write_atomically(path, text)
    return path


def write_csv(folder: Path, rows: Sequence[Sequence[str]]) -> Path:
    """Write the runs' numbers."""
    path = folder / "runs.csv"
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def log_to_store(
    store: Store, experiment_id: str, folder: Path, *, by: str, filter_string: str, headline: str, runs: int
) -> str:
    """Keep the files in MLflow, as a run that says what it is.

    Returns:
        Its id.

    Raises:
        StoreUnavailable: The store does not answer.
        TrackingError: The artifacts cannot be written.
    """
    tags = {
        JOB_TAG: JOB,
        "compare.by": by,
        "compare.filter": filter_string or "-",
        "compare.runs": str(runs),
        "output_dir": str(folder),
        "mlflow.note.content": headline[:5000],
        "mlflow.source.name": "scripts/compare.py",
        "mlflow.source.type": "LOCAL",
    }
    run = store.call("create_run", experiment_id, tags=tags, run_name=REPORT_NAME)
    run_id = str(run.info.run_id)
    status = "FAILED"
    try:
        store.call("log_artifacts", run_id, str(folder))
        status = "FINISHED"
    finally:
        store.call("set_terminated", run_id, status)
    return run_id


log = logging.getLogger(__name__)

DEFAULT_EXPERIMENT = "lr_lightning"
DEFAULT_SERVER = "http://127.0.0.1:5000"


@dataclass(frozen=True)
class ReportRequest:
    """What is to be compared.

    Attributes:
        store: Where the runs are.
        output_root: Where the comparison's folder is made.
        experiments: Names of experiments; none for the default one, or the only one with runs.
        by: Tags or params whose values make the groups, each of which at least one run must have; None for the
            schedule, which no run need have.
        by_varied: What a multirun varied, in place of ``by``: a run may well have recorded none of it.
        filter_string: In MLflow's search language.
        target: Such as ``val/acc>=0.97``, or nothing.
        metric: The validation metric that decides, or nothing for ``val/acc``, else ``val/loss``.
        higher_is_better: Which direction of it is better; None for what its name says.
        against: A group chosen beforehand, the only one that others are compared with.
        log_run: Whether the files go to MLflow as well.
        server: Where the MLflow UI is or will be, for links.
    """

    store: Store
    output_root: Path
    experiments: Sequence[str] = ()
    by: Sequence[str] | None = None
    by_varied: Sequence[str] = ()
    filter_string: str = ""
    target: str | None = None
    metric: str | None = None
    higher_is_better: bool | None = None
    against: str | None = None
    log_run: bool = True
    server: str | None = None

    @property
    def keys(self) -> Sequence[str]:
        """What makes the groups."""
        return self.by or self.by_varied or ("schedule",)


@dataclass
class Report:
    """What a comparison gives back.

    Attributes:
        outcome: What is said about the groups.
        target: What times were taken to.
        folder: Where the files are.
        files: Report, CSV and pictures.
        title: One line that says what was compared.
        address: The report in MLflow, or None where it is not there.
        served: Whether the store is a server, which needs none of its own to be looked at.
        good_rates: In words, the band of good rates of each schedule.
    """

    outcome: Outcome
    target: Target | None
    folder: Path
    title: str
    files: list[Path] = field(default_factory=list)
    address: str | None = None
    served: bool = False
    good_rates: list[str] = field(default_factory=list)


def compare(request: ReportRequest) -> Report:
    """Read runs, compare them and write the report.

    Raises:
        CompareError: An experiment, filter, target, metric or group is not there, or there is no run.
        StoreUnavailable: The store does not answer.
    """
    started = time.monotonic()
    target = _target(request.target)
    chosen = _experiments(request)
    runs, left = _runs(request, chosen)
    for key in request.by or ():
        if not any(value_of(run, key) for run in runs):
            raise CompareError(unknown_key(runs, key), "by")
    objective = _objective(request.metric, runs)
    higher = _higher_is_better(request, objective)
    metrics = [*names.READ, *([objective] if objective else []), *([target.metric] if target else [])]
    _read(request.store, runs, metrics)
    if target and not any(names.find(target.metric, run.last) for run in runs):
        raise CompareError(f"no run has a metric {target.metric!r}. {_metrics(runs)}", "target")
    measured = [measure(run, request.keys, objective, target, higher_is_better=higher) for run in runs]
    keys = request.keys
    mixed = data_sets.tell_apart(measured, keys, request.by or (), request.filter_string)
    if mixed:
        keys = data_sets.without(keys)
        for m in measured:
            m.group = group_of(m.run, keys)
    against = request.against
    if against is not None and against not in {m.group for m in measured}:
        groups = ", ".join(sorted({m.group for m in measured} - {""})) or "none"
        raise CompareError(f"there is no group {against!r}. Groups: {groups}.", "against")
    for m in measured:
        m.group = of_data_set(m.group, m.data_set)
    outcome = compare_measured(measured, objective, against, higher_is_better=higher, mixed=mixed)
    looks = styles(group.name for group in outcome.groups)
    figures = all_figures(outcome, looks, keys)
    name = ", ".join(chosen)
    title = f"{name}: {len(runs)} runs by {', '.join([*keys, *['data set'] * bool(mixed)])}"
    done = Report(outcome, target, new_folder(request.output_root / "compare", name), words.plain(title))
    done.good_rates = [text for figure in figures for text in figure.good_rates]
    server = (request.server or _server_of(request.store)).rstrip("/")
    facts = f"{datetime.now():%Y-%m-%d %H:%M}, {request.store.public_uri}" + (
        f", filter {request.filter_string}" if request.filter_string else ""
    )
    text = page.render(outcome, figures, looks, left, title=title, facts=facts, target=target, base=server)
    done.files.append(write_page(done.folder, text))
    done.files.append(write_csv(done.folder, tables.csv_rows(measured, target, [*outcome.varying])))
    done.files += pictures.save_pictures(figures, done.folder)
    if request.log_run:
        done.address = _log(request, chosen, done, server)
        done.served = request.store.artifact_root is None
    log.debug("compared %d runs in %.1f s", len(runs), time.monotonic() - started)
    return done


def _target(text: str | None) -> Target | None:
    try:
        return parse_target(text) if text else None
    except ValueError as e:
        raise CompareError(str(e), "target") from None


def _experiments(request: ReportRequest) -> dict[str, str]:
    """Name to id of the experiments that are asked for."""
    known = experiments(request.store)
    missing = [name for name in request.experiments if name not in known]
    if missing:
        raise CompareError(
            f"{request.store.public_uri} has no experiment {missing[0]!r}. "
            f"It has: {', '.join(sorted(known)) or 'none'}.",
            "experiment",
        )
    if request.experiments:
        return {name: known[name] for name in request.experiments}
    if DEFAULT_EXPERIMENT in known:
        return {DEFAULT_EXPERIMENT: known[DEFAULT_EXPERIMENT]}
    used = {name: key for name, key in known.items() if name != "Default"} or known
    if len(used) == 1:
        return used
    raise CompareError(f"choose one of {', '.join(sorted(used)) or 'none: there is no run yet'}.", "experiment")


def _runs(request: ReportRequest, chosen: dict[str, str]) -> tuple[list[Run], list[tuple[Run, str]]]:
    """The runs to compare, and those left out, each with the reason."""
    try:
        found = read_runs(request.store, [*chosen.values()], request.filter_string)
    except TrackingError as e:
        raise CompareError(str(e), "filter") from None
    runs, left = [], []
    for run in found:
        if run.job != "train":
            left.append((run, f"a run of the job {run.job!r}, not a training"))
        elif "study" in run.tags and not request.filter_string:  # its rates are bad on purpose
            left.append((run, f"a run of the study {run.tags['study']!r}, which --filter would admit"))
        else:
            runs.append(run)
    if not runs:
        where = f"experiment {', '.join(chosen)} of {request.store.public_uri}"
        jobs = Counter(run.job for run in found)
        if request.filter_string:
            raise CompareError(f"no training run of {where} matches {request.filter_string!r}.", "filter")
        only = f" (only {', '.join(f'{n} of the job {job}' for job, n in jobs.items())})" if jobs else ""
        raise CompareError(
            f"{where} has no training run yet{only}. Train some, such as: "
            "python scripts/train.py -m schedule=constant,cosine seed=0,1,2,3,4,5"
        )
    return runs, left


def _objective(asked: str | None, runs: Sequence[Run]) -> str | None:
    """The metric that decides, by this project's name."""
    for key in (asked,) if asked else (names.VAL_ACC, names.VAL_LOSS):
        if any(names.find(key, run.last) for run in runs):
            return key
    if asked:
        raise CompareError(f"no run has a metric {asked!r}. {_metrics(runs)}", "metric")
    return None


def _higher_is_better(request: ReportRequest, objective: str | None) -> bool:
    if request.higher_is_better is not None or objective is None:
        return request.higher_is_better is not False
    found = names.is_higher_better(objective)
    if found is None:
        raise CompareError(
            f"whether more of {objective!r} is better cannot be told from its name. Say it: --higher-is-better or "
            "--lower-is-better.",
            "metric",
        )
    return found


def _metrics(runs: Sequence[Run]) -> str:
    found = sorted({key for run in runs for key in run.last if not key.startswith("summary/")})
    return f"They have: {', '.join(found[:30]) or 'none'}{', ...' if len(found) > 30 else ''}."


def _read(store: Store, runs: Sequence[Run], keys: Sequence[str]) -> None:
    """Read the curves, also where another program named them, under the names the run has for them."""
    wanted: dict[frozenset[str], list[Run]] = {}
    for run in runs:
        own = frozenset(found for key in keys if (found := names.find(key, run.last)) is not None)
        wanted.setdefault(own, []).append(run)
    for own, some in wanted.items():
        read_curves(store, some, own)


def _server_of(store: Store) -> str:
    return store.uri if store.artifact_root is None else DEFAULT_SERVER


def _log(request: ReportRequest, chosen: dict[str, str], done: Report, server: str) -> str | None:
    """Best effort: the files are there, whatever the store says."""
    experiment_id = next(iter(chosen.values()))
    try:
        run_id = log_to_store(
            request.store,
            experiment_id,
            done.folder,
            by=", ".join(request.keys),
            filter_string=request.filter_string,
            headline=words.plain(words.headline(done.outcome)),
            runs=sum(len(group.runs) for group in done.outcome.groups),
        )
    except (TrackingError, Rejected, StoreUnavailable) as e:
        log.warning("the comparison could not be logged to MLflow: %s", e)
        return None
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}/artifacts/report.html"
