import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from lr_lightning.errors import Rejected, StoreUnavailable, TrackingError
from lr_lightning.tracking import Store, open_store
from lr_lightning.tracking import store as database
from lr_lightning.tracking.query import experiments
from lr_lightning.tracking.store import translate_error
from tests.forked import Forked
from tests.test_commands import in_bash

Foreign = Callable[..., AbstractContextManager[Path]]


def test_the_default_store_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("mlruns")
    assert store.uri == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert store.artifact_root == tmp_path / "mlruns" / "artifacts"
    assert open_store("mlruns", "sqlite:///my.db").uri == f"sqlite:///{tmp_path}/my.db"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/x", "/tmp/x", "sqlite", "ftp://x"])
def test_an_address_that_mlflow_does_not_take_is_an_error(tmp_path: Path, uri: str) -> None:
    with pytest.raises(TrackingError, match=r"tracking\.uri: .* is no address of a store"):
        open_store(tmp_path, uri)


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    store = open_store(tmp_path, "postgresql://me:secret@127.0.0.1:1/db")
    assert store.public_uri == "postgresql://me:***@127.0.0.1:1/db"
    with pytest.raises(StoreUnavailable) as caught:
        store.client()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_dead_server_is_noticed_at_once(tmp_path: Path, scheme: str) -> None:
    with pytest.raises(StoreUnavailable, match="refused"):
        open_store(tmp_path, f"{scheme}://127.0.0.1:1").client()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="cannot be made"):
        open_store(tmp_path / "file" / "mlruns").client()


def test_artifacts_have_a_fixed_place_in_odd_folders_too(make_store: Callable[[str], Store]) -> None:
    store = make_store("a b%20#c")
    run = store.call("create_run", store.experiment_id("x"))
    store.call("log_text", run.info.run_id, "hello", "f.txt")
    assert (store.root / "artifacts" / run.info.run_id / "artifacts" / "f.txt").read_text() == "hello"


def test_an_experiment_is_made_once(store: Store) -> None:
    assert store.experiment_id("x") == store.experiment_id("x")


def test_a_deleted_experiment_is_an_error_with_its_remedy(store: Store) -> None:
    store.call("delete_experiment", store.experiment_id("x"))
    with pytest.raises(TrackingError, match=r"experiment 'x' .* was deleted\. Restore it .*experiments restore -x \d+"):
        store.experiment_id("x")


def test_a_missing_run_is_an_error(store: Store) -> None:
    with pytest.raises(TrackingError, match="there is no run 'abc'"):
        store.run("abc")


@pytest.mark.parametrize(
    ("code", "user", "said", "expected"),
    [
        (
            "UNAUTHENTICATED",
            None,
            "error code 401 != 200",
            "asks for a user and a password. Set MLFLOW",
        ),
        ("UNAUTHENTICATED", "me", "error code 401 != 200", "does not know the user 'me' with this password"),
        (
            "PERMISSION_DENIED",
            "me",
            "403. Response body: 'Permission denied'",
            "'me' may not do this. Ask .*EDIT",
        ),
        (
            "PERMISSION_DENIED",
            "me",
            "Response body: 'Invalid Host header - ...'",
            "--allowed-hosts .* Host header",
        ),
    ],
)
def test_a_server_that_refuses_access_is_one_error_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, user: str | None, said: str, expected: str
) -> None:
    """The error shows neither MLflow's endpoints and bodies nor, when a run is requested, "there is no run"."""
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    if user:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)

    class Client:
        def get_run(self, run_id: str) -> None:
            error = RuntimeError(f"API request to endpoint /api/2.0/mlflow/runs/get failed: {said}")
            error.error_code = code  # type: ignore[attr-defined]
            raise error

    monkeypatch.setattr(Store, "client", lambda self: Client())
    with pytest.raises(TrackingError, match=expected) as caught:
        open_store(tmp_path, "http://h:5000").run("abc")
    assert "endpoint" not in str(caught.value)
    assert "no run" not in str(caught.value)


