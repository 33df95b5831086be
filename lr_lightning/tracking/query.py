"""Reading runs back from a store: what they are, and every row of the metrics that are asked for."""

import gc
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lr_lightning.errors import Rejected, TrackingError
from lr_lightning.tracking.keys import JOB_TAG
from lr_lightning.tracking.store import Store, explain

_PAGE = 1000
_HUGE = 1.7e308  # MLflow stores infinity as the largest double


@dataclass(frozen=True, eq=False)
class MetricCurve:
    """Every finite row of one metric of a run, one for each step, by rising step.

    Attributes:
        step: Shape [n].
        value: Shape [n].
        time: Milliseconds since 1970, shape [n].
        nonfinite: Rows that were left out since their value is nan or infinite.
    """

    step: NDArray[np.int64]
    value: NDArray[np.float64]
    time: NDArray[np.int64]
    nonfinite: int = 0


@dataclass(eq=False)
class Run:
    """One run of a store, from whatever program it came.

    Attributes:
        id: MLflow's run id.
        name: Any text at all.
        experiment_id: Of the experiment it is in.
        status: RUNNING, FINISHED, FAILED, KILLED or SCHEDULED.
        start: Milliseconds since 1970.
        end: The same, or None.
        params: By name.
        tags: By name.
        last: The newest value of each metric.
        curves: The metrics that were read in full.
    """

    id: str
    name: str
    experiment_id: str
    status: str
    start: int
    end: int | None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    curves: dict[str, MetricCurve] = field(default_factory=dict)

    @property
    def job(self) -> str:
        """What kind of run it is."""
        return self.tags.get(JOB_TAG, "train")


def experiments(store: Store) -> dict[str, str]:
    """Name to id of every experiment that is not deleted."""
    found: dict[str, str] = {}
    token = None
    while True:
        page = store.call("search_experiments", max_results=_PAGE, page_token=token)
        found |= {experiment.name: str(experiment.experiment_id) for experiment in page}
        token = page.token
        if not token:
            return found


def read_runs(store: Store, experiment_ids: Sequence[str], filter_string: str = "") -> list[Run]:
    """Read runs without their curves, oldest first.

    Args:
        store: The store.
        experiment_ids: Where to look.
        filter_string: In MLflow's search language, such as ``tags.schedule = 'cosine'``.

    Raises:
        TrackingError: The filter is not understood.
        StoreUnavailable: The store does not answer.
    """
    found: list[Run] = []
    token = None
    while True:
        try:
            page = store.call(
                "search_runs",
                list(experiment_ids),
                filter_string=filter_string,
                max_results=_PAGE,
                page_token=token,
                order_by=["attributes.start_time ASC"],
            )
        except Rejected as error:
            raise TrackingError(
                f"{filter_string!r} is not understood: {error} Write it in MLflow's search language, such as "
                "\"tags.schedule = 'cosine' and params.`optimizer.lr` = '0.1'\"."
            ) from None
        found += [_run(item) for item in page]
        token = page.token
        if not token:
            return found


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
    """Read every row of some metrics of some runs into ``run.curves``.

    From a database by SQL, which is many times faster than asking MLflow; from a server in requests for many runs at
    once; where neither is possible, through MLflow's client, metric by metric.

    Args:
        store: The store.
        runs: Those that get the curves.
        keys: Names of metrics; a run that lacks one goes without.

    Raises:
        StoreUnavailable: The store does not answer.
    """
    wanted = sorted(set(keys))
    if not runs or not wanted:
        return
    if store.artifact_root is not None:
        try:
            for run, key, rows in read_rows(store, runs, wanted):
                run.curves[key] = _curve(*rows)
            return
        except TablesDiffer:
            pass
    for run, key, rows in ask_rows(store, runs, wanted):
        run.curves[key] = _curve(*rows)


def _curve(step: NDArray[np.int64], value: NDArray[np.float64], time: NDArray[np.int64]) -> MetricCurve:
    """Sort; leave out what is not finite; of rows of one step keep the newest (a resumed run may repeat steps)."""
    finite = np.isfinite(value) & (np.abs(value) < _HUGE)
    nonfinite = int(value.size - finite.sum())
    step, value, time = step[finite], value[finite], time[finite]
    order = np.lexsort((time, step))
    step, value, time = step[order], value[order], time[order]
    newest = np.append(step[1:] != step[:-1], True) if step.size else np.zeros(0, bool)
    return MetricCurve(step[newest], value[newest], time[newest], nonfinite)


# --- Every row of many metrics at once, straight from the tables of a database store.

Rows = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]


class TablesDiffer(Exception):
    """The tables are not those of the MLflow this was written for."""


