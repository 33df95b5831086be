"""MLflow's database: a file is made whole or not at all, by one process at a time; a server's must let one in."""

import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

_BROKEN = ("already exists", "duplicate column", "disk image is malformed", "file is not a database")
_OTHER_VERSION = ("out-of-date database schema", "Can't locate revision")
_NO_ENTRY = re.compile(
    r"password authentication failed|no password supplied|[Aa]ccess denied for user|Login failed for user"
    r"|(database|role) \"[^\"]*\" does not exist|Unknown database"
)


def permanent_problem(said: str) -> str | None:
    """What is wrong with a database that no second try will open, and what to do; None where one may.

    Args:
        said: What MLflow or a library below it has said when it was to open the database.
    """
    said = said.removesuffix(".")
    if any(words in said for words in _BROKEN):
        return f"{said}: it is damaged, or was left half-made. Move it away, or give another tracking.root."
    if any(words in said for words in _OTHER_VERSION):
        return (
            f"{said}: it was made by another version of MLflow. Copy the database, then run `mlflow db upgrade` with "
            "its address; or give another tracking.root."
        )
    if _NO_ENTRY.search(said):
        return f"{said}. Give the database's name, user and password in the address, user:password@host/database."
    return None


def check_entry(uri: str) -> None:
    """Connect once to a database's server, which MLflow would try for minutes although the password stays wrong.

    Args:
        uri: The database.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: It lets nobody in. What may pass is left to MLflow's own tries.
    """
    from mlflow.store.db.utils import create_sqlalchemy_engine
    from sqlalchemy.exc import SQLAlchemyError

    make_engine: Callable[..., Any] = create_sqlalchemy_engine
    engine = make_engine(uri)
    try:
        engine.connect().close()
    except SQLAlchemyError as error:
        if permanent_problem(str(error)) is not None:
            raise
    finally:
        engine.dispose()


def make_database(path: Path, artifact_uri: str, uri_of: Callable[[Path], str]) -> None:
    """Make MLflow's database at ``path`` where there is none, or an empty file.

    Making it takes seconds and many transactions: a process that is killed in between leaves a file that no MLflow
    opens again. So it gets its name when it is whole.

    Args:
        path: The file.
        artifact_uri: Where MLflow's own "Default" experiment keeps its artifacts.
        uri_of: Gives the URI of a database file.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with FileLock(path.with_name(".init.lock")):
        if path.exists() and path.stat().st_size > 0:
            return
        _remove_unfinished(path)
        # A name of its own: MLflow keeps a connection to each file that this process has opened, a removed one too.
        making = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.making")
        try:
            open_database: Callable[..., Any] = SqlAlchemyStore
            open_database(uri_of(making), artifact_uri).engine.dispose()
            making.replace(path)
        finally:
            _remove_unfinished(path)


def _remove_unfinished(path: Path) -> None:
    for file in _unfinished(path):
        file.unlink(missing_ok=True)


def _unfinished(path: Path) -> Iterator[Path]:
    """What a killed process has left: the file, and SQLite's journal of it."""
    return (file for file in path.parent.iterdir() if file.name.startswith(f".{path.name}.") and ".making" in file.name)
