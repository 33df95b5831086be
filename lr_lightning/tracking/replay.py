"""Upload of what a stopped run could not upload, and the watchdog that closes the record of a killed run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lr_lightning._commands import resume_argument
from lr_lightning.errors import StoreUnavailable, TrackingError
from lr_lightning.tracking.keys import hide_password
from lr_lightning.tracking.local_log import LOCK_NAME, LOG_NAME, LocalLog, LoggedRun, Status, UploadState
from lr_lightning.tracking.locks import Holder, RunLock, run_lock
from lr_lightning.tracking.uploader import Uploader

_WATCHDOG_LOCK_SECONDS = 20.0  # children that the killed process forked hold its locks until they notice


@dataclass(frozen=True)
class Replayed:
    """The result of a replay: ``records`` were uploaded to run ``run_id`` of the store at ``uri`` (no password)."""

    records: int
    run_id: str
    uri: str


def replay(output_dir: Path, final_status: str = "KILLED", lock_seconds: float = 0) -> Replayed:
    """Upload the rest of a stopped run's log; create the run if the store has never seen it.

    Args:
        output_dir: The run's output directory.
        final_status: Status of the run if its process was killed before it could set one.
        lock_seconds: How long to wait for the run to end.

    Raises:
        TrackingError: There is no such folder or no log in it, or the store rejects the run.
        RunInUse: The run is still alive.
        StoreUnavailable: The store does not answer. What arrived before is confirmed, and a later call continues there.
    """
    output_dir = output_dir.expanduser().absolute()
    if not output_dir.is_dir():
        raise TrackingError(f"{output_dir}: no such folder. Give the output directory of a run.")
    state = UploadState.load(output_dir)
    if state is None:
        raise TrackingError(f"{output_dir}: holds no log for a store. Give the output directory of an MLflow run.")
    holder = Holder.here(hide_password(state.uri), str(output_dir))
    with ExitStack() as locks:

        def hold(lock: RunLock, **options: float) -> None:
            lock.acquire(holder, **options)
            locks.callback(lock.release)

        hold(RunLock(output_dir / LOCK_NAME, f"the run in {output_dir}"), timeout=lock_seconds)
        log = LocalLog(output_dir / LOG_NAME)
        log.repair()
        logged = LoggedRun.of(log.records())
        state.check_log(output_dir, logged)
        state = state.moved(logged.tags.get("output_dir"), output_dir)
        store = state.store
        if logged.status in (None, "RUNNING") and logged.last_time:
            log.append([Status(final_status, logged.last_time)])
        uploader = Uploader(output_dir, store, state, lambda run_id: hold(run_lock(store.lock_dir, run_id)))
        records = uploader.pending()
        while uploader.upload_next() or uploader.upload_artifact():
            pass
        return Replayed(records, uploader.ensure_run(), store.public_uri)


# The watchdog is bare Python until it has something to do: torch and MLflow take seconds and hundreds of megabytes.
_WATCHDOG = f"""
import sys
if not sys.stdin.buffer.read():
    from {__name__} import close_record
    close_record(sys.argv[1])
"""


@contextmanager
def watchdog(output_dir: Path | None) -> "Iterator[subprocess.Popen[bytes] | None]":
    """Have a process close a run's record as FAILED if this process is killed in this context; none without a folder.

    If a rank of a distributed run dies, Lightning's launcher, torchrun and SLURM kill the other ranks with SIGKILL, and
    a process that is killed this way can close nothing. The watchdog waits at the other end of a pipe, and acts if the
    pipe closes without a word.
    """
    process = _start_watchdog(output_dir) if output_dir is not None else None
    try:
        yield process
    finally:
        if process is not None:
            try:
                process.communicate(b"closed", timeout=5)
            except (OSError, subprocess.TimeoutExpired):
                process.kill()
                process.wait()


def _start_watchdog(output_dir: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", _WATCHDOG, str(output_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,  # a signal to the run's process group must not reach it
    )


def close_record(output_dir: Path | str) -> None:
    """Set the status FAILED on a run whose first process is gone, and upload the rest of its log."""
    try:
        done = replay(Path(output_dir), final_status="FAILED", lock_seconds=_WATCHDOG_LOCK_SECONDS)
    except (TrackingError, StoreUnavailable) as error:
        print(f"the record of the run in {output_dir} is not closed: {error}", file=sys.stderr)
    else:
        gone = f"the first process of run {done.run_id} is gone: its record is closed."
        print(gone, f"Resume it with {resume_argument(output_dir)}", file=sys.stderr)
