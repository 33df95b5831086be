"""Rows written by SQL are the rows that MLflow's client writes; where SQL cannot, the client writes them."""

import math
import random
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lr_lightning.tracking import Store, database, open_store, query
from lr_lightning.tracking.database import insert_rows
from lr_lightning.tracking.local_log import LocalLog, Metric, UploadState
from lr_lightning.tracking.query import read_curves, read_runs
from lr_lightning.tracking.uploader import Uploader

# Steps in disorder, a value that repeats, a later value of a step, one row of its own, and values of every size.
ROWS = [
    *(Metric("loss", 1 / (step + 1), step, 1000 + step) for step in (0, 2, 1, 5, 3)),
    Metric("loss", 0.25, 5, 3000),
    Metric("loss", 0.25, 5, 3000),
    *(Metric("lr/some group", value, step, 2000) for step, value in enumerate((1e-300, -0.0, 1e300, 7.0, -3.5))),
    Metric("epoch", 1.0, 4, 1500),
]


def execute(store: Store, *statement: Any) -> list[Any]:
    assert store.file is not None
    with closing(sqlite3.connect(store.file)) as opened, opened:
        return opened.execute(*statement).fetchall()


def stored(store: Store, run_id: str) -> list[list[Any]]:
    """Return the rows and the newest values of a run, in all columns but that of the run."""
    found = []
    for table in ("metrics", "latest_metrics"):
        names = sorted(name for _, name, *_ in execute(store, f"PRAGMA table_info({table})") if name != "run_uuid")
        columns = ", ".join(f"{name}, typeof({name})" for name in names)
        found.append(sorted(execute(store, f"SELECT {columns} FROM {table} WHERE run_uuid = ?", (run_id,))))
    return found


def by_client(store: Store) -> list[list[Any]]:
    from mlflow.entities import Metric as Row

    run = store.call("create_run", store.experiment_id("client"))
    store.call("log_batch", run.info.run_id, metrics=[Row(r.key, r.value, r.time, r.step) for r in ROWS])
    return stored(store, run.info.run_id)


def upload(store: Store, folder: Path) -> str:
    """Upload all rows twice, as after a lost answer, and return the run's id."""
    LocalLog(folder / "metrics.jsonl").append(ROWS)
    uploader = Uploader(folder, store, UploadState(store.uri, str(store.root), None, "sql"))
    assert uploader.upload_next() == len(ROWS)
    again = Uploader(folder, store, UploadState(store.uri, str(store.root), None, "sql", run_id=uploader.state.run_id))
    assert again.upload_next() == len(ROWS)
    return uploader.ensure_run()


@pytest.fixture
def clients_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the rows of every call of MLflow's client."""
    counts: list[int] = []
    call: Callable[..., Any] = Store.call

    def counted(self: Store, method: str, /, *args: Any, **options: Any) -> Any:
        if method == "log_batch":
            counts.append(len(options["metrics"]))
        return call(self, method, *args, **options)

    monkeypatch.setattr(Store, "call", counted)
    return counts


def test_rows_are_stored_as_by_the_client_and_once(store: Store, tmp_path: Path, clients_rows: list[int]) -> None:
    expected = by_client(store)
    clients_rows.clear()
    assert stored(store, upload(store, tmp_path)) == expected
    assert clients_rows == [3, 3]  # the newest of each metric


def test_the_client_writes_into_other_tables(store: Store, tmp_path: Path, clients_rows: list[int]) -> None:
    store.client()
    execute(store, "ALTER TABLE metrics ADD COLUMN note VARCHAR")
    expected = by_client(store)
    clients_rows.clear()
    assert stored(store, upload(store, tmp_path)) == expected
    assert clients_rows == [len(ROWS)] * 2


def test_rows_in_any_order_and_number_end_as_by_the_client(store: Store, tmp_path: Path) -> None:
    from mlflow.entities import Metric as Row

    client = store.call("create_run", store.experiment_id("client")).info.run_id
    own = store.call("create_run", store.experiment_id("sql")).info.run_id
    uploader = Uploader(tmp_path, store, UploadState(store.uri, str(store.root), None, "sql", run_id=own))
    draw = random.Random(0)
    sent: list[list[Metric]] = []
    for _ in range(30):
        values = draw.choice([(0.0, 1.0, -2.5), (0.0, 1.0, math.nan, math.inf, -math.inf)])
        batch = [
            Metric(draw.choice("ab"), draw.choice(values), draw.randrange(4), 1000 + draw.randrange(3))
            for _ in range(draw.randrange(1, 12))
        ]
        sent.append(draw.choice(sent) if sent and draw.random() < 0.3 else batch)  # some are sent again, later
        store.call("log_batch", client, metrics=[Row(r.key, r.value, r.time, r.step) for r in sent[-1]])
        uploader._send_batch(own, sent[-1])
        assert stored(store, own) == stored(store, client)


