"""Upload of what a stopped run could not upload, and the watchdog that closes the record of a killed run."""

import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from lr_lightning.errors import StoreUnavailable, TrackingError
from lr_lightning.tracking.local_log import LOCK_NAME, LOG_NAME, LocalLog, LoggedRun, Status, UploadState
from lr_lightning.tracking.locks import Holder, RunLock, run_lock
from lr_lightning.tracking.store import Store
from lr_lightning.tracking.uploader import Uploader

_WATCHDOG_LOCK_SECONDS = 20.0  # children that the killed process forked hold its locks until they notice


@dataclass(frozen=True)
class Replayed:
    """The result of a replay: ``records`` were uploaded to run ``run_id`` of the store at ``uri`` (no password)."""

    records: int
    run_id: str
    uri: str


def replay(output_dir: Path, final_status: str = "KILLED", lock_seconds: float = 0) -> Replayed:
    """Upload what is left of the log in ``output_dir``; create the run first if the store has never seen it.

    Args:
        output_dir: Output directory of a run that has stopped.
        final_status: Status of the run if its process was killed before it could set one.
        lock_seconds: How long to wait for the run to end, in seconds.

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
    store = Store(state.uri, Path(state.root), Path(state.artifact_root) if state.artifact_root else None)
    holder = Holder.here(store.public_uri, str(output_dir))
    with ExitStack() as locks:

        def hold(lock: RunLock, **options: float) -> None:
            lock.acquire(holder, **options)
            locks.callback(lock.release)

        hold(RunLock(output_dir / LOCK_NAME, f"the run in {output_dir}"), timeout=lock_seconds)
        _end_if_killed(output_dir, state, final_status)
        uploader = Uploader(output_dir, store, state, lambda run_id: hold(run_lock(store.lock_dir, run_id)))
        records = 0
        while count := uploader.upload_next():
            records += count
        return Replayed(records, uploader.ensure_run(), store.public_uri)


def _end_if_killed(output_dir: Path, state: UploadState, status: str) -> None:
    log = LocalLog(output_dir / LOG_NAME)
    log.repair()
    logged = LoggedRun.of(log.records())
    state.check_log(output_dir, logged)
    if logged.status in (None, "RUNNING") and logged.last_time:
        log.append([Status(status, logged.last_time)])


# The watchdog is bare Python until it has something to do: torch and MLflow take seconds and hundreds of megabytes.
_WATCHDOG = f"""
import sys
if not sys.stdin.buffer.read():
    from {__name__} import close_record
    close_record(sys.argv[1])
"""


class Watchdog:
    """A process that closes a run's record if the process inside this context is killed.

    If a rank of a distributed run dies, Lightning's launcher, torchrun and SLURM kill the other ranks with SIGKILL, and
    a process that is killed this way can close nothing. The watchdog waits at the other end of a pipe: if the pipe
    closes without a word, it closes the record as FAILED. On a normal exit from the context it ends without any action.

    Args:
        output_dir: The run's folder, or None for no watchdog.
    """

    def __init__(self, output_dir: Path | None) -> None:
        self._output_dir = output_dir
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self._output_dir is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WATCHDOG, str(self._output_dir)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # a signal to the run's process group must not reach it
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._process is not None:
            try:
                self._process.communicate(b"closed", timeout=5)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()


def close_record(output_dir: Path | str) -> None:
    """Set the status FAILED on a run whose first process is gone, and upload what is left of its log."""
    try:
        done = replay(Path(output_dir), final_status="FAILED", lock_seconds=_WATCHDOG_LOCK_SECONDS)
    except (TrackingError, StoreUnavailable) as error:
        print(f"the record of the run in {output_dir} is not closed: {error}", file=sys.stderr)
        return
    print(
        f"the first process of run {done.run_id} is gone: its record is closed. Resume it with resume={output_dir}",
        file=sys.stderr,
    )
