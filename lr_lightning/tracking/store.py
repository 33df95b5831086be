"""The MLflow store: its address, its creation, and the meaning of its errors. MLflow's import is late: it is slow."""

import errno
import logging
import os
import re
import socket
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock

from lr_lightning._commands import python_command, shell_quote
from lr_lightning.errors import NotInStore, Rejected, StoreUnavailable, TrackingError
from lr_lightning.tracking.files import moved, write_atomically
from lr_lightning.tracking.keys import hide_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SERVER_SCHEMES = ("http", "https", "databricks")
_DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")
_DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_CONNECT_SECONDS = 3.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MADE_BY_A_RUN = 3  # folders below the root of the artifacts: experiment, run, `artifacts`
_USER, _PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
_ACCESS = ("TOKEN", "AUTH", "AWS_SIGV4", "INSECURE_TLS", "SERVER_CERT_PATH", "CLIENT_CERT_PATH")
ACCESS_VARIABLES = [_USER, *(f"MLFLOW_TRACKING_{name}" for name in _ACCESS), "MLFLOW_WORKSPACE"]
"""Variables with which MLflow's client asks a server."""

# Defaults for variables that the user has not set: no telemetry, and a dead server costs seconds instead of 4 minutes.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# These loggers print a page at every retry or at the first start. The uploader says once what matters.
_NOISY_LOGGERS = {
    "alembic": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,
    "mlflow.store.db_migrations": logging.WARNING,
    "urllib3.connectionpool": logging.ERROR,
}

# Error codes of MLflow, and words in the errors of the libraries below it.
_UNKNOWN_USER_CODES = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
_REFUSED_REQUESTS, _REJECTED_REQUESTS = (401, 403, 404, 405, 501), (400, 413)  # every artifact, or this one
_READ_ONLY = ("readonly database", "read-only transaction", "Read-only file system")
# What to do about a database that gives an error with these words, and that no second try will open.
_DATABASE_REMEDIES = {
    r"already exists|duplicate column|disk image is malformed|file is not a database": (
        ": it is damaged, or was left half-made. Move it away, or give another tracking.root."
    ),
    r"unable to open database file": (
        ": SQLite needs a path of at most 500 characters, in a folder that this user may write to. Give another "
        "tracking.root."
    ),
    r"password authentication failed|no password supplied|[Aa]ccess denied for user|Login failed for user"
    r"|(database|role) \"[^\"]*\" does not exist|Unknown database": (
        ". Give the database's name, user and password in the address, user:password@host/database."
    ),
}

log = logging.getLogger(__name__)

_OTHER_SCHEMA = re.compile(r"found version (\w+), but expected|Can't locate revision identified by '(\w+)'")

_clients: dict[str, "MlflowClient"] = {}
_clients_lock = threading.Lock()


