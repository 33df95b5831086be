"""Optuna's storage: opening it, its heartbeat, and patience while it does not answer."""

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
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from lr_lightning.errors import ConfigError
from lr_lightning.tracking.keys import hide_password

__all__ = ["HEARTBEAT", "SILENCE", "StorageGone", "connect", "lock_of", "patient"]

HEARTBEAT = 15
"""Seconds between two heartbeats of a running trial."""
SILENCE = 60
"""Seconds without a heartbeat after which a trial's machine is taken for dead."""

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


class StorageGone(RuntimeError):
    """The storage has not answered for minutes."""


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines()
    return hide_password(lines[0] if lines else type(cause).__name__)


def patient(call: Callable[P, R]) -> Callable[P, R]:
    """Try a call again for some minutes while the storage does not answer.

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
                if time.monotonic() > until:
                    raise StorageGone(f"storage: does not answer any more ({_reason(e)})") from e
                log.warning("the storage does not answer (%s); trying again", _reason(e))
                time.sleep(wait)
                wait = min(10.0, 2 * wait)

    return trying


def connect(
    url: str, lock: FileLock, on_stale: Callable[[optuna.Study, FrozenTrial], None]
) -> optuna.storages.RDBStorage:
    """Open a storage, and make its tables if it has none.

    Args:
        url: An SQLAlchemy URL.
        lock: Held meanwhile.
        on_stale: Called by Optuna for a trial that it failed for want of heartbeats.

    Raises:
        ConfigError: The storage cannot be reached or used.
    """
    where = hide_password(url)
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        engine = {"connect_args": {"timeout": 60}}
    elif url.startswith("postgresql"):
        engine["connect_args"] = {"connect_timeout": 10}
    attempts = 5
    try:
        for attempt in range(1, attempts + 1):
            try:
                with lock:
                    return optuna.storages.RDBStorage(
                        url,
                        engine_kwargs=engine,
                        heartbeat_interval=HEARTBEAT,
                        grace_period=SILENCE,
                        heartbeat_stale_trial_callback=on_stale,
                    )
            except SQLAlchemyError as e:
                # When several machines make the tables at once, all but one fail, and find them the next time.
                if attempt == attempts or ("already exists" not in str(e) and "duplicate key" not in str(e)):
                    raise
                time.sleep(0.2 * attempt)
    except ImportError as e:
        remedy = " (pip install 'lr-lightning[postgres]')" if url.startswith("postgres") else ""
        raise ConfigError(f"storage: {where} needs a package that is not installed{remedy}: {e}.") from e
    except (SQLAlchemyError, optuna.exceptions.OptunaError, OSError, ValueError, RuntimeError) as e:
        raise ConfigError(
            f"storage: {where} cannot be opened ({_reason(e)}). Is the server up, and the database made? "
            "Leave storage out to use a file on this machine."
        ) from e
    raise AssertionError("unreachable")


def lock_of(url: str) -> FileLock:
    """Return a lock among the processes of this machine: SQLite would let two of them claim the same trial."""
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
    path = Path(tempfile.gettempdir()) / f"lr_lightning-search-{os.getuid()}-{mark}.lock"
    return FileLock(path, timeout=_LOCK_SECONDS)
