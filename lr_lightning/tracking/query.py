"""Reading of runs from a store: their params, tags and status, and every row of the metrics that are asked for."""

import gc
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lr_lightning.errors import Rejected, TrackingError
from lr_lightning.tracking import database
from lr_lightning.tracking.database import Rows, SQLFailed
from lr_lightning.tracking.keys import JOB_TAG
from lr_lightning.tracking.store import Store, translate_error

log = logging.getLogger(__name__)

_PAGE, _SERVER_PAGE = 1000, 100  # runs; a thousand take a server ten seconds, the time limit of a request
_HUGE = 1.7e308  # MLflow stores infinity as the largest double

_THREADS = 8  # a server answers one call after another; a few requests in flight hide the network's latency
# The call behind MLflow's own pages. It returns the rows of many runs at once, at half the server's work of the
# documented call that the client uses. It cuts its answer at a number of rows without saying so.
_BULK_PATH = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
_BULK_MAX_ROWS = 25_000
_BULK_MAX_RUNS = 50  # the server allows 100; their ids are part of the address
_BULK_ROWS = 5_000  # aim of one request; more would keep a small server busy beyond a proxy's patience
_BULK_TIMEOUT = 60.0  # seconds; all threads may wait for one worker of the server


@dataclass(frozen=True, eq=False)
class MetricCurve:
    """The finite rows of one metric of a run, one per step, by increasing step; each array has shape [n]."""

    step: NDArray[np.int64]
    value: NDArray[np.float64]
    time: NDArray[np.int64]  # milliseconds since 1970
    nonfinite: int = 0  # number of rows that were dropped because their value is nan or infinite

    @classmethod
    def of(cls, step: NDArray[np.int64], value: NDArray[np.float64], time: NDArray[np.int64]) -> "MetricCurve":
        """Sort rows and drop nonfinite ones. Of the rows of one step, keep the newest: a resumed run repeats steps."""
        finite = np.abs(value) < _HUGE  # nan is not
        nonfinite = int(value.size - np.count_nonzero(finite))
        if nonfinite:
            step, value, time = step[finite], value[finite], time[finite]
        if not (step[1:] > step[:-1]).all():
            order = np.lexsort((time, step))
            step, value, time = step[order], value[order], time[order]
            newest = np.append(step[1:] != step[:-1], True)
            step, value, time = step[newest], value[newest], time[newest]
        return cls(step, value, time, nonfinite)


@dataclass(eq=False)
class Run:
    """One run of a store, written by any program."""

    id: str
    name: str  # any text
    experiment_id: str
    status: str  # RUNNING, FINISHED, FAILED, KILLED or SCHEDULED
    start: int  # milliseconds since 1970
    end: int | None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)  # the newest value of each metric
    curves: dict[str, MetricCurve] = field(default_factory=dict)  # the metrics that were read in full

    @property
    def job(self) -> str:
        """What the run did, such as ``train``."""
        return self.tags.get(JOB_TAG, "train")


class BadFilter(TrackingError):
    """The store does not understand a filter."""


URI, EXPERIMENT_NAME, EXPERIMENT_ID = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"


def experiment_of_environment(store: Store) -> str | None:
    """Return the name of the experiment that MLflow's variables choose; None if they choose none.

    Raises:
        TrackingError: The store has no experiment of that id, or it is another one than the variable of the name says.
    """
    name, number = os.environ.get(EXPERIMENT_NAME) or None, os.environ.get(EXPERIMENT_ID)
    if not number:
        return name
    try:
        found = str(store.call("get_experiment", number).name)
    except (TrackingError, Rejected) as error:
        reason = str(error).removesuffix(".")
        raise TrackingError(f"{EXPERIMENT_ID}: {number}: {reason}. Name an experiment, or unset it.") from None
    if name not in (None, found):
        raise TrackingError(
            f"{EXPERIMENT_ID}: {number} is the experiment {found!r}, but {EXPERIMENT_NAME} is {name!r}. Unset one."
        )
    return found