def prepare_mlflow() -> None:
    """Switch off MLflow's telemetry, long timeouts and chatter. Call this before the first import of MLflow."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name, level in _NOISY_LOGGERS.items():
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET or name == "mlflow.store.db.utils":
            logger.setLevel(level)


def translate_error(error: BaseException, uri: str) -> Exception:
    """Translate an error that MLflow, or a library below it, raised for the store at ``uri``.

    It becomes a TrackingError if trying again cannot help, Rejected if the content of the call was rejected, else
    StoreUnavailable.
    """
    where = hide_password(uri)
    if isinstance(error, (TrackingError, Rejected, StoreUnavailable)):
        return error
    if isinstance(error, ImportError):
        return TrackingError(f"tracking store {where} needs a package that is not installed: {error}")
    reason = hide_password(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    code = getattr(error, "error_code", None)
    if code == "RESOURCE_DOES_NOT_EXIST":
        return NotInStore(f"tracking store {where}: {reason}")
    if code in ("PERMISSION_DENIED", *_UNKNOWN_USER_CODES):
        return TrackingError(f"tracking store {where}: {_access_remedy(code, reason) or reason}")
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return TrackingError(f"{error.filename}: {error.strerror}. Give the right to write there, or another place.")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _REFUSED_REQUESTS:
        return TrackingError(f"tracking store {where}: {reason}")
    if status in _REJECTED_REQUESTS:
        return Rejected(reason)
    if any(words in reason for words in _READ_ONLY):
        return TrackingError(
            f"tracking store {where} cannot be written to. Give another tracking.root, or the right to write."
        )
    if code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
        return Rejected(reason)
    return StoreUnavailable(f"{where}: {reason}")


def _access_remedy(code: str, reason: str) -> str | None:
    """Say why a server refuses access, and the remedy; None if the server's own words say it best."""
    user = os.environ.get(_USER)
    if "Invalid Host header" in reason:  # the code is the same as for missing permissions
        return (
            "the server does not accept this host name. Start it with --allowed-hosts that includes this host (with "
            "its port, if the address has one); a proxy before it must pass the Host header on."
        )
    if code in _UNKNOWN_USER_CODES:
        who = f"it does not know the user {user!r} with this password" if user else "it asks for a user and a password"
        return f"{who}. Set {_USER} and {_PASSWORD}."
    if "ermission denied" in reason:
        who = f"the user {user!r}" if user else "this user"
        return (
            f"{who} may not do this. Ask the server's administrator for the permission (EDIT, to write into an "
            "experiment of others), or give tracking.experiment=NAME, a new one."
        )
    return None


def _database_remedy(said: str) -> str | None:
    return next((remedy for words, remedy in _DATABASE_REMEDIES.items() if re.search(words, said)), None)