def test_a_database_that_rejects_the_password_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow tries a wrong password for minutes; the run must not train as if the database were down."""
    error = OperationalError("x", {}, Exception('FATAL:  password authentication failed for user "me"'))

    class Engine:
        def connect(self) -> None:
            raise error

        def dispose(self) -> None:
            """Nothing is open."""

    monkeypatch.setattr("mlflow.store.db.utils.create_sqlalchemy_engine", lambda uri: Engine())
    monkeypatch.setattr(Store, "_check_reachable", lambda self: tmp_path.mkdir(exist_ok=True))
    with pytest.raises(TrackingError, match=r"password authentication failed .* user:password@host"):
        open_store(tmp_path, "postgresql://me:wrong@db/x").client()


def test_a_file_that_exists_is_not_taken_for_a_database(empty_store: Path) -> None:
    assert empty_store.stat().st_size > 0  # the fixture began with an empty file


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_PARAMETER_VALUE", Rejected),
        ("PERMISSION_DENIED", TrackingError),
        ("TEMPORARILY_UNAVAILABLE", StoreUnavailable),
        ("INTERNAL_ERROR", StoreUnavailable),
    ],
)
def test_an_error_code_decides_the_type_of_the_error(code: str, kind: type) -> None:
    error = RuntimeError("first line\nsecond")
    error.error_code = code  # type: ignore[attr-defined]
    translated = translate_error(error, "http://h")
    assert type(translated) is kind
    assert "second" not in str(translated)


def test_a_missing_driver_is_no_reason_to_try_again() -> None:
    assert type(translate_error(ModuleNotFoundError("No module named 'psycopg2'"), "postgresql://h")) is TrackingError


FIRST_RUN = """
import os, sys, time
from lr_lightning.tracking import RunLogger, mark_dead_runs, open_store
store = open_store(sys.argv[1])
open(sys.argv[2] + ".ready", "x").close()
while not os.path.exists("../go"):
    time.sleep(0.005)
mark_dead_runs(store)
logger = RunLogger(sys.argv[2], store, experiment="first", end_on_finalize=False)
logger.start()
for step in range(300):
    logger.log_metrics({"loss": step / 3}, step)
