"""Reading of runs: the fast ways return the same rows as MLflow's client."""

import math
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lr_lightning.errors import TrackingError
from lr_lightning.tracking import Store, open_store, query
from lr_lightning.tracking import store as store_module
from lr_lightning.tracking.query import Run, experiments, read_curves, read_runs

KEYS = ["a", "b c", "missing"]


@pytest.fixture
def filled(store: Store) -> Store:
    from mlflow.entities import Metric, Param

    experiment = store.experiment_id("x")
    for i in range(3):
        run = store.call("create_run", experiment, run_name=f"r{i}", tags={"k": f"v{i}"}, start_time=1000 + i)
        rows = [Metric("a", 0.1 * s + i, 5000 + s, s) for s in (3, 1, 2, 0)]
        rows += [Metric("a", 99.0, 9000, 2)]  # a resumed run repeated this step later
        rows += [Metric("a", float("nan"), 5000, 4), Metric("a", float("inf"), 5000, 5)]
        rows += [Metric("b c", 1.0, 5000, 0)] if i else []
        store.call("log_batch", run.info.run_id, metrics=rows, params=[Param("p", "1")])
    return store


def curves(runs: list[Run]) -> list[dict[str, tuple[list[int], list[float], list[int], int]]]:
    return [
        {k: (c.step.tolist(), c.value.tolist(), c.time.tolist(), c.nonfinite) for k, c in run.curves.items()}
        for run in runs
    ]


def read(store: Store) -> list[Run]:
    runs = read_runs(store, [experiments(store)["x"]])
    read_curves(store, runs, KEYS)
    return runs


def test_every_row_is_read_once_and_sorted(filled: Store) -> None:
    first, second, third = read(filled)
    assert (first.name, first.params, first.tags["k"]) == ("r0", {"p": "1"}, "v0")
    assert (first.status, first.job) == ("RUNNING", "train")
    assert curves([first]) == [{"a": ([0, 1, 2, 3], [0.0, 0.1, 99.0, 0.1 * 3], [5000, 5001, 9000, 5003], 2)}]
    assert set(second.curves) == {"a", "b c"}
    assert np.array_equal(third.curves["a"].step, [0, 1, 2, 3])


