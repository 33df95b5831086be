"""Optuna's storage: opening it, and one clear error where that does not work."""

import functools
import hashlib
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import optuna
from filelock import FileLock
from sqlalchemy.exc import SQLAlchemyError

from lr_lightning.errors import ConfigError
from lr_lightning.tracking.keys import hide_password

__all__ = ["HEARTBEAT", "SILENCE", "StorageGone", "connect", "lock_of", "patient"]

HEARTBEAT = 15
"""Seconds between the signs of life of a trial's worker."""
SILENCE = 60
"""Seconds without one after which a worker is taken for dead."""

_LOCK_SECONDS = 120.0
_OUTAGE_SECONDS = 300.0

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", message=".*Heartbeat of storage is supposed to be used with Study.optimize.*")
for _name in ("alembic", "sqlalchemy.pool"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

OnStale = Callable[[optuna.Study, optuna.trial.FrozenTrial], None]


def connect(url: str, on_stale: OnStale | None = None) -> optuna.storages.RDBStorage:
    """Open a storage; its tables are made where there are none.

    Args:
        url: An address of SQLAlchemy's.
        on_stale: What is done about a trial whose worker has gone silent.

    Raises:
        ConfigError: It cannot be reached or used.
    """
    where = hide_password(url)
    sqlite = url.startswith("sqlite")
    try:
        with lock_of(url):
            return _opened(url, on_stale, sqlite)
    except ImportError as e:
        remedy = " (pip install 'lr-lightning[postgres]')" if url.startswith("postgres") else ""
        raise ConfigError(f"storage: {where} needs a package that is not installed{remedy}: {e}.") from e
    except (SQLAlchemyError, optuna.exceptions.OptunaError, OSError, ValueError, RuntimeError) as e:
        cause = e.__cause__ or e
        reason = hide_password(str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__)
        raise ConfigError(
            f"storage: {where} cannot be opened ({reason}). Is the server up, and the database made? "
            "Leave storage out for a file of this machine."
        ) from e


def _opened(url: str, on_stale: OnStale | None, sqlite: bool) -> optuna.storages.RDBStorage:
    engine: dict[str, Any] = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
    if url.startswith("postgresql"):
        engine["connect_args"] = {"connect_timeout": 10}
    attempts = 5
    for attempt in range(1, attempts + 1):
        try:
            return optuna.storages.RDBStorage(
                url,
                engine_kwargs=engine,
                heartbeat_interval=HEARTBEAT,
                grace_period=SILENCE,
                heartbeat_stale_trial_callback=on_stale,
            )
        except SQLAlchemyError as e:
            # Several workers that make the tables at once: all but one of them fail, and find them the next time.
            if attempt == attempts or ("already exists" not in str(e) and "duplicate key" not in str(e)):
                raise
            time.sleep(0.2 * attempt)
    raise RuntimeError("unreachable")


class StorageGone(RuntimeError):
    """The storage has not answered for minutes."""


def patient(call: Callable[P, R]) -> Callable[P, R]:
    """A call that is tried again while the storage does not answer, for some minutes.

    Raises:
        StorageGone: It still does not.
    """

    @functools.wraps(call)
    def trying(*args: P.args, **kwargs: P.kwargs) -> R:
        until, wait = time.monotonic() + _OUTAGE_SECONDS, 0.5
        while True:
            try:
                return call(*args, **kwargs)
            except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as e:
                cause = e.__cause__ or e
                reason = hide_password(str(cause).strip().splitlines()[0])
                if time.monotonic() > until:
                    raise StorageGone(f"storage: does not answer any more ({reason})") from e
                log.warning("the storage does not answer (%s); trying again", reason)
                time.sleep(wait)
                wait = min(10.0, 2 * wait)

    return trying


def lock_of(url: str) -> FileLock:
    """A lock among the processes of this machine: SQLite lets two of them take the same trial."""
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///")).absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as e:
            raise ConfigError(
                f"storage: no database can be made in {path.parent} ({e.strerror}). Give another place."
            ) from e
        return FileLock(f"{path}.lock", timeout=_LOCK_SECONDS)
    mark = hashlib.sha256(hide_password(url).encode()).hexdigest()[:12]
    return FileLock(
        Path(tempfile.gettempdir()) / f"lr_lightning-search-{os.getuid()}-{mark}.lock", timeout=_LOCK_SECONDS
    )