@dataclass(frozen=True)
class Store:
    """An MLflow tracking store. It only holds addresses: nothing is opened before the first call."""

    uri: str  # absolute
    root: Path  # local folder for locks, and for the database and artifacts of the default store
    artifact_root: Path | None  # None if a server decides
    reads_only: bool = False  # the database is not made, locked or corrected

    def for_reading(self) -> "Store":
        """Return the store for reading: a database file that this user may not write to is only read.

        Raises:
            TrackingError: There is no such file, or this user may not read it.
        """
        if (file := self.file) is None:
            return self
        try:
            file.open("rb").close()
        except FileNotFoundError:
            raise NotInStore(f"there is no store {file}. Train first, or give the folder of another one.") from None
        except OSError as error:
            raise TrackingError(f"{file}: {error.strerror}. Give the right to read it, or another store.") from None
        places = (file, file.parent, *([self.root] if os.path.exists(self.root) else []))
        return self if all(os.access(place, os.W_OK) for place in places) else replace(self, reads_only=True)

    def moved(self, before: Path | str, now: Path) -> "Store":
        """Return the store where it is now if it moved together with the folder ``before``, which is now ``now``."""
        file = self.file
        if file is None or (there := moved(file, before, now)) == file:
            return self
        return open_store(moved(self.root, before, now), _sqlite_uri(there))

    @property
    def is_lost(self) -> bool:
        """Whether the store was a database file that is not there any more. Opening it would make an empty one."""
        try:
            return self.file is not None and not self.file.exists()
        except OSError:  # in a folder that this user may not enter
            return False

    def is_held_by(self, uri: str) -> bool:
        """Tell whether a lock that names ``uri`` belongs to this store. The store may have moved since."""
        file = self.file
        is_inside = file is not None and file.parent == self.root
        return uri == self.public_uri or bool(is_inside and file and unquote(uri).endswith(f"/{file.name}"))

    @property
    def lock_dir(self) -> Path:
        """Folder of the locks of live runs."""
        return self.root / "locks"

    @property
    def public_uri(self) -> str:
        """The URI without its password."""
        return hide_password(self.uri)

    @property
    def is_local(self) -> bool:
        """Whether the store is a database file on this machine."""
        return self.file is not None

    @property
    def file(self) -> Path | None:
        """The database file on this machine; None if the store is on a server."""
        prefix = "sqlite:///"
        return Path(unquote(self.uri.removeprefix(prefix))) if self.uri.startswith(prefix) else None

    @property
    def _artifact_uri(self) -> str | None:
        return self.artifact_root.as_uri() if self.artifact_root else None

    def _mlflow(self, command: str, name: str) -> str:
        return f"MLFLOW_TRACKING_URI={shell_quote(self.public_uri)} mlflow {command} {shell_quote(name)}"

    @property
    def opened_before(self) -> bool:
        """Whether this version of MLflow has opened this file before, at this path: its tables need no other check."""
        try:
            return self.file is not None and self._stamp.read_text(encoding="utf-8") == _opened_by(self.file)
        except (OSError, ValueError, sqlite3.Error):
            return False

    def is_ready(self, experiment: str) -> bool:
        """Tell, without MLflow, whether this MLflow has opened this local store before, and the experiment is there."""
        file = self.file
        if file is None or not self.opened_before or not all(os.access(p, os.W_OK) for p in (file, file.parent)):
            return False
        try:
            with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as database:
                found = database.execute("SELECT lifecycle_stage FROM experiments WHERE name = ?", (experiment,))
                return bool(found.fetchall() == [("active",)])
        except (OSError, ValueError, sqlite3.Error):
            return False

    @property
    def _stamp(self) -> Path:
        return self.root / ".opened"

    def client(self) -> "MlflowClient":
        """Open the store. If its database does not exist, create it first, one process at a time."""
        key = f"{self.uri} as it is" if self.reads_only else self.uri
        with _clients_lock:
            if key not in _clients:
                prepare_mlflow()
                if not self.reads_only:
                    self._check_reachable()
                try:
                    _clients[key] = self._connect()
                except Exception as error:  # drivers raise errors of many types
                    problem = translate_error(error, self.uri)
                    said = str(problem).removesuffix(".")
                    if found := _OTHER_SCHEMA.search(said):
                        problem = self._other_version(found[1] or found[2])
                    elif self.reads_only and not isinstance(error, TrackingError):
                        reason = str(error).strip().splitlines()[0]
                        copy = f"Copy the folder {self.root}, and give the copy with --root."
                        problem = TrackingError(f"tracking store {self.public_uri}: {reason}. {copy}")
                    elif isinstance(problem, Rejected):
                        problem = TrackingError(f"tracking.uri: {self.public_uri}: {problem}")
                    elif (remedy := _database_remedy(said)) is not None:
                        problem = TrackingError(f"tracking store {said}{remedy}")
                    raise problem from None
            return _clients[key]

    def _connect(self) -> "MlflowClient":
        from mlflow import MlflowClient

        artifact_uri, file = self._artifact_uri, self.file
        if artifact_uri is None:
            return MlflowClient(self.uri)
        if file is not None and not self.reads_only:
            _create_database(file, artifact_uri)
        # MLflow's own first start is not safe against a second process: without the lock one of them dies, or leaves
        # a half-made database. The file's existence proves nothing, so every start takes its turn.
        with nullcontext() if self.reads_only else FileLock(self.root / ".init.lock"):
            if (revision := _incomplete_schema(self.uri)) is not None:
                raise self._other_version(revision)
            # Places MLflow's "Default" experiment here; otherwise it would be below the working directory.
            database = _open_database(self.uri, artifact_uri)
            if file is not None and not self.reads_only:
                if file.parent == self.root:
                    _follow_move(database.engine, artifact_uri)
                with suppress(OSError, sqlite3.Error):
                    write_atomically(self._stamp, _opened_by(file))
            return MlflowClient(self.uri)

    def _other_version(self, revision: str) -> TrackingError:
        """Return the error of a database with the schema of another MLflow, older or newer than this one."""
        from alembic.script import ScriptDirectory
        from mlflow.store.db.utils import _get_alembic_config

        configured: Callable[..., Any] = _get_alembic_config
        known = {script.revision for script in ScriptDirectory.from_config(configured(self.uri)).walk_revisions()}
        place = f"tracking store {self.public_uri}: it was made by"
        if revision not in known:
            return TrackingError(
                f"{place} a newer MLflow than this environment's. Run {shell_quote(sys.executable)} -m pip install "
                "--upgrade mlflow, or give another tracking.root."
            )
        if self.file is None:
            upgrade = f"{shell_quote(sys.executable)} -m mlflow db upgrade {shell_quote(self.public_uri)}"
            return TrackingError(f"{place} an older MLflow. Copy the database, then run {upgrade}")
        if self.reads_only:
            upgrade = python_command("ui.py", "--root", "COPY", "--upgrade-store")
            return TrackingError(
                f"{place} an older MLflow. Copy the folder {self.root}, and upgrade the copy: {upgrade}"
            )
        own = ["--root", str(self.root)] + ([] if self.file.parent == self.root else ["--uri", self.uri])
        upgrade = python_command("ui.py", *own, "--upgrade-store")
        return TrackingError(f"{place} an older MLflow. To upgrade it, with a copy of it kept, run {upgrade}")

    def upgrade(self) -> Path:
        """Upgrade a database file to this MLflow's schema, and return the copy that is kept of it.

        Raises:
            TrackingError: There is no such file, or the database is on a server, whose administrator upgrades it.
        """
        prepare_mlflow()
        from mlflow.store.db import utils

        file = self.file
        if file is None or not file.is_file():
            raise TrackingError(f"--upgrade-store: {self.public_uri} is no database file. Upgrade it where it is kept.")
        copy = file.with_name(f"{file.stem}-{time.strftime('%Y%m%d-%H%M%S')}-before-upgrade{file.suffix}")
        upgrade: Callable[..., Any] = utils._upgrade_db
        create_engine: Callable[..., Any] = utils.create_sqlalchemy_engine
        with FileLock(self.root / ".init.lock"):
            with closing(sqlite3.connect(file)) as old, closing(sqlite3.connect(copy)) as new:
                old.backup(new)
            engine = create_engine(self.uri)
            try:
                upgrade(engine)
            finally:
                engine.dispose()
        return copy

    def _check_reachable(self) -> None:
        """Make local folders, and test the port: MLflow retries a dead database for minutes and prints pages."""
        if self.artifact_root is not None:
            _make_folder(self.root)
        if self.file is not None:
            _make_folder(self.file.parent)
        parts = urlsplit(self.uri)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme.split("+")[0])
        if not parts.hostname or port is None:
            return
        try:
            socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            raise StoreUnavailable(f"{self.public_uri}: {error.strerror or error}") from None

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call ``MlflowClient.<method>`` and translate its errors (see :func:`translate_error`)."""
        client = self.client()
        try:
            return getattr(client, method)(*args, **kwargs)
        except Exception as error:  # requests, sqlalchemy, drivers and MLflow all raise their own
            raise translate_error(error, self.uri) from None

    def experiment_id(self, name: str) -> str:
        """Return the id of experiment ``name``. If there is none, create it, with a fixed place for its artifacts."""
        experiment = self.call("get_experiment_by_name", name)
        if experiment is None:
            try:
                return str(self.call("create_experiment", name, artifact_location=self._artifact_uri))
            except (Rejected, StoreUnavailable, TrackingError) as error:
                # Another process may have created it in the same moment. If not, the first error counts.
                experiment = self.call("get_experiment_by_name", name)
                if experiment is None:
                    raise TrackingError(f"experiment {name!r} could not be created: {error}") from None
        if experiment.lifecycle_stage == "deleted":
            raise TrackingError(
                f"experiment {name!r} of {self.public_uri} was deleted. Restore it "
                f"({self._mlflow('experiments restore -x', experiment.experiment_id)}), "
                "or use another name."
            )
        return str(experiment.experiment_id)

    def run(self, run_id: str) -> Any:
        """Return MLflow's ``Run`` of that id, with its tags, params and status; raise NotInStore if there is none."""
        try:
            run = self.call("get_run", run_id)
        except (NotInStore, Rejected):
            raise NotInStore(f"there is no run {run_id!r} in {self.public_uri}") from None
        if run.info.lifecycle_stage == "deleted":
            raise TrackingError(
                f"run {run_id!r} of {self.public_uri} was deleted. Restore it: "
                f"{self._mlflow('runs restore --run-id', run_id)}"
            )
        return run

    def check_artifacts(self, run_id: str) -> None:
        """Raise a TrackingError if a run's artifacts go to a folder that this process must not make or write to.

        A server without an artifact proxy names a folder of the server's machine. Made here, it would be the wrong one.
        """
        uri = urlsplit(str(self.run(run_id).info.artifact_uri))
        if uri.scheme not in ("", "file"):
            return
        folder = Path(unquote(uri.path))
        found = next(path for path in (folder, *folder.parents) if path.exists())
        depth = _MADE_BY_A_RUN + (urlsplit(self.uri).hostname in _LOOPBACK)  # here a server may not have made its root
        if self.artifact_root is None and len(folder.relative_to(found).parts) > depth:
            raise TrackingError(
                f"{self.public_uri} keeps files in {folder}, a folder of the server's machine, out of reach from here. "
                "Start the server with --artifacts-destination in place of --default-artifact-root"
            )
        if not found.is_dir() or not os.access(found, os.W_OK | os.X_OK):
            raise TrackingError(f"{found}: cannot be written to by this user. Give it the right to write there")

    def end_if_running(self, run_id: str, status: str) -> bool:
        """Set ``status`` and an end time if the run exists and says RUNNING; return whether it did."""
        try:
            if self.run(run_id).info.status != "RUNNING":
                return False
            self.call("set_terminated", run_id, status, int(time.time() * 1000))
        except (TrackingError, Rejected):
            return False
        return True