def test_mlflows_client_gives_the_same(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = curves(read(filled))

    def differ(*args: object) -> None:
        raise query.SQLFailed("another MLflow")

    monkeypatch.setattr(query, "_read_tables", differ)
    assert curves(read(filled)) == fast


def test_a_known_file_tells_its_experiments_without_mlflow(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.call("delete_experiment", filled.experiment_id("deleted"))
    filled.experiment_id("it's 100 % ü")
    calls: list[str] = []
    call = Store.call
    monkeypatch.setattr(Store, "call", lambda self, name, *a, **o: (calls.append(name), call(self, name, *a, **o))[1])
    fast = experiments(filled)
    assert (calls, {*fast}) == ([], {"Default", "x", "it's 100 % ü"})
    stamp = filled.root / ".opened"
    known = stamp.read_text()
    stamp.write_text("another version of MLflow")  # whose tables may be others
    assert (experiments(filled), calls) == (fast, ["search_experiments"])
    stamp.write_text(known)
    with closing(sqlite3.connect(filled.root / "mlflow.db")) as database, database:
        columns = "name, artifact_location, lifecycle_stage, workspace"
        database.execute(f"INSERT INTO experiments ({columns}) VALUES ('theirs', '', 'active', 'of another team')")
    with pytest.raises(query.SQLFailed):
        query.database.read_experiments(filled)


def test_mlflows_client_gives_the_same_runs(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.entities import Metric

    other, third = (filled.experiment_id(name) for name in ("other", "third"))
    late, early, same, gone, _ = (
        filled.call("create_run", experiment, start_time=start).info.run_id
        for experiment, start in ((other, 900), (other, 800), (other, 800), (other, 700), (third, 1))
    )
    filled.call("log_metric", late, "broken", float("nan"))
    filled.call("log_batch", early, metrics=[Metric("a", float("-inf"), 1, 0), Metric("a", 2.0, 1, 7)])
    filled.call("set_terminated", same, "FAILED", 12345)
    filled.call("set_tag", late, "mlflow.runName", "renamed: a, 'b' % ü")
    filled.call("delete_run", gone)
    asked = [experiments(filled)["x"], other]
    calls: list[str] = []
    call = Store.call
    monkeypatch.setattr(Store, "call", lambda self, name, *a, **o: (calls.append(name), call(self, name, *a, **o))[1])
    fast = read_runs(filled, asked)
    assert calls == []

    def differ(*args: object) -> None:
        raise query.SQLFailed("another MLflow")

    monkeypatch.setattr(query.database, "read_runs", differ)
    by_client = read_runs(filled, asked)
    assert calls == ["search_runs"]
    assert len(fast) == 6
    assert math.isnan(fast[2].last["broken"])
    for run in (*fast, *by_client):  # nan equals nothing
        run.last = {key: None if math.isnan(value) else value for key, value in run.last.items()}
    assert [vars(run) for run in fast] == [vars(run) for run in by_client]


@pytest.fixture
def served(filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The filled store behind MLflow's server, in this process."""
    from mlflow.server import app, handlers
    from werkzeug.serving import make_server

    monkeypatch.setattr(handlers, "_tracking_store", filled.client()._tracking_client.store)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    store = open_store(tmp_path / "client", f"http://127.0.0.1:{server.server_port}")
    yield store
    server.shutdown()
    thread.join()
    server.server_close()
    store_module._clients.pop(store.uri, None)


@pytest.mark.parametrize(
    ("limits", "client_calls"),
    [
        ({}, 0),  # all runs of a metric in one request, after the first
        ({"_BULK_ROWS": 1}, 0),  # one request per run
        ({"_BULK_MAX_ROWS": 10}, 0),  # an answer that may be cut is requested again in halves
        ({"_BULK_MAX_ROWS": 7}, 3),  # even that of one run is cut, so the client reads page by page
        ({"_BULK_PATH": "/not/there"}, 5),  # a server without the call
    ],
)
def test_a_server_gives_the_same(
    filled: Store, served: Store, monkeypatch: pytest.MonkeyPatch, limits: dict[str, object], client_calls: int
) -> None:
    expected = curves(read(filled))
    for name, value in limits.items():
        monkeypatch.setattr(query, name, value)
    asked: list[str] = []
    one = query._one
    monkeypatch.setattr(query, "_one", lambda store, run, key: (asked.append(key), one(store, run, key))[1])
    assert curves(read(served)) == expected
    assert len(asked) == client_calls


def test_rows_that_a_server_leaves_out_are_noticed(
    filled: Store, served: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may silently return fewer rows than requested: then the newest value is missing."""
    expected = curves(read(filled))
    whole = query._bulk

    def cut(store: Store, ids: list[str], key: str) -> dict[str, query.Rows]:
        found = whole(store, ids, key)
        assert found is not None
        return {name: (step[:2], value[:2], time[:2]) for name, (step, value, time) in found.items()}

    monkeypatch.setattr(query, "_bulk", cut)
    assert curves(read(served)) == expected


def test_missing_tables_are_noticed(filled: Store, tmp_path: Path) -> None:
    runs = read_runs(filled, [experiments(filled)["x"]])
    other = open_store(tmp_path / "other", f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(query.SQLFailed):
        list(query._read_tables(other, runs, KEYS))
    with pytest.raises(query.SQLFailed):
        query.database.read_runs(other, ["1"])


def test_runs_come_from_a_server_in_small_pages(filled: Store, served: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "_SERVER_PAGE", 2)
    pages: list[int] = []
    call = Store.call

    def counted(store: Store, name: str, *given: object, **options: Any) -> object:
        pages.append(options["max_results"])
        return call(store, name, *given, **options)

    monkeypatch.setattr(Store, "call", counted)
    assert [run.name for run in read_runs(served, ["1"])] == ["r0", "r1", "r2"]
    assert pages == [2, 2]


def test_an_invalid_filter_is_named(filled: Store) -> None:
    assert [run.name for run in read_runs(filled, ["1"], "tags.k = 'v1'")] == ["r1"]
    with pytest.raises(TrackingError, match=r"^'k=' is not understood"):
        read_runs(filled, ["1"], "k=")


def test_without_keys_or_runs_nothing_is_read(filled: Store) -> None:
    runs = read_runs(filled, ["1"])
    read_curves(filled, runs, [])
    read_curves(filled, [], KEYS)
    assert all(not run.curves for run in runs)


def test_more_runs_than_a_page(make_store: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lr_lightning.tracking.query._PAGE", 2)
    store = make_store("pages")
    experiment = store.experiment_id("x")
    for i in range(5):
        store.call("create_run", experiment, run_name=f"r{i}", start_time=i + 1)
    client = read_runs(store, [experiment], "attributes.start_time > 0")  # a filter is the client's work
    assert [run.name for run in client] == [f"r{i}" for i in range(5)]
    store_module._clients.pop(store.uri, None)