logger.log_text("hello", "f.txt")
logger.end("FINISHED")
"""


@pytest.mark.slow
def test_eight_first_runs_at_once_all_survive(tmp_path: Path) -> None:
    (tmp_path / "cwd").mkdir()
    root = tmp_path / "mlruns"
    (tmp_path / "first.py").write_text(FIRST_RUN)
    processes = [
        Forked(
            *(tmp_path / "first.py", str(root), str(tmp_path / f"out{n}")),
            cwd=tmp_path / "cwd",
            env=dict(os.environ),
        )
        for n in range(8)
    ]
    while len(list(tmp_path.glob("*.ready"))) < 8:  # all at once, now that all are there
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, errors
    store = open_store(root)
    runs = store.call("search_runs", [store.experiment_id("first")])
    assert [run.info.status for run in runs] == ["FINISHED"] * 8
    for run in runs:
        history = store.client().get_metric_history(run.info.run_id, "loss")
        assert [m.step for m in history] == list(range(300))
        assert (root / "artifacts" / run.info.run_id / "artifacts" / "f.txt").exists()
    assert not list((tmp_path / "cwd").iterdir())
    assert not list(store.lock_dir.iterdir())


class Killed(BaseException):
    """Stands for a SIGKILL in the middle."""


def test_a_process_that_is_killed_while_it_makes_the_database_leaves_none(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.db import utils

    def killed(engine: Any) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE experiments (half INTEGER)")
        raise Killed

    store = open_store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", killed)
        patch.setattr(database, "_remove_unfinished", lambda path: None)  # a killed process removes nothing
        with pytest.raises(Killed):
            store.client()
    assert not (tmp_path / "mlflow.db").exists()
    assert list(tmp_path.glob(".mlflow.db.*.making"))
    # a complete database, without the seconds that creating it takes
    monkeypatch.setattr(utils, "_initialize_tables", lambda engine: shutil.copyfile(empty_store, engine.url.database))
    assert store.experiment_id("x") == store.experiment_id("x")
    assert not list(tmp_path.glob(".mlflow.db*"))


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ("DROP TABLE metrics; DELETE FROM alembic_version", "damaged, or was left half-made"),
        ("UPDATE alembic_version SET version_num = '0123'", r"a newer MLflow.* -m pip install --upgrade mlflow"),
        (None, "damaged, or was left half-made"),
    ],
)
def test_a_database_that_no_second_try_opens_is_an_error_with_its_remedy(
    tmp_path: Path, empty_store: Path, change: str | None, remedy: str
) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copyfile(empty_store, path)
    if change is None:
        path.write_bytes(b"no database" * 1000)
    else:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.executescript(change)
    with pytest.raises(TrackingError, match=remedy):
        open_store(tmp_path).client()


@pytest.mark.parametrize(
    "text",
    [
        "(sqlite3.OperationalError) attempt to write a readonly database",
        "cannot execute INSERT in a read-only transaction",
    ],
)
def test_a_store_that_can_only_be_read_is_an_error_before_training(text: str) -> None:
    assert isinstance(translate_error(RuntimeError(text), "sqlite:////x/mlflow.db"), TrackingError)


def test_a_store_of_another_user_is_read_and_refuses_a_run(store: Store, foreign: Foreign, tmp_path: Path) -> None:
    store.call("create_run", store.experiment_id("x"))  # and what MLflow imports late is imported
    with foreign(store.root) as root:
        theirs = open_store(root)
        before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
        reading = theirs.for_reading()
        assert reading.reads_only
        assert set(experiments(reading)) == {"Default", "x"}
        with pytest.raises(TrackingError, match="cannot be written to"):
            reading.call("create_experiment", "y")
        with pytest.raises(TrackingError, match=r"cannot be written to\. Give another tracking\.root"):
            theirs.client()
        assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before
    assert not store.for_reading().reads_only


def test_what_cannot_be_read_is_said_and_nothing_is_made(tmp_path: Path, foreign: Foreign, store: Store) -> None:
    with pytest.raises(TrackingError, match=r"there is no store .*/typo/mlflow\.db\. Train first, or give the folder"):
        open_store(tmp_path / "typo").for_reading()
    assert not (tmp_path / "typo").exists()
    with (
        foreign(store.root, "mlflow.db") as root,
        pytest.raises(TrackingError, match=r"mlflow\.db: Permission denied\. Give the right"),
    ):
        open_store(root).for_reading()
    damaged = shutil.copytree(store.root, tmp_path / "damaged")
    (damaged / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(TrackingError, match=f"file is not a database. Copy the folder {damaged}, and give the copy"):
        replace(open_store(damaged), reads_only=True).client()


def test_an_older_database_is_upgraded_only_when_asked_with_a_copy_kept(tmp_path: Path) -> None:
    from alembic import command
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    store = open_store(tmp_path / "my store")
    (tmp_path / "my store").mkdir()
    engine = utils.create_sqlalchemy_engine(store.uri)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        config = utils._get_alembic_config(store.uri)
        config.attributes["connection"] = connection
        command.upgrade(config, "0584bdc529eb")
    engine.dispose()
    before = (tmp_path / "my store" / "mlflow.db").read_bytes()
    with pytest.raises(TrackingError, match="it was made by an older MLflow") as caught:
        store.client()
    assert (tmp_path / "my store" / "mlflow.db").read_bytes() == before
    *_, script, root, place, flag = in_bash(str(caught.value).partition(", run ")[2])
    assert (Path(script).name, root, place, flag) == ("ui.py", "--root", str(store.root), "--upgrade-store")
    with pytest.raises(TrackingError, match=f"Copy the folder {store.root}, and upgrade the copy: .* --upgrade-store"):
        replace(store, reads_only=True).client()
    with closing(sqlite3.connect(store.upgrade())) as copy:
        assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [("0584bdc529eb",)]
    assert store.experiment_id("new") == "1"


def test_a_path_that_is_too_long_for_sqlite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="SQLite needs a path of at most 500 characters"):
        open_store(tmp_path.joinpath(*["d" * 200] * 4)).client()


def test_a_database_that_moved_knows_where_its_files_are(store: Store, tmp_path: Path) -> None:
    experiment = store.experiment_id("e")
    run_id = store.call("create_run", experiment).info.run_id
    elsewhere = store.call("create_experiment", "theirs", artifact_location="file:///theirs")
    shutil.copytree(store.root, tmp_path / "a b")
    there = open_store(tmp_path / "a b")
    place = (tmp_path / "a b" / "artifacts").as_uri()
    assert there.run(run_id).info.artifact_uri == f"{place}/{run_id}/artifacts"
    assert there.call("get_experiment", experiment).artifact_location == place
    assert there.call("get_experiment", elsewhere).artifact_location == "file:///theirs"
    assert store.run(run_id).info.artifact_uri.startswith(store.artifact_root.as_uri())
    assert not list(tmp_path.glob("*%20*"))


def test_a_store_is_known_to_be_ready_without_mlflow(make_store: Callable[[str], Store]) -> None:
    store = make_store("ready")
    assert not store.is_ready("x")  # nobody has opened it here
    key = store.experiment_id("x")
    assert store.is_ready("x")
    assert not store.is_ready("another")  # which is to be created
    store.call("delete_experiment", key)
    assert not store.is_ready("x")
    store.call("restore_experiment", key)
    stamp = store.root / ".opened"
    text = stamp.read_text()
    stamp.write_text("another version of MLflow")
    assert not store.is_ready("x")
    stamp.write_text(text)
    assert store.is_ready("x")
    Path(store.uri.removeprefix("sqlite:///")).write_bytes(b"damaged")
    assert not store.is_ready("x")
    assert not open_store(store.root, "http://127.0.0.1:1").is_ready("x")