def open_store(root: Path | str, uri: str | None = None) -> Store:
    """Return the store at ``uri``, or the default one: ``<root>/mlflow.db`` with ``<root>/artifacts``.

    Nothing is opened before the first call.

    Args:
        root: Local folder. It is made absolute, so that the working directory never matters.
        uri: ``http(s)://`` for a server, or ``postgresql://`` (or another database) to write to it directly. A relative
            ``sqlite:///file.db`` is made absolute. None for the default.

    Raises:
        TrackingError: MLflow has no store for such a ``uri``.
    """
    try:
        root = Path(root).expanduser().absolute()
    except RuntimeError:
        raise TrackingError(f"tracking.root: {root} needs HOME, which is not set. Give the whole path.") from None
    artifacts = root / "artifacts"
    if uri is None:
        return Store(_sqlite_uri(root / "mlflow.db"), root, artifacts)
    scheme = uri.split(":", 1)[0].split("+")[0]
    if scheme in _SERVER_SCHEMES:
        return Store(uri.rstrip("/"), root, None)
    if scheme not in _DATABASE_SCHEMES or "://" not in uri:
        raise TrackingError(
            f"tracking.uri: {hide_password(uri)!r} is no address of a store. Give http://host:port, "
            "postgresql://user@host/database or sqlite:///file.db, or leave it out for the default store."
        )
    if scheme == "sqlite":
        path = Path(unquote(uri.split("://", 1)[1].removeprefix("/"))).absolute()
        return Store(_sqlite_uri(path), root, artifacts)
    return Store(uri, root, artifacts)