def read_rows(store: Store, runs: Sequence["Run"], keys: Sequence[str]) -> Iterator[tuple["Run", str, Rows]]:
    """Read the rows of each metric that a run has.

    Args:
        store: A database store; it is opened for reading alone.
        runs: Whose rows.
        keys: Of which metrics.

    Yields:
        Run, metric, and step, value (nan where it is) and time of its rows.

    Raises:
        TablesDiffer: There is no such table or column.
        StoreUnavailable: The database does not answer.
    """
    import sqlalchemy as sql

    c = sql.table("metrics", *map(sql.column, ("run_uuid", "key", "step", "value", "timestamp", "is_nan"))).c
    # The order makes SQLite choose the right one of its indices: 30 times faster than without.
    query = (
        sql.select(c.step, c.value, c.timestamp, c.is_nan)
        .where(c.run_uuid == sql.bindparam("run"), c.key == sql.bindparam("key"))
        .order_by(c.step)
    )
    engine = sql.create_engine(store.uri)
    collecting = gc.isenabled()
    gc.disable()  # millions of rows become tuples and go at once; looking for cycles in them takes twice the time
    try:
        with engine.connect() as connection:
            for run in runs:
                for key in keys:
                    if key not in run.last:
                        continue
                    rows = connection.execute(query, {"run": run.id, "key": key}).all()
                    if rows:
                        step, value, time, is_nan = zip(*rows, strict=True)
                        values = np.array(value, np.float64)
                        values[np.array(is_nan, bool)] = np.nan
                        yield run, key, (np.array(step, np.int64), values, np.array(time, np.int64))
    except (sql.exc.ProgrammingError, sql.exc.OperationalError) as error:
        if "no such" in str(error) or "does not exist" in str(error) or "nknown column" in str(error):
            raise TablesDiffer(str(error)) from None
        raise explain(error, store.uri) from None
    except sql.exc.SQLAlchemyError as error:
        raise explain(error, store.uri) from None
    finally:
        if collecting:
            gc.enable()
        engine.dispose()


# --- Every row of many metrics through MLflow: from a server in few requests, else metric by metric.

log = logging.getLogger(__name__)

Found = list[tuple["Run", str, Rows]]

_READERS = 8  # a server answers one call after another; a few in flight hide the way there and back
# What MLflow's own pages ask for. It gives rows of many runs at once, and makes half the work of them that the
# documented call makes, which the client uses. It gives so many rows and no word of those beyond.
_PATH = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
_MOST_ROWS = 25_000
_MOST_RUNS = 50  # of 100: their ids are in the address
_ROWS = 5_000  # that a request is made for; more would keep a small server busy beyond a proxy's patience
_TIMEOUT = 60.0  # seconds; all readers may wait for one worker


def ask_rows(store: Store, runs: Sequence["Run"], keys: Sequence[str]) -> Iterator[tuple["Run", str, Rows]]:
    """Ask for the rows of each metric that a run has.

    Args:
        store: Any store.
        runs: Whose rows.
        keys: Of which metrics.

    Yields:
        Run, metric, and step, value and time of its rows.

    Raises:
        TrackingError: The store refuses.
        StoreUnavailable: It does not answer.
    """
    having = {key: [run for run in runs if key in run.last] for key in keys}
    with ThreadPoolExecutor(_READERS) as pool:
        firsts = [(having[key][:1], key) for key in keys if having[key]]
        jobs: list[tuple[list[Run], str]] = []
        for found in pool.map(lambda job: _ask(store, *job), firsts):
            yield from found
            ((_, key, (steps, _, _)),) = found
            count = min(_MOST_RUNS, max(1, _ROWS // max(1, len(steps))))  # its other runs have about as many
            rest = having[key][1:]
            jobs += [(rest[i : i + count], key) for i in range(0, len(rest), count)]
        for found in pool.map(lambda job: _ask(store, *job), jobs):
            yield from found


def _ask(store: Store, runs: list["Run"], key: str) -> Found:
    """The rows of one metric of some runs, in as few requests as it takes."""
    rows = _bulk(store, [run.id for run in runs], key) if store.artifact_root is None else None
    if rows is not None and sum(len(step) for step, _, _ in rows.values()) >= _MOST_ROWS and len(runs) > 1:
        half = len(runs) // 2
        return _ask(store, runs[:half], key) + _ask(store, runs[half:], key)
    return [
        (run, key, rows[run.id] if rows is not None and _complete(run, key, rows) else _client(store, run, key))
        for run in runs
    ]


def _complete(run: "Run", key: str, rows: dict[str, Rows]) -> bool:
    """Whether a run's rows are all there: fewer than the limit, and its newest value, the last to be given, is one."""
    _, values, _ = rows.get(run.id, (None, np.zeros(0), None))
    newest = run.last[key]
    there = bool((np.isnan(values) if np.isnan(newest) else values == newest).any())
    return there and len(values) < _MOST_ROWS


def _bulk(store: Store, ids: list[str], key: str) -> dict[str, Rows] | None:
    """The rows by run; None where the server has no such call, or answers with something else."""
    client = store.client()
    try:
        from mlflow.utils.rest_utils import http_request

        get: Callable[..., Any] = http_request
        credentials = client._tracking_client.store.get_host_creds()
        asked = {"run_id": ids, "metric_key": key, "max_results": _MOST_ROWS}
        answer = get(credentials, _PATH, "GET", params=asked, timeout=_TIMEOUT, raise_on_status=False)
        found = json.loads(answer.content)["metrics"] if answer.status_code == 200 else None
        by_run: dict[str, list[tuple[int, float, int]]] = {}
        for row in found or ():
            by_run.setdefault(row["run_id"], []).append((row["step"], row["value"], row["timestamp"]))
        return None if found is None else {name: _rows(rows) for name, rows in by_run.items()}
    except (ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
        log.debug("%s does not give many metrics at once: %s", store.public_uri, error)
        return None
    except Exception as error:  # requests and MLflow raise their own
        raise explain(error, store.uri) from None


def _client(store: Store, run: "Run", key: str) -> Rows:
    history = store.call("get_metric_history", run.id, key)
    return _rows([(metric.step, metric.value, metric.timestamp) for metric in history])


def _rows(rows: list[tuple[int, float, int]]) -> Rows:
    step, value, time = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(step, np.int64), np.array(value, np.float64), np.array(time, np.int64)
