"""Rows written by SQL are the rows that MLflow's client writes; where SQL cannot, the client writes them."""

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
    assert clients_rows == [3, len(ROWS) - 3] * 2


def test_all_rows_are_inserted_or_none(store: Store) -> None:
    run_id = store.call("create_run", store.experiment_id("x")).info.run_id
    good, huge, infinite = ROWS[0], Metric("loss", 1.0, 2**70, 0), Metric("loss", float("inf"), 1, 0)
    for rows in ([good, huge], [good, infinite]):
        assert not insert_rows(store, run_id, rows)
    assert not insert_rows(store, "a run that is gone", [good])
    assert execute(store, "SELECT count(*) FROM metrics") == [(0,)]
    assert insert_rows(store, run_id, [good])


def test_a_database_that_is_held_or_gone_is_left_to_the_client(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = store.call("create_run", store.experiment_id("x")).info.run_id
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.1)
    assert store.file is not None
    with closing(sqlite3.connect(store.file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert not insert_rows(store, run_id, ROWS)
    store.file.rename(tmp_path / "away.db")
    assert not insert_rows(store, run_id, ROWS)
    assert not store.file.exists()


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


def _differ(*args: object) -> None:
    raise database.TablesDiffer("another MLflow")