def _sqlite_uri(path: Path) -> str:
    # Only what would end the path is quoted: MLflow makes a folder of exactly this name.
    return f"sqlite:///{re.sub('[%?#]', lambda found: quote(found[0]), str(path))}"


def _opened_by(file: Path) -> str:
    """Return the version of MLflow that is installed, and the version of the tables in a database file."""
    with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as database:
        tables = database.execute("SELECT version_num FROM alembic_version").fetchall()
    return f"{file} {version('mlflow')} {tables}\n"


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(f"{path}: cannot be made ({error.strerror}). Give another folder.") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise TrackingError(f"{path}: cannot be written to. Give another tracking.root, or the right to write.")


def _open_database(uri: str, artifact_uri: str) -> Any:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    open_database: Callable[..., Any] = SqlAlchemyStore
    return open_database(uri, artifact_uri)


def _follow_move(engine: Any, artifact_uri: str) -> None:
    """Correct the places of artifacts in a database that moved with its folder: MLflow stores absolute ones.

    The experiment that MLflow makes in every database tells where its artifacts were.
    """
    import sqlalchemy as sql

    with engine.begin() as connection:
        first = sql.text("SELECT artifact_location FROM experiments WHERE experiment_id = 0")
        before, slash, number = str(connection.execute(first).scalar()).rpartition("/")
        if before == artifact_uri or (slash, number) != ("/", "0") or not before.endswith("/artifacts"):
            return
        columns = {"experiments": "artifact_location", "runs": "artifact_uri", "logged_models": "artifact_location"}
        for table, column in columns.items():
            if sql.inspect(connection).has_table(table):
                moved_rows = sql.text(
                    f"UPDATE {table} SET {column} = :now || substr({column}, length(:before) + 1) "
                    f"WHERE {column} = :before OR substr({column}, 1, length(:before) + 1) = :before || '/'"
                )
                connection.execute(moved_rows, {"before": before, "now": artifact_uri})
        with suppress(ImportError, AttributeError):  # where this process wrote files before the move
            from mlflow.tracking._tracking_service import utils

            utils._artifact_repos_cache.clear()
        log.warning("the store moved here from %s: the places of its artifacts were corrected", unquote(before))


