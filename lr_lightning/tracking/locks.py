"""File locks that say which runs are alive, and the marking of those that are not.

The system frees a lock when its holder dies, however it dies, so a lock that can be taken means a process that is gone.
Beside each ``<name>.lock`` lies ``<name>.json``, which says who holds it: some versions of filelock empty the lock file
itself when they open it.
"""

import json
import logging
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from lr_lightning.errors import RunInUse, StoreUnavailable, TrackingError
from lr_lightning.tracking.files import write_atomically

if TYPE_CHECKING:
    from lr_lightning.tracking.store import Store

log = logging.getLogger(__name__)

# A start that marks dead runs holds a lock for a moment: whoever wants to resume that run waits it out.
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. ``uri`` is shown without its password."""

    uri: str
    output_dir: str
    host: str
    pid: int

    @classmethod
    def here(cls, uri: str, output_dir: str) -> "Holder":
        """Describe this process."""
        return cls(uri, output_dir, socket.gethostname(), os.getpid())


def read_holder(path: Path) -> Holder | None:
    """Read who holds ``<name>.lock`` from ``<name>.json``; None where that is not known."""
    try:
        return Holder(**json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class RunLock:
    """An exclusive lock that lives as long as its process, with its holder's name beside it.

    Args:
        path: ``<name>.lock``; its folder is made.
        what: What is locked, for the error message, e.g. ``"run 12ab"``.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self._what = what
        self._lock: FileLock | None = None

    def acquire(self, holder: Holder, timeout: float = _PATIENCE_SECONDS) -> None:
        """Take the lock.

        Args:
            holder: Who takes it.
            timeout: Seconds to wait for it.

        Raises:
            RunInUse: A live process holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path, thread_local=False)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            other = read_holder(self.path)
            who = f" (pid {other.pid} on host {other.host})" if other else ""
            raise RunInUse(f"{self._what} is still running{who}. Wait for it, or stop it first.") from None
        self._lock = lock
        try:
            write_atomically(self.path.with_suffix(".json"), json.dumps(asdict(holder)) + "\n")
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Free the lock and remove its files. Does nothing where it is not held."""
        if self._lock is None:
            return
        self.path.with_suffix(".json").unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self._lock.release()
        self._lock = None


def run_lock(lock_dir: Path, run_id: str) -> RunLock:
    """Give the lock that the live process of run ``run_id`` holds."""
    return RunLock(lock_dir / f"{run_id}.lock", f"run {run_id}")


def mark_dead_runs(store: "Store") -> list[str]:
    """Mark as KILLED every run of this host whose process is gone while the store says RUNNING.

    Runs that are alive, on another host, or of another store are left alone. Never raises: a run must not fail because
    an earlier one did.

    Args:
        store: The store whose runs are looked at.

    Returns:
        Ids of the runs marked.
    """
    marked: list[str] = []
    for described in sorted(store.lock_dir.glob("*.json")):
        path = described.with_suffix(".lock")
        holder = read_holder(path)
        if holder is None or holder.host != socket.gethostname() or holder.uri != store.public_uri:
            continue
        try:
            if _mark_if_dead(store, path, holder):
                marked.append(path.stem)
        except (StoreUnavailable, TrackingError, OSError) as error:
            log.warning("run %s could not be checked for being alive: %s", path.stem, error)
            if isinstance(error, StoreUnavailable):
                break
    return marked


def _mark_if_dead(store: "Store", path: Path, holder: Holder) -> bool:
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        marked = store.end_if_running(path.stem, "KILLED")
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    finally:
        lock.release()
    if marked:
        log.warning(
            "run %s was left RUNNING by a process that is gone: marked KILLED. Go on with it by "
            "resume=%s, or send what it had not sent: python scripts/replay.py %s",
            path.stem,
            path.stem,
            holder.output_dir,
        )
    return marked