def experiments(store: Store) -> dict[str, str]:
    """Return name and id of every experiment that is not deleted."""
    if store.opened_before:
        with suppress(SQLFailed):
            return database.read_experiments(store)
    return {e.name: str(e.experiment_id) for e in _pages(store, "search_experiments")}


def read_runs(store: Store, experiment_ids: Sequence[str], filter_string: str = "") -> list[Run]:
    """Read runs without their curves, oldest first.

    ``filter_string`` is in MLflow's search language; one that the store does not understand raises :class:`BadFilter`.
    """
    if not filter_string and store.artifact_root is not None:
        with suppress(SQLFailed), garbage_collector_paused():
            return [_run_of_row(row) for row in database.read_runs(store, experiment_ids)]
    options = {"experiment_ids": list(experiment_ids), "filter_string": filter_string}
    try:
        with garbage_collector_paused():
            found = _pages(store, "search_runs", order_by=["attributes.start_time ASC"], **options)
            return [_run(item) for item in found]
    except Rejected as error:
        if not filter_string:
            raise TrackingError(f"tracking store {store.public_uri}: {error}") from None
        raise BadFilter(
            f"{filter_string!r} is not understood: {error} Write it in MLflow's search language, such as "
            "\"tags.schedule = 'cosine' and params.`optimizer.lr` = '0.1'\"."
        ) from None


def _run_of_row(row: database.RunRow) -> Run:
    return Run(
        id=row.id,
        name=row.name or row.tags.get("mlflow.runName") or row.id,
        experiment_id=str(row.experiment_id),
        status=row.status,
        start=row.start or 0,
        end=row.end or None,
        params=row.params,
        tags=row.tags,
        last={key: math.nan if value is None else value for key, value in row.last.items()},
    )