def _create_database(path: Path, artifact_uri: str) -> None:
    """Create MLflow's database at ``path`` if there is none, or an empty file.

    This takes seconds and many transactions, and a process that is killed in between leaves a file that no MLflow opens
    again. So the file is created under another name and renamed when it is complete.
    """
    with FileLock(path.with_name(".init.lock")):
        if path.exists() and path.stat().st_size > 0:
            return
        _remove_unfinished(path)
        # A unique name: MLflow keeps a connection to each file that this process has opened, even if it was removed.
        unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.making")
        try:
            _open_database(_sqlite_uri(unfinished), artifact_uri).engine.dispose()
            unfinished.replace(path)
        finally:
            _remove_unfinished(path)


def _remove_unfinished(path: Path) -> None:
    """Remove what a killed process has left: the unfinished database, and SQLite's journal of it."""
    for file in path.parent.iterdir():
        if file.name.startswith(f".{path.name}.") and ".making" in file.name:
            file.unlink(missing_ok=True)


def _incomplete_schema(uri: str) -> str | None:
    """Return the revision of a database that lacks tables; None for a new one, and one that has them all.

    MLflow would upgrade it without asking. It would also try a wrong password for minutes: that raises here.
    """
    import sqlalchemy as sql
    from mlflow.store.db.utils import _all_tables_exist, create_sqlalchemy_engine

    create_engine: Callable[..., Any] = create_sqlalchemy_engine
    is_complete: Callable[..., bool] = _all_tables_exist
    engine = create_engine(uri)
    try:
        with engine.connect() as connection:
            if not sql.inspect(connection).has_table("alembic_version") or is_complete(engine):
                return None
            revision: str | None = connection.execute(sql.text("SELECT version_num FROM alembic_version")).scalar()
            return revision
    except sql.exc.SQLAlchemyError as error:
        if _database_remedy(str(error)) is not None:
            raise
        return None
    finally:
        engine.dispose()
