"""File locks that show which runs are alive, and the marking of runs whose process is gone.

The system frees a lock when its holder dies, however it dies, so a lock that can be taken belongs to a process that is
gone. Beside each ``<name>.lock`` lies ``<name>.json``, which names the holder: some versions of filelock empty the lock
file itself when they open it.
"""

import json
import logging
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lr_lightning._commands import replay_command
from lr_lightning.errors import RunInUse, StoreUnavailable, TrackingError
from lr_lightning.tracking.files import write_atomically
from lr_lightning.tracking.store import Store

log = logging.getLogger(__name__)

# The marking of dead runs holds a lock for a moment: a process that wants to resume such a run waits this long.
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock. ``uri`` is the store without its password, or empty."""

    uri: str
    output_dir: str
    host: str
    pid: int

    @classmethod
    def here(cls, uri: str, output_dir: str) -> "Holder":
        """Describe this process."""
        return cls(uri, output_dir, socket.gethostname(), os.getpid())


def read_holder(path: Path) -> Holder | None:
    """Read the holder of ``<name>.lock`` from ``<name>.json``; None if it is unknown."""
    try:
        return Holder(**json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class RunLock:
    """An exclusive lock ``<name>.lock`` that lives as long as its process; ``what`` names it in the error message."""

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self._what = what
        self._lock: FileLock | None = None

    def acquire(self, holder: Holder, timeout: float = _PATIENCE_SECONDS) -> None:
        """Take the lock for ``holder``, waiting for ``timeout`` seconds at most."""
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
        """Free the lock and remove its files. Does nothing if the lock is not held."""
        if self._lock is None:
            return
        self.path.with_suffix(".json").unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self._lock.release()
        self._lock = None


def is_held(path: Path) -> bool:
    """Tell whether a process holds the lock ``<name>.lock``; one of another host is believed to."""
    holder = read_holder(path)
    if not path.exists() or holder is None:
        return False
    if holder.host != socket.gethostname():
        return True
    try:
        with FileLock(path, thread_local=False).acquire(timeout=0):
            return False
    except Timeout:
        return True


def run_lock(lock_dir: Path, run_id: str) -> RunLock:
    """Return the lock that the live process of run ``run_id`` holds."""
    return RunLock(lock_dir / f"{run_id}.lock", f"run {run_id}")


def mark_dead_runs(store: Store) -> list[str]:
    """Mark as KILLED every run of this host that says RUNNING in the store while its process is gone; return their ids.

    Live runs and runs of other hosts or stores are left alone. Never raises: a new run must not fail because an earlier
    one did.
    """
    marked: list[str] = []
    for description in sorted(store.lock_dir.glob("*.json")):
        path = description.with_suffix(".lock")
        run_id, holder = path.stem, read_holder(path)
        if holder is None or holder.host != socket.gethostname() or not store.is_held_by(holder.uri):
            continue
        try:
            with FileLock(path, thread_local=False).acquire(timeout=0):
                was_running = store.end_if_running(run_id, "KILLED")
                description.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
        except Timeout:  # its process is alive
            continue
        except (StoreUnavailable, TrackingError, OSError) as error:
            log.warning("cannot check whether run %s is alive: %s", run_id, error)
            if isinstance(error, StoreUnavailable):
                break
            continue
        if was_running:
            marked.append(run_id)
            where = f", or upload what it had not uploaded: {replay_command(holder.output_dir)}"
            log.warning(
                "run %s was left RUNNING by a process that is gone: it is now marked KILLED. Resume it with %s%s",
                *(run_id, f"resume={run_id}", where if Path(holder.output_dir).is_dir() else ""),  # it may have moved
            )
    return marked