@contextmanager
def garbage_collector_paused() -> Iterator[None]:
    """Pause the garbage collector: looking for cycles in a thousand runs of MLflow's doubles the time to read them.

    What has cycles is freed later: of a comparison these are its figures, some 25 MB.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _pages(store: Store, method: str, **options: Any) -> Iterator[Any]:
    """Iterate over the items of all pages of a search."""
    size = _SERVER_PAGE if store.artifact_root is None else _PAGE
    page = store.call(method, max_results=size, **options)
    yield from page
    while page.token:
        page = store.call(method, max_results=size, page_token=page.token, **options)
        yield from page


def _run(item: Any) -> Run:
    info, data = item.info, item.data
    return Run(
        id=info.run_id,
        name=info.run_name or data.tags.get("mlflow.runName") or info.run_id,
        experiment_id=str(info.experiment_id),
        status=str(info.status),
        start=int(info.start_time or 0),
        end=int(info.end_time) if info.end_time else None,
        params=dict(data.params),
        tags=dict(data.tags),
        last=dict(data.metrics),
    )


def read_curves(store: Store, runs: Sequence[Run], keys: Iterable[str]) -> None:
    """Read every row of some metrics of some runs into ``run.curves``; a run without a metric gets no curve for it.

    A database is read by SQL, which is many times faster than MLflow's client; a server is asked for many runs per
    request. Where neither is possible, the client reads metric by metric.
    """
    wanted = sorted(set(keys))
    if not runs or not wanted:
        return
    readers = [_read_by_requests] if store.artifact_root is None else [_read_tables, _read_by_requests]
    for read in readers:
        with suppress(SQLFailed):
            for run, key, rows in read(store, runs, wanted):
                run.curves[key] = MetricCurve.of(*rows)
            return


def _read_tables(store: Store, runs: Sequence[Run], keys: Sequence[str]) -> Iterator[tuple[Run, str, Rows]]:
    """Read the rows of each metric that a run has from the tables of a database, or raise :class:`SQLFailed`."""
    wanted = [(run, key) for run in runs for key in keys if key in run.last]
    rows = database.read_rows(store, [(run.id, key) for run, key in wanted])
    for (run, key), found in zip(wanted, rows, strict=True):
        if len(found[0]):
            yield run, key, found


def _read_by_requests(store: Store, runs: Sequence[Run], keys: Sequence[str]) -> Iterator[tuple[Run, str, Rows]]:
    """Request the rows of each metric that a run has, from any store."""
    having = {key: [run for run in runs if key in run.last] for key in keys}
    with ThreadPoolExecutor(_THREADS) as pool:
        firsts = [(having[key][:1], key) for key in keys if having[key]]
        jobs: list[tuple[list[Run], str]] = []
        for found in pool.map(lambda job: _request(store, *job), firsts):
            yield from found
            ((_, key, (steps, _, _)),) = found
            count = min(_BULK_MAX_RUNS, max(1, _BULK_ROWS // max(1, len(steps))))  # expects as many rows in other runs
            rest = having[key][1:]
            jobs += [(rest[i : i + count], key) for i in range(0, len(rest), count)]
        for found in pool.map(lambda job: _request(store, *job), jobs):
            yield from found


def _request(store: Store, runs: list[Run], key: str) -> list[tuple[Run, str, Rows]]:
    """Read one metric of some runs, in as few requests as possible."""
    rows = _bulk(store, [run.id for run in runs], key) if store.artifact_root is None else None
    if rows is not None and sum(len(step) for step, _, _ in rows.values()) >= _BULK_MAX_ROWS and len(runs) > 1:
        half = len(runs) // 2
        return _request(store, runs[:half], key) + _request(store, runs[half:], key)
    return [
        (run, key, rows[run.id] if rows is not None and _is_complete(run, key, rows) else _one(store, run, key))
        for run in runs
    ]


def _is_complete(run: Run, key: str, rows: dict[str, Rows]) -> bool:
    """Check that a run's rows are all there: fewer than the limit, and with the newest value, which comes last."""
    _, values, _ = rows.get(run.id, (None, np.zeros(0), None))
    newest = run.last[key]
    has_newest = bool((np.isnan(values) if np.isnan(newest) else values == newest).any())
    return has_newest and len(values) < _BULK_MAX_ROWS


def _bulk(store: Store, ids: list[str], key: str) -> dict[str, Rows] | None:
    """Request one metric of many runs at once. Returns None if the server has no such call, or another one."""
    client = store.client()
    try:
        from mlflow.utils.rest_utils import http_request

        get: Callable[..., Any] = http_request
        credentials = client._tracking_client.store.get_host_creds()
        params = {"run_id": ids, "metric_key": key, "max_results": _BULK_MAX_ROWS}
        answer = get(credentials, _BULK_PATH, "GET", params=params, timeout=_BULK_TIMEOUT, raise_on_status=False)
        if answer.status_code != 200:
            return None
        by_run: dict[str, list[tuple[int, float, int]]] = {}
        for row in json.loads(answer.content)["metrics"]:
            by_run.setdefault(row["run_id"], []).append((row["step"], row["value"], row["timestamp"]))
        return {run_id: _as_arrays(rows) for run_id, rows in by_run.items()}
    except (ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
        log.debug("%s does not return many metrics at once: %s", store.public_uri, error)
        return None
    except Exception as error:  # requests and MLflow raise their own
        raise translate_error(error, store.uri) from None


def _one(store: Store, run: Run, key: str) -> Rows:
    """Read one metric of one run through MLflow's client."""
    history = store.call("get_metric_history", run.id, key)
    return _as_arrays([(metric.step, metric.value, metric.timestamp) for metric in history])


def _as_arrays(rows: list[tuple[int, float, int]]) -> Rows:
    step, value, time = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(step, np.int64), np.array(value, np.float64), np.array(time, np.int64)
