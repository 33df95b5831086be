"""Every row of many metrics through MLflow: from a server in few requests, else metric by metric."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from lr_lightning.tracking.store import Store, explain
from lr_lightning.tracking.table_rows import Rows

if TYPE_CHECKING:
    from lr_lightning.tracking.runs import Run

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