def test_rows_are_left_to_the_client(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, with nothing inserted, if one of them or the run is not what SQL can insert."""
    experiment = store.experiment_id("x")
    run_id, gone = (store.call("create_run", experiment).info.run_id for _ in range(2))
    store.call("delete_run", gone)
    good = [Metric("loss", 1.0, step, 0) for step in range(3)]

    def left(rows: list[Metric], run: str = run_id) -> bool:
        found = insert_rows(store, run, rows)
        assert execute(store, "SELECT count(*) FROM metrics") == [(0,)]
        return list(found) == rows

    assert left([*good, Metric("loss", 1.0, 2**70, 0), Metric("loss", 1.0, 2**71, 0)])  # no whole number of SQLite's
    assert left([*good, Metric("loss", 1.0, 4, -1)])  # before 1970
    assert left([*good, Metric("loss", math.inf, 1, 0)])
    assert left([*good, Metric("a name: bad", 1.0, 1, 0)])
    assert left(good, "a run that is not there")
    assert left(good, gone)
    assert left(good[:1])
    monkeypatch.setenv("MLFLOW_ACTIVE_MODEL_ID", "m-1")
    assert left(good)
    monkeypatch.delenv("MLFLOW_ACTIVE_MODEL_ID")
    assert insert_rows(store, run_id, good) == good[-1:]
    assert execute(store, "SELECT step FROM metrics ORDER BY step") == [(0,), (1,)]


def test_a_database_that_is_held_or_gone_is_left_to_the_client(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = store.call("create_run", store.experiment_id("x")).info.run_id
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.1)
    assert store.file is not None
    with closing(sqlite3.connect(store.file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert insert_rows(store, run_id, ROWS) == ROWS
    store.file.rename(tmp_path / "away.db")
    assert insert_rows(store, run_id, ROWS) == ROWS
    assert not store.file.exists()


def test_the_newest_rows_come_last(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose newest rows are stored has all rows before them, though the upload was killed in between."""
    call: Callable[..., Any] = Store.call

    def killed(self: Store, method: str, /, *args: Any, **options: Any) -> Any:
        if method == "log_batch":
            raise KeyboardInterrupt
        return call(self, method, *args, **options)

    LocalLog(tmp_path / "metrics.jsonl").append(ROWS)
    uploader = Uploader(tmp_path, store, UploadState(store.uri, str(store.root), None, "sql"))
    run_id = uploader.ensure_run()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "call", killed)
        with pytest.raises(KeyboardInterrupt):
            uploader.upload_next()
    rows, newest = stored(store, run_id)
    assert len(rows) == 9  # without the newest of three metrics, and a row that is there twice
    assert newest == []
    assert uploader.upload_next() == len(ROWS)
    assert stored(store, run_id) == by_client(store)


def test_a_database_on_a_server_is_read_as_by_the_client(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clients_rows: list[int]
) -> None:
    store = open_store(tmp_path, postgres.replace("postgresql:", "postgresql+psycopg:").replace("/search", "/runs"))
    run_id = upload(store, tmp_path)
    assert clients_rows == [len(ROWS)] * 2  # all of them by the client
    store.call("log_metric", run_id, "broken", float("nan"), step=3)
    read = []
    for differ in (False, True):
        if differ:
            monkeypatch.setattr(query, "_read_tables", _differ)
            monkeypatch.setattr(database, "read_runs", _differ)
        (run,) = read_runs(store, [store.experiment_id("sql")])
        read_curves(store, [run], ["loss", "lr/some group", "broken"])
        read.append(repr(vars(run) | {"curves": {key: vars(curve) for key, curve in run.curves.items()}}))
    assert read[0] == read[1]
    assert "nan" in read[0]
    assert len(run.curves) == 3


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mysql", "mssql"])
def test_no_statement_takes_a_number_for_a_condition(dialect: str) -> None:
    """The compiled text: SQL Server has no booleans."""
    import sqlalchemy as sql

    table = database._table("latest_metrics", "key", "value", "is_nan")
    text = str(sql.select(database._value(table)).compile(dialect=sql.dialects.registry.load(dialect)()))
    assert re.search(r"WHEN \(?latest_metrics\.is_nan (= 1|= true|IS 1|IS true)", text), text


def _differ(*args: object) -> None:
    raise database.SQLFailed("another MLflow")
